"""The clip towers: any open_clip architecture with a CLIP text transformer, giving tokens and frames."""

import os
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import get_model_config
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from glscl.errors import UserError, did_you_mean
from glscl.models.pretrained import computes_quick_gelu, create_model, describe_activation, export_metadata
from glscl.models.tokenizer import VOCABULARY
from glscl.options import MAX_LAYERS, MAX_SIZE

open_clip.add_model_config(Path(__file__).parent / "configs")

_LARGEST = {"layers": MAX_LAYERS, "context_length": 4096, "image_size": 4096, "width": 65_536}
_MOST_PATCH_NUMBERS = 1 << 28  # of one picture's patches


class TokenTextTransformer(TextTransformer):
    """open_clip's text transformer, giving every token's feature in the joint space.

    The parameters are open_clip's own; only what `forward` returns differs. It is a `forward` of the module that owns
    them so that hooks which gather sharded parameters run.
    """

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode token ids (A, W), W at most the context length.

        Returns sentence features (A, D), the end token's; token features (A, W, D); token mask (A, W), True up to it.
        """
        words = token_ids.shape[1]
        ids, mask = token_ids, self.attn_mask
        if mask is None:
            # Every token sees the padding, so the padding must be as long as it was in pretraining.
            ids = F.pad(ids, (0, self.context_length - words), value=self.pad_id)
        else:
            mask = mask[:words, :words]
        x = self.token_embedding(ids)
        x = x + self.positional_embedding[: ids.shape[1]].to(x.dtype)
        x = self.ln_final(self.transformer(x, attn_mask=mask))[:, :words]
        if isinstance(self.text_projection, nn.Linear):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        is_end = token_ids == self.eos_id if self.pool_type == "eos" else token_ids
        end = is_end.int().argmax(-1)
        sentence = x[torch.arange(len(x), device=x.device), end]
        token_mask = torch.arange(words, device=x.device) <= end.unsqueeze(-1)
        return sentence, x, token_mask


class Towers(nn.Module):
    """The text and the image tower of one open_clip model.

    Args:
        clip: open_clip architecture, or the path of an open_clip configuration file (``*.json``).
        pretrained: tag of pretrained weights, path or s3:// address of a weights file, or None for random weights.
        grad_checkpointing: recompute activations in the backward pass.
        load_weights: false gives random weights in the architecture that ``pretrained`` asks for (a tag also sets the
            activation function and the colour normalisation), and fetches nothing.
        trust_pickle: load weights from files that may run code (pickles of more than tensors, TorchScript).

    Attributes:
        width: D, width of the joint space.
        frame_size: height and width of a frame in pixels.
        context_length: most tokens of a caption.
        log_scale: the logit scale before ``exp`` that came with the weights.
        activation: what the start-up panel adds to the name of a weights file.
        metadata: what a file of these towers has to say beside its tensors.
        architecture: open_clip's configuration.

    Raises:
        UserError: unknown or unsupported architecture; weights missing or of another architecture.
    """

    def __init__(
        self,
        clip: str,
        pretrained: str | None = None,
        grad_checkpointing: bool = False,
        load_weights: bool = True,
        trust_pickle: bool = False,
    ) -> None:
        super().__init__()
        name, config = _architecture(clip)
        model = create_model(name, pretrained, load_weights, trust_pickle)
        text, visual = model.text, model.visual
        image_size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        if image_size[0] != image_size[1]:
            raise UserError(
                f"model.clip: '{clip}' takes {image_size[0]}×{image_size[1]} images; square ones are needed"
            )
        text.__class__ = TokenTextTransformer  # same parameters, another forward
        self.text = cast(TokenTextTransformer, text)
        self.visual = visual
        if grad_checkpointing:
            text.set_grad_checkpointing(True)
            visual.set_grad_checkpointing(True)
        self.width = int(config["embed_dim"])
        self.frame_size = int(image_size[0])
        self.context_length = int(text.context_length)
        self.log_scale = 0.0 if model.logit_scale.is_meta else model.logit_scale.item()
        mean, std = (tuple(visual.preprocess_cfg[key]) for key in ("mean", "std"))
        self._mean, self._std = (tuple(255.0 * value for value in values) for values in (mean, std))
        quick_gelu = computes_quick_gelu(text)
        self.activation = describe_activation(name, pretrained, quick_gelu)
        self.metadata = export_metadata(quick_gelu, mean, std)
        self.architecture = config

    def drop(self) -> None:
        """Let both towers go: what is given from now on is their features. What is known of them stays."""
        self.text = self.visual = None  # type: ignore[assignment]

    @property
    def dropped(self) -> bool:
        """Whether the towers are gone."""
        return self.text is None

    def encode_text(self, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sentence features (A, D), token features (A, W, D) and token mask (A, W) of token ids (A, W)."""
        return cast(tuple[Tensor, Tensor, Tensor], self.text(token_ids))

    def encode_frames(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Frame features (B, F, D) of uint8 frames (B, F, 3, S, S), 0 to 255, with their mask (B, F).

        Padding is zero after normalisation, a picture of the mean colour, whatever its bytes are (zchoi/GLSCL,
        ``tvr/dataloaders/dataloader_retrieval.py``: only real frames are normalised, into an array of zeros). It has a
        feature, which heads that do not hide padding read.
        """
        videos, length = frames.shape[:2]
        pixels = self._normalise(frames.flatten(0, 1))
        pixels.masked_fill_(~frame_mask.flatten().bool()[:, None, None, None], 0.0)
        features = self.visual(pixels)
        features = features[0] if isinstance(features, tuple) else features
        return cast(Tensor, features.unflatten(0, (videos, length)))

    def _normalise(self, pictures: Tensor) -> Tensor:
        """Normalise uint8 (N, 3, S, S) in the tower's type, of which alone there is a copy of all pictures."""
        mean, std = (torch.tensor(v, device=pictures.device).view(3, 1, 1) for v in (self._mean, self._std))
        dtype = next(self.visual.parameters()).dtype
        if dtype == torch.float32:
            return (pictures - mean).div_(std)
        return torch.addcmul(-mean / std, pictures, 1 / std, out=torch.empty_like(pictures, dtype=dtype))


def frame_size_of(clip: str) -> int:
    """Height and width in pixels of an architecture's frames, without building it. Raises `UserError`: unsupported."""
    size = _architecture(clip)[1]["vision_cfg"]["image_size"]
    return int(size[0] if isinstance(size, list | tuple) else size)


def _architecture(clip: str) -> tuple[str, dict[str, Any]]:
    """open_clip's name and configuration of an architecture, refused where its captions cannot be ours."""
    if clip.endswith(".json"):
        if not os.path.isfile(clip):
            raise UserError(f"model.clip: no open_clip configuration file at {clip}")
        open_clip.add_model_config(Path(clip))
        clip = Path(clip).stem
    config = get_model_config(clip.replace("/", "-"))
    if config is None:
        raise UserError(
            f"model.clip: open_clip knows no architecture '{clip}'{did_you_mean(clip, open_clip.list_models())}"
        )
    text = config["text_cfg"]
    reason = None
    if text.get("hf_model_name"):
        reason = "its text tower is not open_clip's TextTransformer"
    elif "multimodal_cfg" in config or text.get("embed_cls"):
        reason = "its text tower has a class token"
    elif text.get("hf_tokenizer_name") or text.get("vocab_size", VOCABULARY) != VOCABULARY:
        reason = "it does not read CLIP's byte-pair tokens"
    elif text.get("pool_type", "argmax") not in ("argmax", "eos"):
        reason = "its sentence feature is not the end token's"
    if reason:
        raise UserError(f"model.clip: '{clip}' is not supported: {reason}; choose a CLIP architecture such as ViT-B-32")
    _check_sizes(clip, config)
    return clip, config


def _is_within(value: object, most: float) -> bool:
    """Whether a number, or every number of a list, is from 0 to ``most``; anything else is no size."""
    numbers = value if isinstance(value, list) else [value]
    return all(0 <= number <= most for number in numbers if isinstance(number, int | float))


def _check_sizes(clip: str, config: dict[str, Any]) -> None:
    """Refuse sizes that no tower has: what they would take is taken before any weights are compared."""
    for section in ("vision_cfg", "text_cfg"):
        for key, value in config[section].items():
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
