"""Embedding a shard set: computes once what the head caches of every text and video."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from glscl.data.gallery import Gallery
from glscl.errors import UserError
from glscl.models.heads.base import Features

THUMBNAIL_SIDE = 112

Item = TypeVar("Item")


@dataclass(slots=True)
class Embeddings:
    """Caches of consecutive videos of a set and of all their captions, on the CPU.

    Attributes:
        text: the head's caches, leading dimension A.
        video: the head's caches, leading dimension N.
        text_to_video: (A,) int64, row of each caption's video.
        positions: index of each video in the shard set.
        video_ids: names of the videos.
        captions: the texts.
        attributes: ground truth of synthetic videos, one mapping per video.
        truncated: captions cut to ``max_words`` tokens.
        quarantined: videos that could not be decoded and are left out.
        repaired: videos some of whose frames stand for pictures that do not decode.
        thumbnails: first, middle and last frame of each video as JPEG, if they were asked for.
    """

    text: Features
    video: Features
    text_to_video: Tensor
    positions: list[int]
    video_ids: list[str]
    captions: list[str]
    attributes: list[dict[str, object]]
    truncated: int
    quarantined: list[dict[str, str]]
    repaired: list[dict[str, str]] = field(default_factory=list)
    thumbnails: list[list[bytes]] = field(default_factory=list)


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

    Args:
        model: called as ``model("text", token_ids)`` and ``model("video", frames, frame_mask)``.
        gallery: which videos.
        loader_workers: decoding processes.
        device: where the model is.
        thumbnails: also keep small pictures of every video.
        note: called with the number of videos that are done since the last call.
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
                text=_to_cpu(model("text", batch.token_ids.to(device))),
                video=_to_cpu(model("video", batch.frames.to(device), batch.frame_mask.to(device))),
                text_to_video=_released(batch.text_to_video),
                positions=batch.positions,
                video_ids=[sample.video_id for sample in batch.samples],
                captions=[caption for sample in batch.samples for caption in sample.captions],
                attributes=[sample.attributes for sample in batch.samples],
                truncated=batch.truncated,
                quarantined=[],
                repaired=batch.repaired,
                thumbnails=[strip(*video) for video in zip(batch.frames, batch.frame_mask, strict=True)]
                if thumbnails
                else [],
            )
        )
    if not pieces:
        return Embeddings({}, {}, torch.zeros(0, dtype=torch.int64), [], [], [], [], 0, quarantined)
    return replace(concatenate(pieces), quarantined=quarantined)


def concatenate(pieces: Sequence[Embeddings]) -> Embeddings:
    """Join pieces of one set in manifest order, whoever computed them; also the order of the quarantine.

    Raises:
        UserError: no piece holds a video.
    """
    present = sorted((piece for piece in pieces if piece.positions), key=lambda piece: piece.positions[0])
    quarantined = [entry for piece in pieces for entry in piece.quarantined]
    if not present:
        reasons = "; ".join(f"{e['domain']}/{e['video_id']} ({e['reason']})" for e in quarantined[:3])
        raise UserError(f"no video of the set can be decoded: {reasons}")
    offsets = torch.tensor([0] + [len(piece.positions) for piece in present]).cumsum(0)
    rows = zip(present, offsets[:-1], strict=True)
    return Embeddings(
        text=_join([piece.text for piece in present]),
        video=_join([piece.video for piece in present]),
        text_to_video=torch.cat([piece.text_to_video + offset for piece, offset in rows]),
        positions=_chain(present, lambda piece: piece.positions),
        video_ids=_chain(present, lambda piece: piece.video_ids),
        captions=_chain(present, lambda piece: piece.captions),
        attributes=_chain(present, lambda piece: piece.attributes),
        truncated=sum(piece.truncated for piece in present),
        quarantined=sorted(quarantined, key=lambda entry: (entry["shard"], entry["key"])),
        repaired=_chain(present, lambda piece: piece.repaired),
        thumbnails=_chain(present, lambda piece: piece.thumbnails),
    )


def _join(caches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([cache[key] for cache in caches]) for key in caches[0]}


def _chain(pieces: Sequence[Embeddings], values: Callable[[Embeddings], list[Item]]) -> list[Item]:
    return [value for piece in pieces for value in values(piece)]


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
