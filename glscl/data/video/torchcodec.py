"""Decode frames with torchcodec, of videos that are displayed as they are stored."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from glscl.data.video.budget import Budget
from glscl.data.video.display import Display, Form, crop_centre
from glscl.data.video.index import Index
from glscl.errors import UserError

if TYPE_CHECKING:
    import av
    from torchcodec import Frame

_FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12"}


def decode_plain(
    data: bytes, index: Index, slots: Sequence[int], size: int, first: tuple[av.VideoFrame, Display], budget: Budget
) -> dict[int, Tensor] | None:
    """Decode the slots one by one, so that the budget can be checked between two calls.

    Args:
        data: bytes of the file.
        index: of its packets.
        slots: the wanted pictures.
        size: side of the squares.
        first: a picture as PyAV decodes it; the others are displayed as it is.
        budget: what the video may cost.

    Returns:
        Pictures (3, S, S); None if torchcodec would show something else than `decode`, which has to do it then.

    Raises:
        UserError: torchcodec cannot be loaded.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError) as error:  # RuntimeError: installed, but FFmpeg's libraries are not
        raise UserError(f"data.decoder is torchcodec, which cannot be loaded ({error}); set it to pyav") from None
    frame, display = first
    form = display.form(frame)
    whole = index.seekable and index.packets and sorted(index.packets) == list(range(len(index.packets)))
    if not whole or not form.plain or frame.interlaced_frame or frame.format.name not in _FORMATS:
        return None
    pictures: dict[int, Tensor] = {}
    try:
        decoder = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NCHW")
        for slot in sorted(set(slots)):
            budget.check()
            picture = decoder.get_frame_at(slot)
            budget.picture(form.width, form.height, slot - _group_start(index, slot) + 1)
            if not _is_wanted(picture, index, slot, form):
                return None
            pictures[slot] = crop_centre(display.resized(picture.data, size, form), size)
    except (RuntimeError, IndexError, ValueError):  # a packet without a picture, say
        return None
    return pictures


def _group_start(index: Index, slot: int) -> int:
    position = bisect.bisect_right(index.keyframes, slot) - 1
    return index.keyframes[position] if position >= 0 else 0


def _is_wanted(picture: Frame, index: Index, slot: int, form: Form) -> bool:
    """Whether torchcodec counted the pictures as the index does, and the size is still the first one."""
    seconds = float(index.pts[slot] * index.time_base)
    same_time = abs(picture.pts_seconds - seconds) <= float(index.time_base) / 2
    return same_time and tuple(picture.data.shape[-2:]) == (form.height, form.width)
