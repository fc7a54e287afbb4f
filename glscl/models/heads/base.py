"""Base class of heads: two encoders of query-independent features, and one score of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.registry import Registry
from glscl.options import Options as BaseOptions

if TYPE_CHECKING:  # seconds to import, and options of heads are needed to read a command line
    from open_clip.transformer import TextTransformer

Features = dict[str, Tensor]
"""What a head caches: named tensors that share their leading dimension, one row per text or per video."""


class Draws:
    """Random numbers of a step, equal for a pair whichever rank holds it: a rank draws those of all, and keeps its own.

    Args:
        seed: of the step.
        own: this rank's pairs among those of the global batch.
        pairs: of the global batch.
        device: where they are drawn; a CPU and a GPU draw different ones.
    """

    def __init__(self, seed: int, own: slice, pairs: int, device: torch.device) -> None:
        self._own, self._pairs, self._device = own, pairs, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (pairs of this rank, ...)."""
        return torch.randn(self._pairs, *shape, generator=self._generator, device=self._device)[self._own]

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from 0 to 1 (pairs of this rank, ...)."""
        return torch.rand(self._pairs, *shape, generator=self._generator, device=self._device)[self._own]


Length = Literal["words", "frames"]


@dataclass(frozen=True)
class HeadFacts:
    """What a head is and costs at some number of words and frames.

    Attributes:
        parameters: number of its parameters.
        length_tied: which lengths its parameters are tied to.
        multiply_adds: see `Head.multiply_adds`.
        implemented_multiply_adds: see `Head.implemented_multiply_adds`.
        text_cache: shape of each tensor cached per text.
        video_cache: shape of each tensor cached per video.
    """

    parameters: int
    length_tied: tuple[Length, ...]
    multiply_adds: int
    implemented_multiply_adds: int
    text_cache: dict[str, tuple[int, ...]]
    video_cache: dict[str, tuple[int, ...]]


class Head(nn.Module, ABC):
    """Turns features into a text × video similarity matrix.

    A head computes everything that depends on one text or one video alone in `encode_text` and `encode_video`, once;
    scoring combines those caches. Scoring goes through ``head(text, video)`` so that module hooks run. Similarities
    are float32 whatever the parameters' type, before the logit scale. Masks are 1 (or True) where real.

    Attributes:
        Options: the head's section of the configuration.
        name: the name it is registered under.
        length_tied: the lengths that a parameter's shape depends on, so that the trained head cannot be used at
            others; such heads are `LengthTiedHead`s.
        parts: names of the scores whose mean is the similarity, where there are several. Such a head's ``forward``
            takes a third argument, ``parts``: where true it returns those scores (A, B, P) instead.
        detail: what loss terms may ask for of every pair, beside its similarity, if there is such a thing. Such a
            head's ``forward`` takes an argument ``detail``: where true it returns (A, B, 1 + P), the similarity first.
        uses_scale: whether similarities depend on the logit scale, which ``forward`` then takes as ``scale``.
        provides: what loss terms may ask for: names of caches, present for texts and videos alike ("concepts"),
            "score_parts" of a head that has parts, and `detail`.
        width: D.
    """

    Options: ClassVar[type[BaseOptions]]
    name: ClassVar[str]
    length_tied: ClassVar[tuple[Length, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()
    detail: ClassVar[str | None] = None
    uses_scale: ClassVar[bool] = False
    provides: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, width: int, options: BaseOptions) -> None:
        super().__init__()
        self.width = width

    def check_divides(self, option: str, number: int) -> None:
        """Refuse an option of the head that does not divide the feature width.

        Raises:
            UserError: it does not; names the option.
        """
        if self.width % number:
            raise UserError(
                f"model.heads.{self.name}.{option}: {number} does not divide the feature width {self.width} of the "
                "clip towers"
            )

    def initialise_from(self, text: TextTransformer) -> None:
        """Copy from the text tower what the head's authors start from it; nothing by default.

        Not called where the text tower is none of open_clip's transformers, but a model of Hugging Face.
        """

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

    def match(
        self, text: Features, video: Features, all_text: Features, draws: Draws, wanted: Collection[str]
    ) -> tuple[Features, Features]:
        """What training adds to the caches of pairs that belong together, text i with video i; nothing by default.

        Args:
            text: caches of this rank's texts.
            video: caches of this rank's videos.
            all_text: caches of the texts of the global batch.
            draws: random numbers of this rank's pairs.
            wanted: what the loss terms that are on need.

        Returns:
            More caches of the texts and of the videos.
        """
        return {}, {}

    def multiply_adds(self, words: int, frames: int) -> int:
        """Multiply-adds per pair, everything cached that depends on one text or one video alone.

        That of the head's equations as its authors' code evaluates them, products of matrices and vectors only. A
        head that does not say is counted.
        """
        from torch.utils.flop_counter import FlopCounterMode

        text, video = self._caches_of_zeros(words, frames)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self(text, video)
        return int(counter.get_total_flops()) // 2

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """Multiply-adds per pair of ``forward``, as torch's counter sees them; fewer where the algebra is better."""
        return self.multiply_adds(words, frames)

    def facts(self, words: int, frames: int) -> HeadFacts:
        """What the head is and costs at these lengths."""
        text, video = self._caches_of_zeros(words, frames)
        return HeadFacts(
            parameters=sum(parameter.numel() for parameter in self.parameters()),
            length_tied=self.length_tied,
            multiply_adds=self.multiply_adds(words, frames),
            implemented_multiply_adds=self.implemented_multiply_adds(words, frames),
            text_cache={name: tuple(tensor.shape[1:]) for name, tensor in text.items()},
            video_cache={name: tuple(tensor.shape[1:]) for name, tensor in video.items()},
        )

    @torch.no_grad()
    def _caches_of_zeros(self, words: int, frames: int) -> tuple[Features, Features]:
        """Caches of one text and one video whose features are zero."""
        like = next(self.parameters(), torch.zeros(()))
        text = self.encode_text(
            like.new_zeros(1, self.width), like.new_zeros(1, words, self.width), like.new_ones(1, words)
        )
        return text, self.encode_video(like.new_zeros(1, frames, self.width), like.new_ones(1, frames))


class LengthTiedHead(Head):
    """A head with parameters whose shapes are numbers of words or frames; `length_tied` says of which.

    Attributes:
        words: tokens of every text.
        frames: frames of every video.
    """

    @abstractmethod
    def __init__(self, width: int, options: BaseOptions, lengths: tuple[int, int]) -> None:
        super().__init__(width, options)
        self.words, self.frames = lengths

    def check_length(self, what: Length, given: int) -> None:
        """Refuse another length than the one the parameters have.

        Raises:
            UserError: the lengths differ.
        """
        length = getattr(self, what)
        if given != length:
            raise UserError(
                f"head '{self.name}' has parameters for {length} {what} and cannot take {given}: keep model.max_{what} "
                f"at {length} for this model, or train it with {given}"
            )


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


def build_head(name: str, width: int, options: BaseOptions, lengths: tuple[int, int]) -> Head:
    """Build a head; one that is tied to lengths is given them.

    Args:
        name: name it is registered under.
        width: feature width D.
        options: its section of the configuration.
        lengths: words of every text and frames of every video.

    Raises:
        UserError: no head has that name, or its options do not fit the width.
    """
    cls = head_class(name)
    return cls(width, options, lengths) if issubclass(cls, LengthTiedHead) else cls(width, options)
