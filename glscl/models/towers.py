"""The clip towers: any architecture of open_clip, giving sentences, tokens and frames."""

from typing import cast

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.architectures import find_architecture
from glscl.models.pretrained import computes_quick_gelu, create_model, describe_activation, export_metadata
from glscl.models.text_files import find_text_config
from glscl.models.text_towers import TextTower, TokenHFTextEncoder, give_tokens


class Towers(nn.Module):
    """The text and the image tower of one open_clip model.

    Args:
        clip: open_clip architecture, path of an open_clip configuration file (``*.json``), or ``local-dir:`` or
            ``hf-hub:`` address, which bring weights.
        pretrained: tag of pretrained weights, path or s3:// address of a weights file, or None for random weights.
        grad_checkpointing: recompute activations in the backward pass.
        load_weights: false gives random weights in the architecture that ``pretrained`` asks for (a tag also sets the
            activation function and the colour normalisation), and fetches no weights.
        trust_pickle: load weights from files that may run code (pickles of more than tensors, TorchScript).
        tokenizer: folder or repository with the configuration of a Hugging Face text tower (``model.tokenizer``).
        fetch: false fetches nothing whatsoever, whatever the names ask for.

    Attributes:
        width: D, width of the joint space.
        frame_size: height and width of a frame in pixels.
        context_length: most tokens of a caption.
        log_scale: the logit scale before ``exp`` that came with the weights.
        logit_bias: the logit bias that came with the weights; None for towers that have none.
        colours: "mean" and "std" of a picture's colours, from 0 to 1, by which frames are normalised.
        quick_gelu: whether an activation function is OpenAI's.
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
        *,
        tokenizer: str | None = None,
        fetch: bool = True,
    ) -> None:
        super().__init__()
        architecture = find_architecture(clip, fetch=fetch)
        text_config = find_text_config(architecture, pretrained, tokenizer, fetch=fetch)
        model = create_model(architecture, pretrained, load_weights, trust_pickle, text_config)
        self.text: TextTower = give_tokens(model.text, architecture)
        self.visual = model.visual
        if grad_checkpointing:
            self._checkpoint_gradients(clip)
        self.width = architecture.width
        self.frame_size = architecture.frame_size
        self.context_length = _context_length(self.text, architecture.text.context_length)
        self.log_scale = 0.0 if model.logit_scale.is_meta else model.logit_scale.item()
        bias = model.logit_bias
        self.logit_bias: float | None = bias if bias is None else 0.0 if bias.is_meta else bias.item()
        self.colours = {key: tuple(self.visual.preprocess_cfg[key]) for key in ("mean", "std")}
        mean, std = self.colours["mean"], self.colours["std"]
        self._mean, self._std = (tuple(255.0 * value for value in values) for values in (mean, std))
        self.quick_gelu = computes_quick_gelu(model)
        self.activation = describe_activation(architecture.name, pretrained, self.quick_gelu)
        self.metadata = export_metadata(self.quick_gelu, mean, std)
        self.architecture = architecture.config

    def drop(self) -> None:
        """Let both towers go: what is given from now on is their features. What is known of them stays."""
        self.text = self.visual = None  # type: ignore[assignment]

    @property
    def dropped(self) -> bool:
        """Whether the towers are gone."""
        return self.text is None

    def _checkpoint_gradients(self, clip: str) -> None:
        """Recompute activations in the backward pass. Raises `UserError`: the image tower cannot."""
        if isinstance(self.visual, ModifiedResNet):  # it would take the order and do nothing
            raise UserError(
                f"model.grad_checkpointing: the image tower of {clip} cannot recompute its activations; leave it off"
            )
        # open_clip's adapter of timm's models would go on without where the model cannot.
        image = self.visual.trunk if isinstance(self.visual, TimmModel) else self.visual
        image.set_grad_checkpointing(True)
        self.text.set_grad_checkpointing(True)

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

    @torch.no_grad()
    def encode_padding(self) -> Tensor:
        """The feature (D,) of a frame that is padding."""
        device = next(self.visual.parameters()).device
        frames = torch.zeros(1, 1, 3, self.frame_size, self.frame_size, dtype=torch.uint8, device=device)
        return self.encode_frames(frames, frames.new_zeros(1, 1, dtype=torch.bool))[0, 0]

    def _normalise(self, pictures: Tensor) -> Tensor:
        """Normalise uint8 (N, 3, S, S) in the tower's type, of which alone there is a copy of all pictures."""
        mean, std = (torch.tensor(v, device=pictures.device).view(3, 1, 1) for v in (self._mean, self._std))
        dtype = next(self.visual.parameters()).dtype
        if dtype == torch.float32:
            return (pictures - mean).div_(std)
        return torch.addcmul(-mean / std, pictures, 1 / std, out=torch.empty_like(pictures, dtype=dtype))


def frame_size_of(clip: str) -> int:
    """Height and width in pixels of an architecture's frames, without building it. Raises `UserError`: unsupported."""
    return find_architecture(clip).frame_size


def _context_length(text: TextTower, described: int) -> int:
    """Most tokens of a caption: as described, which is where open_clip's tokenizers cut, and as many as have places."""
    if not isinstance(text, TokenHFTextEncoder):
        return int(text.context_length)
    config = text.config
    places = int(getattr(config, "max_position_embeddings", 0))  # 0: relative positions
    if config.model_type in ("roberta", "xlm-roberta"):
        places -= int(config.pad_token_id) + 1  # which are those of padding, and before it
    return min(described, places) if places > 0 else described
