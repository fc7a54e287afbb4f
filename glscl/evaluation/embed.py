"""What each process does for its row shard: embed texts and videos once, and rank from these embeddings."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from PIL import Image
from torch import Tensor

from glscl.data.gallery import Gallery, GalleryBatch
from glscl.errors import UserError
from glscl.evaluation.metrics import Direction, measure_ranks
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.results import Metrics
from glscl.evaluation.scoring import Cache, ScoreFunction, ScoringResult, evaluate_scores, similarity_rows, split_rows
from glscl.models.heads.base import Features

THUMBNAIL_SIDE = 112


@dataclass(slots=True)
class Embeddings:
    """What a head caches of N consecutive videos of a set and of all their A captions, on the CPU."""

    text: Features
    video: Features
    text_to_video: Tensor  # (A,) int64, row of each caption's video
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
) -> Embeddings:
    """Embed a range of videos with their captions; without rows or caches if the range holds no usable video.

    The model, which is on ``device``, is called as ``model("text", *text)`` and ``model("video", frames, frame_mask)``;
    ``note`` with the number of videos that are done since the last call. Features have no thumbnails.
    """
    pieces = []
    quarantined = []
    for batch in gallery.batches(loader_workers):
        note(len(batch.samples) + len(batch.quarantined))
        quarantined += batch.quarantined
        if not batch.samples:
            continue
        pieces.append(
            Embeddings(
                text=_to_cpu(model("text", *(tensor.to(device) for tensor in batch.text))),
                video=_to_cpu(model("video", batch.frames.to(device), batch.frame_mask.to(device))),
                text_to_video=_released(batch.text_to_video),
                positions=batch.positions,
                video_ids=[sample.video_id for sample in batch.samples],
                captions=[caption for sample in batch.samples for caption in sample.captions],
                attributes=[sample.attributes for sample in batch.samples],
                truncated=batch.truncated,
                quarantined=[],
                repaired=batch.repaired,
                thumbnails=_strips(batch) if thumbnails else [],
            )
        )
    if not pieces:
        return Embeddings({}, {}, torch.zeros(0, dtype=torch.int64), [], [], [], [], 0, quarantined)
    return replace(concatenate(pieces), quarantined=quarantined)


def concatenate(pieces: Sequence[Embeddings]) -> Embeddings:
    """Join pieces of one set, whoever computed them, in manifest order. Raises `UserError`: none holds a video."""
    present = sorted((piece for piece in pieces if piece.positions), key=lambda piece: piece.positions[0])
    quarantined = list(chain.from_iterable(piece.quarantined for piece in pieces))
    if not present:
        reasons = "; ".join(f"{e['domain']}/{e['video_id']} ({e['reason']})" for e in quarantined[:3])
        raise UserError(f"no video of the set can be decoded: {reasons}")
    offsets = torch.tensor([0] + [len(piece.positions) for piece in present[:-1]]).cumsum(0)
    per_row = ("positions", "video_ids", "captions", "attributes", "repaired", "thumbnails")
    lists = {name: list(chain.from_iterable(getattr(piece, name) for piece in present)) for name in per_row}
    return Embeddings(
        **lists,
        text=_join([piece.text for piece in present]),
        video=_join([piece.video for piece in present]),
        text_to_video=torch.cat([piece.text_to_video + at for piece, at in zip(present, offsets, strict=True)]),
        truncated=sum(piece.truncated for piece in present),
        quarantined=sorted(quarantined, key=lambda entry: (entry["shard"], entry["key"])),
    )


def _join(caches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([cache[key] for cache in caches]) for key in caches[0]}


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


def _to_cpu(features: Features) -> Features:
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


def score_rows(
    score: ScoreFunction, embeddings: Embeddings, config: EvaluationConfig, shard: RowShard, device: torch.device
) -> ScoringResult:
    """Rank this shard's texts among all videos and this shard's videos among all texts."""
    return evaluate_scores(
        _on_device(score, device),
        embeddings.text,
        embeddings.video,
        embeddings.text_to_video,
        text_block=config.text_block,
        video_block=config.video_block,
        text_rows=shard.rows(len(embeddings.captions)),
        video_rows=shard.rows(len(embeddings.video_ids)),
    )


def similarity_of_rows(
    score: ScoreFunction,
    texts: Embeddings,
    videos: Embeddings,
    config: EvaluationConfig,
    shard: RowShard,
    device: torch.device,
) -> Tensor:
    """Similarities (a, N) of this shard's texts of one set with all N videos of the same or another set."""
    return similarity_rows(
        _on_device(score, device),
        texts.text,
        videos.video,
        shard.rows(len(texts.captions)),
        text_block=config.text_block,
        video_block=config.video_block,
    )


def _on_device(score: ScoreFunction, device: torch.device) -> ScoreFunction:
    """``score`` of caches that lie on the CPU."""

    def moved(cache: Cache) -> Cache:
        return {key: value.to(device, non_blocking=True) for key, value in cache.items()}

    return lambda text, video: score(moved(text), moved(video))


def measure(result: ScoringResult) -> dict[Direction, Metrics]:
    """Both directions' metrics of a merged result."""
    return {
        "text_to_video": measure_ranks(result.text_to_video),
        "video_to_text": measure_ranks(result.video_to_text),
    }
