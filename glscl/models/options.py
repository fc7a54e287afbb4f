"""Configuration of the model, without the model itself, whose towers take seconds to import."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, create_model, field_validator

from glscl.models.adapters import AdapterConfig
from glscl.models.heads.base import head_class, head_names
from glscl.options import MAX_LAYERS, MAX_SIZE, Options
from glscl.system import storage

HUB, LOCAL_DIR = "hf-hub:", "local-dir:"  # how open_clip spells a repository on Hugging Face, and a folder like one
MAX_SCALE = 100.0
MAX_BIAS = 1000.0
MAX_FRAMES = 1024  # most frames of a video: a batch of them is allocated whole, before any video is opened

if TYPE_CHECKING:

    class HeadsConfig(Options):
        """Options of every head, one field per head; only the chosen head's are used."""
else:
    _heads = {name: head_class(name) for name in head_names()}
    HeadsConfig = create_model(
        "HeadsConfig",
        __base__=Options,
        __doc__="Options of every head, one field per head; only the chosen head's are used.",
        **{name: (cls.Options, Field(cls.Options(), description=cls.Options.__doc__)) for name, cls in _heads.items()},
    )


class ModelConfig(Options):
    """What the model is made of."""

    clip: str = "ViT-B-32"
    """open_clip architecture of the clip towers (`glscl towers` lists them; "glscl-tiny" runs on a CPU), the path of
    its JSON configuration, or hf-hub:ORG/MODEL or local-dir:FOLDER with its weights."""
    pretrained: str | None = None
    """Weights of the clip towers: an open_clip tag, a file (local or s3://), or none for random weights (those of
    hf-hub: and local-dir:)."""
    tokenizer: str | None = None
    """Folder, or hf-hub:ORG/MODEL, with the tokenizer of towers that do not read CLIP's tokens, and the config.json of
    a Hugging Face text tower; none is Hugging Face's cache on this machine."""
    trust_pickle: bool = False
    """Load `pretrained` even from a file that may run code (a pickle of more than tensors, TorchScript)."""
    frame_context: Literal["none", "transformer"] = "none"
    """Transformer over the frames before the head (CLIP4Clip's seqTransf), or none."""
    context_layers: int = Field(4, ge=1, le=MAX_LAYERS)
    """Layers of the frame context."""
    head: str = "glscl"
    """Name of the head."""
    heads: HeadsConfig = Field(default_factory=HeadsConfig)
    """Options of the heads."""
    max_words: int = Field(32, ge=3, le=MAX_SIZE)
    """Tokens of a caption, start and end included; longer captions are cut."""
    max_frames: int = Field(12, ge=1, le=MAX_FRAMES)
    """Frames of a video."""
    position_std: float | None = Field(None, gt=0)
    """Standard deviation of the position tables that training starts from: the frames' (also those of a head that has
    some of its own) and, without pretrained weights, the picture's; none leaves open_clip's small one. Small towers see
    motion much sooner with a large one (0.4)."""
    logit_scale: float | None = Field(None, gt=0, le=MAX_SCALE)
    """Factor of the similarities in the losses that training starts from, and learns; none is that of the towers."""
    logit_bias: float | None = Field(None, ge=-MAX_BIAS, le=MAX_BIAS)
    """Bias of the similarities in the sigmoid loss that training starts from, and learns (SigLIP: -10); none is that of
    the towers, if they have one."""
    freeze: Literal["none", "towers", "image", "text"] = "none"
    """The towers that are not trained: none of them, both (towers), image or text. A frozen one runs without gradients
    and in evaluation mode, takes no optimiser state, and is left out of checkpoints and of the saved model."""
    unfreeze_blocks: int | None = Field(None, ge=1, le=MAX_LAYERS)
    """The last blocks of each frozen tower that are trained all the same, with what follows them; none trains none."""
    adapters: AdapterConfig = AdapterConfig()
    grad_checkpointing: bool = False
    """Recompute the towers' activations in the backward pass: less memory, about a third more time."""

    @field_validator("head")
    @classmethod
    def _known_head(cls, name: str) -> str:
        head_class(name)
        return name

    @property
    def trained_key(self) -> str:
        """The key by which something of the towers is trained, adapters included; empty if both stay as they begin."""
        if self.unfreeze_blocks is not None:
            return "unfreeze_blocks"
        if self.adapters.are_on:
            return "adapters"
        return "" if self.freeze == "towers" else "freeze"

    @property
    def weights(self) -> str | None:
        """What names the weights that the towers start from; None for random ones."""
        return self.pretrained or (self.clip if self.clip.startswith((HUB, LOCAL_DIR)) else None)

    def resolved(self) -> Self:
        """The same model with absolute paths: other processes run in other directories."""
        clip, pretrained, tokenizer = self.clip, self.pretrained, self.tokenizer
        if clip.startswith(LOCAL_DIR):
            clip = LOCAL_DIR + storage.resolve(clip.removeprefix(LOCAL_DIR))
        elif clip.endswith(".json") and not clip.startswith(HUB):
            clip = storage.resolve(clip)
        if pretrained and not storage.is_remote(pretrained) and Path(pretrained).expanduser().exists():
            pretrained = storage.resolve(pretrained)
        if tokenizer and not tokenizer.startswith(HUB):
            tokenizer = storage.resolve(tokenizer)
        return self.model_copy(update={"clip": clip, "pretrained": pretrained, "tokenizer": tokenizer})
