"""Embedding a shard set: what the head caches of every text and video, computed once."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from glscl.data.gallery import Gallery
from glscl.errors import UserError
from glscl.models.heads.base import Features

THUMBNAIL_SIDE = 112


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
    attributes: list[dict[str, Any]]
    truncated: int
    quarantined: list[dict[str, str]]
    repaired: list[dict[str, str]] = field(default_factory=list)
    thumbnails: list[list[bytes]] = field(default_factory=list)


@torch.no_grad()
def embed(
    model: Callable[..., Any],
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
        note: is told of so many more videos that are done.
    """
    parts = []
    quarantined = []
    for batch in gallery.batches(loader_workers):
        note(len(batch.samples) + len(batch.quarantined))
        quarantined += batch.quarantined
        if not batch.samples:
            continue
        parts.append(
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
    if not parts:
        return Embeddings({}, {}, torch.zeros(0, dtype=torch.int64), [], [], [], [], 0, quarantined)
    return replace(concatenate(parts), quarantined=quarantined)


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Join parts of one set in manifest order, whoever computed them; also the order of the quarantine.

    Raises:
        UserError: no part holds a video.
    """
    present = sorted((part for part in parts if part.positions), key=lambda part: part.positions[0])
    quarantined = [entry for part in parts for entry in part.quarantined]
    if not present:
        reasons = "; ".join(f"{e['domain']}/{e['video_id']} ({e['reason']})" for e in quarantined[:3])
        raise UserError(f"no video of the set can be decoded: {reasons}")
    offsets = torch.tensor([0] + [len(part.positions) for part in present]).cumsum(0)
    return Embeddings(
        text={key: torch.cat([part.text[key] for part in present]) for key in present[0].text},
        video={key: torch.cat([part.video[key] for part in present]) for key in present[0].video},
        text_to_video=torch.cat([p.text_to_video + o for p, o in zip(present, offsets[:-1], strict=True)]),
        positions=[position for part in present for position in part.positions],
        video_ids=[name for part in present for name in part.video_ids],
        captions=[caption for part in present for caption in part.captions],
        attributes=[attributes for part in present for attributes in part.attributes],
        truncated=sum(part.truncated for part in present),
        quarantined=sorted(quarantined, key=lambda entry: (entry["shard"], entry["key"])),
        repaired=[entry for part in present for entry in part.repaired],
        thumbnails=[strip for part in present for strip in part.thumbnails],
    )


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
