"""Weights of the clip towers: fetched or read, and refused where they belong to another architecture.

A file of weights is names and numbers. It does not say which activation function they were trained with, how the
colours were normalised or how many attention heads share a matrix; loaded into the wrong architecture it computes
plausible nonsense. So whatever a file, or the configuration beside it, does tell is compared, and position tables are
never stretched to fit.
"""

import logging
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.convert import convert_state_dict
from open_clip.factory import get_model_config, load_state_dict
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transformer import QuickGELU
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.architectures import Architecture
from glscl.models.hub import DESCRIPTION
from glscl.models.options import HUB
from glscl.system import storage

_OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}  # in its archives beside the parameters
_SUFFIX = "-quickgelu"
_UNUSED = ("text_decoder.", "text.transformer.embeddings.position_ids")  # a generator of text; made anew
_WEIGHTS = (".safetensors", ".bin", ".pth")
_PREFERRED = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
_SAYS_NOTHING = ("timm_", "hf_model_pretrained", "output_tokens", "patch_dropout")


def create_model(
    architecture: Architecture,
    pretrained: str | None,
    load_weights: bool,
    trust_pickle: bool,
    text_config: str | None = None,
) -> Any:
    """Build an architecture, with weights of a tag, path or s3:// address; None: those beside it, else random ones.

    Without ``load_weights`` they are random in the architecture that a tag asks for, and none are fetched. With
    ``trust_pickle``, files that may run code are loaded. ``text_config`` is the folder of a Hugging Face text tower's
    configuration. What only generates text (CoCa's decoder) is left out. Raises `UserError`: weights missing,
    unreadable, or of another architecture.
    """
    if pretrained is None and not architecture.folder:
        return _build(architecture, text_config)
    source = f"model.pretrained: '{pretrained}'" if pretrained else f"model.clip: '{architecture.clip}'"
    try:
        return _build_with_weights(architecture, pretrained, load_weights, trust_pickle, text_config)
    except UserError:
        raise
    except Exception as error:
        if not trust_pickle and _more_than_tensors(error):
            raise UserError(
                f"{source} holds more than tensors, so loading it may run code: give the "
                "weights as safetensors, or, if you trust whoever made the file, set model.trust_pickle"
            ) from None
        detail = str(error).strip()[:400]
        raise UserError(
            f"{source} cannot be loaded into {architecture.name} ({type(error).__name__}: {detail}); "
            "give weights of this architecture, or set model.clip to theirs"
        ) from error


def _build_with_weights(
    architecture: Architecture, pretrained: str | None, load_weights: bool, trust_pickle: bool, text_config: str | None
) -> Any:
    name = architecture.name
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None
    if tag:
        options: dict[str, object] = {"force_quick_gelu": bool(tag.get("quick_gelu"))}
        if not load_weights:
            options["force_preprocess_cfg"] = {key: tag[key] for key in ("mean", "std") if key in tag}
        return _build(
            architecture, text_config, load_weights, pretrained=pretrained if load_weights else None, **options
        )
    colours = None if architecture.folder else _usual_colours(name)
    model = _build(architecture, text_config, force_preprocess_cfg=colours)
    if load_weights:
        _load_file(model, name, pretrained or _find_weights(architecture), trust_pickle)
    return model


def _find_weights(architecture: Architecture) -> str:
    """The weights beside an architecture, fetched where that is a repository; open_clip's choice among several."""
    if architecture.clip.startswith(HUB):
        path: str = download_pretrained_from_hf(architecture.clip.removeprefix(HUB))
        return path
    folder = str(architecture.folder)
    names = [name for name in sorted(os.listdir(folder)) if name.endswith(_WEIGHTS)]
    preferred = [name for name in _PREFERRED if name in names]
    names = preferred or sorted(names, key=lambda name: not name.endswith(".safetensors"))
    if not names:
        raise UserError(
            f"model.clip: no weights ({', '.join(_WEIGHTS)}) in {folder}; for random weights give its model_cfg as a "
            "file, model.clip: FILE.json"
        )
    return os.path.join(folder, names[0])


def computes_quick_gelu(model: nn.Module) -> bool:
    """Whether an activation function of the towers is OpenAI's ``x · sigmoid(1.702 x)`` instead of GELU."""
    return any(isinstance(module, QuickGELU) for module in model.modules())


def describe_activation(name: str, pretrained: str | None, quick_gelu: bool) -> str:
    """What the start-up panel adds to a weights file's name: a file does not say its activation, model.clip does."""
    if pretrained is None or open_clip.get_pretrained_cfg(name, pretrained):
        return ""
    if quick_gelu:
        return ", computed with QuickGELU"
    twin = name + _SUFFIX
    return f", computed with GELU (OpenAI's weights need {twin})" if twin in open_clip.list_models() else ""


def export_metadata(quick_gelu: bool, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, str]:
    """What a file of exported towers says beside its tensors, for `create_model` to compare."""
    return {"quick_gelu": str(quick_gelu), "mean": _plain(mean), "std": _plain(std)}


def _build(architecture: Architecture, text_config: str | None, load_weights: bool = False, **options: object) -> Any:
    if text_config:
        described = architecture.config["text_cfg"]
        options["text_cfg"] = described | {"hf_model_name": text_config, "hf_model_pretrained": False}
    with _without_root_warnings():
        device = torch.get_default_device()  # "meta" where only shapes are asked for
        model = open_clip.create_model(
            architecture.name,
            force_custom_text=True,
            nonscalar_logit_scale=True,
            device=device,
            load_weights=load_weights,
            pretrained_text=False,
            **options,
        )
    if isinstance(model, CoCa):
        del model.text_decoder
    return model


def _usual_colours(name: str) -> dict[str, object] | None:
    """Mean and deviation of all published weights of a name (a saved model has the same); None if they differ."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    known = [{key: config[key] for key in ("mean", "std") if key in config} for config in configs]
    return known[0] if known and all(one == known[0] for one in known) else None


def _load_file(model: Any, name: str, pretrained: str, trust_pickle: bool) -> None:
    if storage.is_remote(pretrained):
        with tempfile.TemporaryDirectory(prefix="glscl-weights-") as folder:
            path = os.path.join(folder, os.path.basename(pretrained))
            try:
                storage.download(pretrained, path)
            except FileNotFoundError:
                raise UserError(f"model.pretrained: no file at {pretrained}") from None
            _load_local(model, name, path, pretrained, trust_pickle)
    elif os.path.isfile(pretrained):
        _load_local(model, name, pretrained, pretrained, trust_pickle)
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"model.pretrained: '{pretrained}' is neither an existing file nor a tag of {name} (tags: {tags})"
        )


def _load_local(model: Any, name: str, path: str, pretrained: str, trust_pickle: bool) -> None:
    """Load a local file that the user knows as ``pretrained``."""
    known = _read_sidecar(pretrained, name) | _read_metadata(path)
    _check(model, name, pretrained, known)
    state: dict[str, Tensor] = load_state_dict(path, weights_only=not trust_pickle)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("more than tensors under names")
    _check(model, name, pretrained, _infer_from_state(state))
    for key in _OPENAI_KEYS:
        state.pop(key, None)
    state = convert_state_dict(model, state)
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    state = {key: tensor for key, tensor in state.items() if not key.startswith(_UNUSED)}
    for key in ("logit_scale", "logit_bias"):
        if key in state and getattr(model, key) is not None:
            state[key] = state[key].reshape(getattr(model, key).shape)
    if model.logit_bias is not None:
        state.setdefault("logit_bias", torch.zeros_like(model.logit_bias))  # as open_clip does
    model.load_state_dict(state)  # as it is: open_clip itself would stretch position tables of other lengths


Known = dict[str, tuple[bool | str, str]]  # of weights, each with its source: "quick_gelu", "mean", "std"


def _check(model: Any, name: str, pretrained: str, known: Known) -> None:
    """Refuse weights that are known to be of another activation function or other colours than the model's."""
    quick_gelu = computes_quick_gelu(model)
    theirs, source = known.get("quick_gelu", (quick_gelu, ""))
    if theirs != quick_gelu:
        names: dict[bool | str, str] = {True: "QuickGELU", False: "GELU"}
        other = name + _SUFFIX if theirs else name.removesuffix(_SUFFIX)
        knob = f"set model.clip to {other}"
        if other not in open_clip.list_models() or other == name:
            knob = f'set "quick_gelu": {str(theirs).lower()} in the configuration that model.clip names'
        raise UserError(
            f"model.pretrained: '{pretrained}' was trained with {names[theirs]} ({source}), and {name} computes "
            f"{names[quick_gelu]}: it would load and be wrong; {knob}"
        )
    for key in ("mean", "std"):
        ours = model.visual.preprocess_cfg[key]
        theirs, source = known.get(key, (_plain(ours), ""))
        if theirs != _plain(ours):
            raise UserError(
                f"model.pretrained: '{pretrained}' was trained with colours of another {key} ({theirs}, {source}) than "
                f"{name} normalises by ({_plain(ours)}): it would load and be wrong; give a tag of open_clip, or "
                f"weights of these colours"
            )


def _plain(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:.4f}" for number in numbers)


def _read_sidecar(pretrained: str, name: str) -> Known:
    """Read the configuration beside the weights; refused where it describes another architecture."""
    where = storage.join(os.path.dirname(pretrained) or ".", DESCRIPTION)
    if not storage.exists(where):
        return {}
    sidecar = storage.read_json(where)
    config = sidecar.get("model_cfg") if isinstance(sidecar, dict) else None
    if not isinstance(config, dict):
        raise UserError(f"model.pretrained: {where} is no configuration of open_clip; move it, or give the right one")
    ours, theirs = _flatten(get_model_config(name) or {}), _flatten(config)
    for key in ours.keys() & theirs.keys():
        if ours[key] != theirs[key] and not key.rpartition(".")[2].startswith(_SAYS_NOTHING):
            raise UserError(
                f"model.pretrained: {where} says that these weights are of an architecture with {key} {theirs[key]}, "
                f"and {name} has {ours[key]}; set model.clip to theirs"
            )
    known: Known = {"quick_gelu": (bool(config.get("quick_gelu")), DESCRIPTION)}
    colours = sidecar.get("preprocess_cfg") or {}
    return known | {key: (_plain(colours[key]), DESCRIPTION) for key in ("mean", "std") if key in colours}


def _flatten(config: Mapping[str, Any]) -> dict[str, object]:
    """An architecture's sizes and switches by dotted name, defaults included."""
    flat = {"embed_dim": config.get("embed_dim")}
    for section, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        known = {field.name for field in fields(kind)}
        values = {key: value for key, value in config.get(section, {}).items() if key in known}
        flat |= {f"{section}.{key}": value for key, value in asdict(kind(**values)).items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}


def _read_header(path: str) -> Known:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return {}  # loading says what is wrong with it
    known: Known = {key: (metadata[key], "its own header") for key in ("mean", "std") if key in metadata}
    if metadata.get("quick_gelu") in ("True", "False"):
        known["quick_gelu"] = (metadata["quick_gelu"] == "True", "its own header")
    return known


def _read_metadata(path: str) -> Known:
    if path.endswith(".safetensors"):
        return _read_header(path)
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        code = [item for item in archive.infolist() if "/code/" in item.filename and item.filename.endswith(".py")]
        source = b"".join(archive.read(item) for item in code if item.file_size < 1 << 24)
    if b"QuickGELU" in source or all(key.encode() in source for key in _OPENAI_KEYS):
        return {"quick_gelu": (True, "a TorchScript archive as OpenAI publishes them")}
    return {}


def _infer_from_state(state: Mapping[str, Tensor]) -> Known:
    """Infer from names and types: OpenAI's integers, and its matrices in fp16 among norms and tables in fp32."""
    if state.keys() >= _OPENAI_KEYS:
        return {"quick_gelu": (True, "it has the three integers of OpenAI's archives")}
    halves = {name for name, tensor in state.items() if tensor.dtype == torch.float16}
    norms = [name for name in state if "ln_" in name]
    if any(name.endswith("in_proj_weight") for name in halves) and norms and not halves.intersection(norms):
        return {
            "quick_gelu": (
                True,
                "fp16 matrices among fp32 norms, as OpenAI's have it; if they are not OpenAI's, save all in fp32",
            )
        }
    return {}


def _more_than_tensors(error: Exception) -> bool:
    """True where torch's restricted unpickler has met what it does not load."""
    message = str(error)
    return "TorchScript" in message or (isinstance(error, pickle.UnpicklingError) and "GLOBAL" in message.upper())


@contextmanager
def _without_root_warnings() -> Iterator[None]:
    """Silence open_clip's warning about random weights, which are asked for; errors still raise."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(before)
