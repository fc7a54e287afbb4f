"""What every head is: two encoders of query-independent features and one score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from glscl.models.registry import Registry
from glscl.options import Options as BaseOptions

Features = dict[str, Tensor]
"""What a head caches: named tensors that share their leading dimension, one row per text or per video."""


class Head(nn.Module, ABC):
    """Turns features into a text × video similarity matrix.

    A head computes everything that depends on one text or one video alone in `encode_text` and `encode_video`, once;
    scoring combines those caches. Scoring goes through ``head(text, video)`` so that module hooks run. Similarities
    are float32 whatever the parameters' type, before the logit scale. Masks are 1 (or True) where real.

    Attributes:
        Options: the head's section of the configuration.
        name: the name it is registered under.
        length_tied: True where a parameter's shape depends on the number of tokens or frames, so that the trained
            head cannot be used at other lengths.
        provides: names of caches, present for texts and videos alike, that loss terms may ask for ("concepts").
    """

    Options: ClassVar[type[BaseOptions]]
    name: ClassVar[str]
    length_tied: ClassVar[bool] = False
    provides: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, width: int, options: BaseOptions) -> None:
        super().__init__()

    @abstractmethod
    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Compute what is cached per text.

        Args:
            sentence: sentence features (A, D), not normalised.
            tokens: token features (A, W, D), not normalised.
            token_mask: (A, W).

        Returns:
            Tensors of leading dimension A.
        """

    @abstractmethod
    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Compute what is cached per video.

        Args:
            frames: frame features (B, F, D), not normalised.
            frame_mask: (B, F). A video without any real frame must score finite numbers.

        Returns:
            Tensors of leading dimension B.
        """

    @abstractmethod
    def forward(self, text: Features, video: Features) -> Tensor:
        """Score A cached texts against B cached videos: similarities (A, B), float32."""


HeadType = TypeVar("HeadType", bound=type[Head])
_registry: Registry[type[Head]] = Registry("head", "glscl.models.heads", "glscl.heads")


def register_head(name: str) -> Callable[[HeadType], HeadType]:
    """Class decorator: make a head known under a name, which is its field in the configuration."""

    def register(cls: HeadType) -> HeadType:
        cls.name = name
        _registry.add(name, cls)
        return cls

    return register


def head_names() -> tuple[str, ...]:
    """Names of all heads, those of installed plug-ins (entry-point group ``glscl.heads``) included."""
    return tuple(_registry.entries())


def head_class(name: str) -> type[Head]:
    """The head of that name.

    Raises:
        UserError: no head has that name.
    """
    return _registry.get(name)
