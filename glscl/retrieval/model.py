"""A trained model in use: `load` one, encode texts and videos, score them, search."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from glscl.data.clips import stack_clips
from glscl.data.features import FeatureSampling
from glscl.data.video import Clip
from glscl.errors import UserError
from glscl.evaluation.caches import Cache, Caches, LocalPiece, cut, join_batches
from glscl.evaluation.embed import make_scorer, to_cpu
from glscl.evaluation.matches import best_matches
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import ModelCard, load_model, load_tokenizer
from glscl.evaluation.similarity import similarity_rows
from glscl.models.caption_tokenizer import Tokenize
from glscl.retrieval.videos import Samplings, VideoSource, holds_features, name_of, read_videos
from glscl.system import storage

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever

TEXTS_AT_ONCE = 256
VIDEOS_AT_ONCE: int = EvaluationConfig.model_fields["batch_size"].default


@dataclass(frozen=True, slots=True)
class Texts:
    """Encoded texts.

    Attributes:
        texts: as they were given.
        caches: what the head keeps of each, on the CPU.
        truncated: those that did not fit into the model's words and were cut, as an evaluation cuts them.
    """

    texts: tuple[str, ...]
    caches: Caches
    truncated: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Videos:
    """Encoded videos.

    Attributes:
        names: the path of each as it was given, or its number where it has none.
        caches: what the head keeps of each, on the CPU.
        replaced: how many of each one's frames stand for a picture that does not decode.
    """

    names: tuple[str, ...]
    caches: Caches
    replaced: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Match:
    """A video that was found.

    Attributes:
        number: its place among the videos that were searched.
        name: its name there.
        score: its similarity to the text, before the logit scale.
    """

    number: int
    name: str
    score: float


class RetrievalModel:
    """A trained text-video retrieval model; `load` makes one.

    Attributes:
        retriever: the torch module, in evaluation mode, in fp32.
        card: its configuration, and where it comes from.
        device: where it computes.
    """

    def __init__(self, retriever: Retriever, card: ModelCard, tokenize: Tokenize, device: torch.device) -> None:
        self.retriever, self.card, self.device = retriever.to(device), card, device
        self._tokenize = tokenize
        self._samplings: Samplings | None = None

    def __repr__(self) -> str:
        return f"<glscl model: {self.card.model.head} on {self.card.model.clip}, run {self.card.run}, {self.device}>"

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = TEXTS_AT_ONCE) -> Texts:
        """Encode A texts, a list or one, ``batch_size`` at a time.

        What is longer than the model's words is cut, as in an evaluation; `Texts.truncated` says which.

        Raises `UserError`: one is no string.
        """
        given = list(texts) if isinstance(texts, list | tuple) else [cast(str, texts)]
        if wrong := [text for text in given if not isinstance(text, str)]:
            raise UserError(f"texts are strings; {type(wrong[0]).__name__} is none")
        caches: dict[int, Cache] = {}
        truncated: list[bool] = []
        for rows in cut(range(len(given)), _positive(batch_size)):
            ids, cuts = self._tokenize(given[rows.start : rows.stop])
            truncated += cuts.tolist()
            caches[rows.start] = to_cpu(self.retriever("text", ids.to(self.device)))
        return Texts(tuple(given), join_batches(caches, LocalPiece), tuple(truncated))

    @torch.no_grad()
    def encode_video(
        self, videos: VideoSource | Sequence[VideoSource], *, batch_size: int = VIDEOS_AT_ONCE, loader_workers: int = 0
    ) -> Videos:
        """Encode N videos, of any lengths, with the number and rate of frames that the model was evaluated with.

        Args:
            videos: see `VideoSource`; a list of them, or one.
            batch_size: videos encoded at once.
            loader_workers: processes that decode; 0 decodes in this one.

        Raises:
            UserError: a video cannot be read or decoded, an array has another shape or type, or features are not of
                this model's towers. Says which, and why.
            BrokenRunError: a decoding process died.
        """
        sources = list(videos) if isinstance(videos, list | tuple) else [cast(VideoSource, videos)]
        names = tuple(name_of(source, number) for number, source in enumerate(sources))
        clips = read_videos(sources, self._find_samplings(sources), loader_workers)
        caches: dict[int, Cache] = {}
        replaced: list[int] = []
        for first, batch in _batches(clips, _positive(batch_size)):
            replaced += [clip.replaced for clip in batch]
            caches[first] = to_cpu(self._encode(batch))
        return Videos(names, join_batches(caches, LocalPiece), tuple(replaced))

    def score(self, texts: Texts | str | Sequence[str], videos: Videos | VideoSource | Sequence[VideoSource]) -> Tensor:
        """Exact similarities (A, N) of the head, float32 on the CPU, before the logit scale, computed in blocks.

        They are those that `glscl eval` ranks. Raises `UserError`: as `encode_text` and `encode_video`.
        """
        texts = texts if isinstance(texts, Texts) else self.encode_text(texts)
        videos = videos if isinstance(videos, Videos) else self.encode_video(videos)
        scorer = make_scorer(self.retriever.score, texts.caches, videos.caches, EvaluationConfig(), self.device)
        return similarity_rows(scorer, range(len(texts)))

    def search(self, text: str, videos: Videos | VideoSource | Sequence[VideoSource], k: int = 10) -> list[Match]:
        """The ``k`` videos most similar to a text, best first; of equals, the first given. Raises as `score` does."""
        if not isinstance(text, str):
            raise UserError(f"search: the text is a string, not {type(text).__name__}")
        videos = videos if isinstance(videos, Videos) else self.encode_video(videos)
        if not len(videos):
            return []
        found = best_matches(self.score([text], videos), _positive(k, "k"))
        rows = zip(found.indices[0].tolist(), found.scores[0].tolist(), strict=True)
        return [Match(number, videos.names[number], score) for number, score in rows]

    def _encode(self, clips: Sequence[Clip]) -> Cache:
        assert self._samplings is not None
        sampling = self._samplings.features if clips[0].frames.is_floating_point() else self._samplings.frames
        frames, mask = stack_clips(clips, sampling)
        cache: Cache = self.retriever("video", frames.to(self.device), mask.to(self.device))
        return cache

    def _find_samplings(self, sources: Sequence[VideoSource]) -> Samplings:
        """What is taken of videos. Raises `UserError`: features, and adapters that they know nothing of."""
        if self.card.model.adapters.are_on and any(map(holds_features, sources)):
            raise UserError("features are of towers without adapters, and this model has model.adapters: give videos")
        if self._samplings is None:
            towers, frames = self.retriever.towers, self.card.sampling(self.retriever.frame_size)
            assert not isinstance(frames, FeatureSampling)
            padding = towers.encode_padding().cpu()
            features = FeatureSampling(self.card.model.max_frames, 0, towers.width, padding=padding)
            self._samplings = Samplings(frames, features)
        return self._samplings


def load(run_or_export: str | os.PathLike[str], device: str | torch.device = "auto") -> RetrievalModel:
    """Load a trained model.

    Args:
        run_or_export: a run directory, a model's folder, or a folder that `glscl export` wrote; local or s3://.
        device: "cpu", "cuda", "cuda:1" ...; "auto" is the first GPU if there is one.

    Raises:
        UserError: no model there, a file of it is damaged or missing, or no such device.
    """
    chosen = _find_device(device)
    uri = storage.resolve(os.fspath(run_or_export))
    retriever, card = load_model(uri)
    return RetrievalModel(retriever, card, load_tokenizer(uri), chosen)


def _find_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{device}' cannot be used here ({str(error).splitlines()[0][:120]})") from None
    return chosen


def _batches(clips: Iterable[Clip], size: int) -> Iterator[tuple[int, list[Clip]]]:
    """Consecutive clips of one kind, pixels or features, at most so many, with the number of the first."""
    batch: list[Clip] = []
    first = 0
    for clip in clips:
        if batch and (len(batch) == size or batch[0].frames.dtype != clip.frames.dtype):
            yield first, batch
            first, batch = first + len(batch), []
        batch.append(clip)
    if batch:
        yield first, batch


def _positive(number: int, name: str = "batch_size") -> int:
    if number < 1:
        raise UserError(f"{name} is {number}; it must be 1 or more")
    return number
