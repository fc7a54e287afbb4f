"""Configuration of the data: which shard sets are read, in what order, and how they are decoded."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from glscl.data.augment import check_augmentation
from glscl.options import Options
from glscl.system.nodes import Auto


class DataConfig(Options):
    """Which shard sets are read and how."""

    train: tuple[str, ...] = ()
    """Shard sets to train on, local folders or s3:// prefixes; several are mixed in every global batch."""
    weights: tuple[float, ...] = ()
    """Share of every global batch per training domain; empty means in proportion to their pairs."""
    validation: tuple[str, ...] = ()
    """Held-out sets of the training domains, on which the best checkpoint is chosen; never a test split."""
    test: tuple[str, ...] = ()
    """Shard sets to score after training; those of other domains than the training ones are the cross-domain tests."""
    captions: Literal["all", "one"] = "all"
    """`all`: every caption is a pair of the epoch (the papers' way); `one`: one caption drawn per video and epoch."""
    max_videos: int | None = Field(default=None, ge=1)
    """Videos taken of each training set, by their ids alone, so that fewer are a part of more; none takes all."""
    max_pairs: int | None = Field(default=None, ge=1)
    """The same in pairs of a video and a caption; one of the two."""
    virtual_streams: int = Field(default=32, ge=1)
    """Streams that together fill a global batch: a multiple of workers x loader workers, a divisor of the batch."""
    loader_workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Decoding processes per training worker; 0 decodes in the training process. auto: as many as a worker's CPUs and
    the stream allow."""
    prefetch: int = Field(default=2, ge=1)
    """Batches decoded ahead by each loader worker."""
    cache_mb: int = Field(default=0, ge=0)
    """Megabytes of decoded clips that each reading process keeps, so that a small set's videos are decoded once; not
    with data.augment, and not of features."""
    sample_fps: float = Field(default=1.0, gt=0)
    """Frames a second taken from a video, up to model.max_frames."""
    augment: str | None = None
    """RandAugment of the training clips, as timm writes it (rand-m7-n4-mstd0.5-inc1 is the GLSCL authors', on MSR-VTT,
    MSVD and LSMDC): all frames of a clip alike, before they are resized; none leaves them as they are."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """Which library decodes; both give the same frames."""
    max_decode_s: float = Field(default=60.0, gt=0)
    """CPU seconds that decoding one video may take before it counts as undecodable."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of a training set's videos that may be undecodable before the run stops."""
    stall_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds that a worker may wait for a batch, or a video may take, before the worker group is restarted."""
    cache_dir: str | None = None
    """Folder for the one copy per virtual stream of a remote shard; None is the system's temporary folder."""

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, text: str | None) -> str | None:
        return text if text is None else check_augmentation(text)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_videos is not None and self.max_pairs is not None:
            raise ValueError("max_videos and max_pairs: give one of them")
        return self

    @property
    def loaders(self) -> int:
        """Decoding processes of each worker; 2 for an `auto` that `glscl.training.driver.machines` has not replaced."""
        return 2 if self.loader_workers == "auto" else self.loader_workers
