"""What each process does for its row shard: embed texts and videos once, and rank from these embeddings."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from PIL import Image
from torch import Tensor

from glscl.data.gallery import Gallery, GalleryBatch
from glscl.errors import UserError
from glscl.evaluation.caches import Cache, Caches, LocalPiece, PairCaches, Piece, join_batches
from glscl.evaluation.metrics import Direction, measure_ranks
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.results import Metrics
from glscl.evaluation.scoring import (
    NO_PAIRS,
    RankedTexts,
    RelevantPairs,
    ScoringResult,
    own_scores,
    rank_texts,
    split_rows,
    split_texts,
)
from glscl.evaluation.similarity import ScoreFunction, Scorer, similarity_rows
from glscl.models.heads.base import Features

THUMBNAIL_SIDE = 112


@dataclass(slots=True)
class Embeddings:
    """N consecutive videos of a set and all their A captions: what a head caches of them, and what they are."""

    caches: PairCaches
    positions: list[int]  # index of each video in the shard set
    video_ids: list[str]
    captions: list[str]
    attributes: list[dict[str, object]]  # ground truth of synthetic videos, one mapping per video
    truncated: int  # captions cut to ``max_words`` tokens
    quarantined: list[dict[str, str]]  # videos that could not be decoded and are left out
    repaired: list[dict[str, str]] = field(default_factory=list)  # some frames stand for pictures that do not decode
    thumbnails: list[list[bytes]] = field(default_factory=list)  # JPEGs, if asked for: first, middle and last frame


@torch.no_grad()
def embed(
    model: Callable[..., Features],
    gallery: Gallery,
    loader_workers: int,
    device: torch.device,
    thumbnails: bool = False,
    note: Callable[[int], None] = lambda count: None,
    keep: Callable[[Cache], Piece] = LocalPiece,
    texts_too: bool = True,
) -> Embeddings:
    """Embed a range of videos with their captions; without rows or caches if the range holds no usable video.

    Without ``texts_too`` nothing is cached of the captions: see `with_texts_of`.

    The model, which is on ``device``, is called as ``model("text", *text)`` and ``model("video", frames, frame_mask)``;
    ``note`` with the number of videos that are done since the last call; ``keep`` with caches on the CPU, to say where
    they are to lie. Features have no thumbnails.
    """
    described: list[Embeddings] = []
    texts: dict[int, Cache] = {}
    videos: dict[int, Cache] = {}
    quarantined = []
    for batch in gallery.batches(loader_workers):
        note(len(batch.samples) + len(batch.quarantined))
        quarantined += batch.quarantined
        if not batch.samples:
            continue
        first = batch.positions[0]
        if texts_too:
            texts[first] = to_cpu(model("text", *(tensor.to(device) for tensor in batch.text)))
        videos[first] = to_cpu(model("video", batch.frames.to(device), batch.frame_mask.to(device)))
        described.append(_describe(batch, thumbnails))
    if not described:
        return Embeddings(PairCaches(), [], [], [], [], 0, quarantined)
    whole = concatenate(described)
    caches = replace(whole.caches, text=join_batches(texts, keep), video=join_batches(videos, keep))
    return replace(whole, caches=caches, quarantined=quarantined)


def _describe(batch: GalleryBatch, thumbnails: bool) -> Embeddings:
    """A batch without its caches."""
    return Embeddings(
        caches=PairCaches(captions=tuple(len(sample.captions) for sample in batch.samples)),
        positions=batch.positions,
        video_ids=[sample.video_id for sample in batch.samples],
        captions=[caption for sample in batch.samples for caption in sample.captions],
        attributes=[sample.attributes for sample in batch.samples],
        truncated=batch.truncated,
        quarantined=[],
        repaired=batch.repaired,
        thumbnails=_strips(batch) if thumbnails else [],
    )


def concatenate(pieces: Sequence[Embeddings]) -> Embeddings:
    """Join pieces of one set, whoever computed them, in manifest order. Raises `UserError`: none holds a video."""
    present = sorted((piece for piece in pieces if piece.positions), key=lambda piece: piece.positions[0])
    quarantined = list(chain.from_iterable(piece.quarantined for piece in pieces))
    check_usable(len(present), quarantined)
    per_row = ("positions", "video_ids", "captions", "attributes", "repaired", "thumbnails")
    lists = {name: list(chain.from_iterable(getattr(piece, name) for piece in present)) for name in per_row}
    return Embeddings(
        **lists,
        caches=PairCaches.join([piece.caches for piece in present]),
        truncated=sum(piece.truncated for piece in present),
        quarantined=sorted(quarantined, key=lambda entry: (entry["shard"], entry["key"])),
    )


def with_texts_of(videos: Embeddings, whole: Embeddings) -> Embeddings:
    """A set's videos with changed frames, and its texts as they were embedded before.

    Raises `UserError`: other videos could be decoded than before.
    """
    if videos.positions != whole.positions:
        raise UserError(
            f"{len(videos.positions)} videos of a test set could be decoded, and {len(whole.positions)} a moment ago; "
            f"its storage is unreliable, or decoding comes near its limit of CPU seconds"
        )
    return replace(videos, caches=replace(videos.caches, text=whole.caches.text))


def check_usable(videos: int, quarantined: Sequence[dict[str, str]]) -> None:
    """Raise a `UserError` if there are no videos, but those that cannot be used."""
    if not videos:
        reasons = "; ".join(f"{e['domain']}/{e['video_id']} ({e['reason']})" for e in quarantined[:3])
        raise UserError(f"no video of the set can be decoded: {reasons}")


def _strips(batch: GalleryBatch) -> list[list[bytes]]:
    if batch.frames.dtype != torch.uint8:
        return [[] for _ in batch.samples]
    return list(map(strip, batch.frames, batch.frame_mask))


def strip(frames: Tensor, mask: Tensor) -> list[bytes]:
    """First, middle and last real frame of one video's (F, 3, S, S), mask (F,), as JPEG."""
    real = frames[mask]
    pictures = []
    for index in sorted({0, len(real) // 2, len(real) - 1}):
        picture = Image.fromarray(real[index].permute(1, 2, 0).cpu().numpy())
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        pictures.append(buffer.getvalue())
    return pictures


def to_cpu(features: Features) -> Features:
    """Caches in memory of this process, on the CPU."""
    return {key: _released(value.cpu()) for key, value in features.items()}


def _released(tensor: Tensor) -> Tensor:
    """The same in memory of this process: what comes from a loader process is an open file each (masks are cached)."""
    return tensor.clone() if tensor.is_shared() else tensor


@dataclass(frozen=True, slots=True)
class RowShard:
    """The rows that one of several processes works on: range ``index`` of ``count``."""

    index: int
    count: int

    def rows(self, total: int) -> range:
        """Its rows of ``total``."""
        return split_rows(total, self.index, self.count)

    def texts(self, caches: PairCaches) -> range:
        """Its texts of a set: all captions of some videos."""
        return split_texts(caches.text_to_video, self.index, self.count)


def make_scorer(
    score: ScoreFunction, text: Caches, video: Caches, config: EvaluationConfig, device: torch.device
) -> Scorer:
    """Score texts of one set against videos of the same or another, as the options say."""
    return Scorer(score, text, video, device, config.text_block, config.video_block, config.memory_mb << 20)


def own_scores_of_rows(
    score: ScoreFunction, caches: PairCaches, config: EvaluationConfig, shard: RowShard, device: torch.device
) -> Tensor:
    """What `rank_rows` must know of all shards (their maximum): see `own_scores`."""
    scorer = make_scorer(score, caches.text, caches.video, config, device)
    return own_scores(scorer, shard.texts(caches), caches.text_to_video)


def rank_rows(
    score: ScoreFunction,
    caches: PairCaches,
    config: EvaluationConfig,
    shard: RowShard,
    device: torch.device,
    own: Tensor,
    relevant: RelevantPairs = NO_PAIRS,
) -> RankedTexts:
    """Rank this shard's texts among all videos, and count what they are to the ranks of the videos."""
    scorer = make_scorer(score, caches.text, caches.video, config, device)
    return rank_texts(scorer, shard.texts(caches), caches.text_to_video, own, relevant=relevant)


def similarity_of_rows(
    score: ScoreFunction,
    texts: PairCaches,
    videos: PairCaches,
    config: EvaluationConfig,
    shard: RowShard,
    device: torch.device,
) -> Tensor:
    """Similarities (a, N) of this shard's texts of one set with all N videos of the same or another set."""
    return similarity_rows(make_scorer(score, texts.text, videos.video, config, device), shard.rows(len(texts.text)))


def measure(result: ScoringResult) -> dict[Direction, Metrics]:
    """Both directions' metrics of a merged result."""
    return {
        "text_to_video": measure_ranks(result.text_to_video),
        "video_to_text": measure_ranks(result.video_to_text),
    }
