"""Architectures of clip towers: what ``model.clip`` names, and why some of them cannot be used."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
from open_clip.coca_model import MultimodalCfg
from open_clip.factory import get_model_config
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from glscl.errors import UserError, did_you_mean
from glscl.models import tiny as _tiny  # noqa: F401  # registers what some descriptions name
from glscl.models.hub import DESCRIPTION, find_repository
from glscl.models.options import HUB, LOCAL_DIR
from glscl.models.tokenizer import VOCABULARY
from glscl.options import MAX_LAYERS, MAX_SIZE
from glscl.system import storage

_LARGEST = {"layers": MAX_LAYERS, "context_length": 4096, "image_size": 4096, "width": 65_536}
_MOST_PATCH_NUMBERS = 1 << 28  # of one picture's patches
_POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler", None)  # max_pooler fails in open_clip
_TOKENIZER_OPTIONS = {"clean": ("canonicalize", "lower", "whitespace"), "strip_sep_token": (True, False)}
_SECTIONS = {"text_cfg": CLIPTextCfg, "vision_cfg": CLIPVisionCfg, "multimodal_cfg": MultimodalCfg}
_KINDS = {"hf_model_name": str, "hf_tokenizer_name": str, "timm_model_name": str, "tokenizer_kwargs": dict}
_REST = {"embed_dim", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
_PADDED_WITH_END = ("timm/ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP-i18n-256")  # by 1, their end token; others by 0

open_clip.add_model_config(Path(__file__).parent / "configs")


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture that can be used.

    Attributes:
        clip: as ``model.clip`` names it.
        name: as open_clip's functions take it.
        config: its description.
        folder: where weights and tokenizer lie beside the description; None where there is only a description.
    """

    clip: str
    name: str
    config: dict[str, Any]
    folder: str | None = None

    @property
    def text(self) -> CLIPTextCfg:
        """The text tower's description, defaults included."""
        return CLIPTextCfg(**self.config["text_cfg"])

    @property
    def width(self) -> int:
        """D, width of the joint space."""
        return int(self.config["embed_dim"])

    @property
    def frame_size(self) -> int:
        """Height and width of a frame in pixels."""
        size = CLIPVisionCfg(**self.config["vision_cfg"]).image_size
        return int(size[0] if isinstance(size, list | tuple) else size)

    @property
    def sees_padding(self) -> bool:
        """Whether what a caption is filled up with changes its features, so that it has to be as in pretraining."""
        text = self.text
        pooled = text.embed_cls or text.pool_type in ("first", "last")
        return not text.hf_model_name and bool(text.no_causal_mask or pooled)

    @property
    def padding(self) -> int:
        """Id that fills captions up, of a text tower that is open_clip's own.

        open_clip's descriptions of SigLIP do not say it, since its own tokenizer always fills up.
        """
        by_name = int(self.text.hf_tokenizer_name in _PADDED_WITH_END)
        return int(self.config["text_cfg"].get("pad_id", by_name))


def find_architecture(clip: str, *, fetch: bool = True) -> Architecture:
    """Find what ``model.clip`` names: one of open_clip's, a JSON file, ``local-dir:FOLDER`` or ``hf-hub:ORG/MODEL``.

    Without ``fetch`` a repository must be in Hugging Face's cache. Raises `UserError`: unknown, or not supported.
    """
    architecture = _read_folder(clip, fetch) if clip.startswith((LOCAL_DIR, HUB)) else _known(clip)
    if reason := refusal(architecture.config):
        raise UserError(f"model.clip: '{clip}' is not supported: {reason}; `glscl towers` lists those that are")
    _check_sizes(architecture)
    return architecture


def refusal(config: dict[str, Any]) -> str | None:
    """Why the towers of a description cannot be used; None where they can."""
    unknown = config.keys() - _SECTIONS.keys() - _REST
    for section, kind in _SECTIONS.items():
        values = config.get(section, {} if section == "multimodal_cfg" else None)
        if not isinstance(values, dict):
            return f"it has no {section}, so no tower of this kind"
        for key, kinds in _KINDS.items():
            if not isinstance(values.get(key), kinds | None):
                return f"its {section}.{key} is {values[key]!r}"
        unknown |= {f"{section}.{key}" for key in values.keys() - {field.name for field in fields(kind)}}
    if unknown:
        return f"open_clip {open_clip.__version__} does not know its {', '.join(sorted(unknown))}"
    return _refuse_text(CLIPTextCfg(**config["text_cfg"])) or _refuse_vision(CLIPVisionCfg(**config["vision_cfg"]))


def _refuse_text(text: CLIPTextCfg) -> str | None:
    options = text.tokenizer_kwargs or {}
    unknown = [key for key in options if options[key] not in _TOKENIZER_OPTIONS.get(key, ())]
    if text.hf_model_name and text.hf_pooler_type not in _POOLERS:
        return f"open_clip cannot run its pooler '{text.hf_pooler_type}'"
    if text.pool_type == "none":
        return "its text tower gives no sentence feature"
    if text.tokenizer_mode:
        return f"its tokenizer has a mode of its own ('{text.tokenizer_mode}')"
    if unknown:
        return f"its tokenizer is given options that are not known here ({', '.join(map(str, unknown))})"
    if not text.hf_tokenizer_name and text.vocab_size < VOCABULARY:
        return f"it names no tokenizer, and knows {text.vocab_size} of the {VOCABULARY} tokens of CLIP's"
    return None


def _refuse_vision(vision: CLIPVisionCfg) -> str | None:
    size = vision.image_size
    if isinstance(size, list | tuple) and size[0] != size[1]:
        return f"it takes {size[0]}×{size[1]} pictures; square ones are needed"
    if ":" in (vision.timm_model_name or ""):
        return f"its image tower comes from elsewhere ('{vision.timm_model_name}')"
    if not vision.timm_model_name and (vision.pool_type == "none" or isinstance(vision.attentional_pool, str)):
        return "its image feature is not one vector"
    return None


def _known(clip: str) -> Architecture:
    """One of open_clip's, or a file of the user's own."""
    name = clip.replace("/", "-")
    if clip.endswith(".json"):
        if not os.path.isfile(clip):
            raise UserError(f"model.clip: no open_clip configuration file at {clip}")
        storage.read_json(clip)  # open_clip would read it again and again, and fail on it each time
        open_clip.add_model_config(Path(clip))
        name = Path(clip).stem
    config = get_model_config(name)
    if config is None:
        raise UserError(
            f"model.clip: open_clip knows no architecture '{clip}'{did_you_mean(clip, open_clip.list_models())}"
        )
    return Architecture(clip, name, config)


def _read_folder(clip: str, fetch: bool) -> Architecture:
    """What lies in a folder, or in a repository whose small files are then in one."""
    where = clip.partition(":")[2]
    folder: str | None = where
    if clip.startswith(HUB):
        try:
            folder = find_repository(where, [DESCRIPTION], fetch=fetch)
        except UserError as error:
            raise UserError(f"model.clip: {error}") from None
        if folder is None:
            raise UserError(
                f"model.clip: {where} is not in Hugging Face's cache on this machine, and nothing is fetched here; "
                f"fetch it with `hf download {where}`"
            )
    path = os.path.join(str(folder), DESCRIPTION)
    if not os.path.isfile(path):
        raise UserError(f"model.clip: no {DESCRIPTION} in {where}; a folder as open_clip saves it has one")
    described = storage.read_json(path)
    config = described.get("model_cfg") if isinstance(described, dict) else None
    if not isinstance(config, dict) or "embed_dim" not in config:
        raise UserError(f"model.clip: {path} describes no architecture of open_clip (model_cfg)")
    return Architecture(clip, f"{LOCAL_DIR}{folder}", config, folder)


def _is_within(value: object, most: float) -> bool:
    """Whether a number, or every number of a list, is from 0 to ``most``; anything else is no size."""
    numbers = value if isinstance(value, list) else [value]
    return all(0 <= number <= most for number in numbers if isinstance(number, int | float))


def _check_sizes(architecture: Architecture) -> None:
    """Refuse sizes that no tower has: what they would take is taken before any weights are compared."""
    clip, config = architecture.clip, architecture.config
    for section in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        for key, value in config.get(section, {}).items():
            most = _LARGEST.get(key, MAX_SIZE)
            if not _is_within(value, most):
                raise UserError(f"model.clip: '{clip}' has {section}.{key} {value}; at most {most} is supported")
    vision = config["vision_cfg"]
    size, patch, width = (vision.get(key, 1) for key in ("image_size", "patch_size", "width"))
    whole = all(isinstance(number, int) and number > 0 for number in (size, patch, width))
    if whole and (size // patch) ** 2 * width > _MOST_PATCH_NUMBERS:
        raise UserError(f"model.clip: '{clip}' cuts {size} pixels into patches of {patch}: more than can be held")
    if not (isinstance(config["embed_dim"], int) and 0 < config["embed_dim"] <= MAX_SIZE):
        raise UserError(f"model.clip: '{clip}' has embed_dim {config['embed_dim']}; at most {MAX_SIZE} is supported")
