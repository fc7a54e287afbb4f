"""Decode the frames of a video at given moments with PyAV; where a picture does not decode, take the nearest.

A recording may begin between two keyframes, a cut may take away what pictures refer to, a codec may hide pictures, and
bytes may be damaged. A video that plays is not refused for any of this; it is counted.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Generic, TypeVar

import av
import numpy as np
import torch
from torch import Tensor

from glscl.data.video.budget import Budget, VideoError, check_area, decoding, describe_error
from glscl.data.video.display import Display
from glscl.data.video.index import Index, read_index
from glscl.data.video.sampling import FrameSampling
from glscl.data.video.source import numbered_packets, open_video, video_stream
from glscl.data.video.torchcodec import decode_plain

if TYPE_CHECKING:
    from av.container import InputContainer

T = TypeVar("T")
Render = Callable[[Display, av.VideoFrame], T]
"""What is made of a decoded picture."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video."""

    frames: Tensor  # uint8 (F', 3, S, S), 1 <= F' <= ``max_frames``
    replaced: int  # how many of them stand for a picture that does not decode


def load_clip(
    data: bytes,
    sampling: FrameSampling,
    start: float | None = None,
    end: float | None = None,
    into: Tensor | None = None,
) -> Clip:
    """Decode the frames of a video that ``sampling`` asks for, in display form.

    Args:
        data: a whole video file.
        sampling: number, rate and size of frames.
        start: first second that is sampled; None is the beginning. Second 0 is that of the container.
        end: last second that is sampled; None is the end of the video.
        into: where the frames are written, uint8 (``max_frames`` or more, 3, S, S); None takes new memory.

    Raises:
        VideoError: the bytes are not a video, no picture of it decodes, or it costs too much.
    """
    if not all(math.isfinite(edge) for edge in (start, end) if edge is not None):
        raise VideoError("start or end is not a number of seconds")
    budget = Budget(sampling.max_seconds)
    with decoding(), open_video(data, budget) as container:
        index = read_index(container, budget)
        slots = index.select(sampling.times(*index.window(start, end)))
        with PictureReader(data, container, index, budget, sampling.augment) as reader:
            if sampling.decoder == "torchcodec":
                pictures = decode_plain(data, index, slots, sampling.size, reader.first(), budget)
                if pictures is not None:
                    return Clip(lay_down([pictures[slot] for slot in slots], into), 0)
            pictures_of = reader.read(slots, lambda display, frame: display.square(frame, sampling.size))
        frames = lay_down([pictures_of[slot][1] for slot in slots], into)
        return Clip(frames, sum(pictures_of[slot][0] != slot for slot in slots))


def lay_down(pictures: Sequence[Tensor], into: Tensor | None) -> Tensor:
    """Copy pictures (3, S, S), however they lie in memory, one after the other: (F', 3, S, S)."""
    if into is None:
        into = torch.empty(len(pictures), *pictures[0].shape, dtype=torch.uint8)
    for picture, place in zip(pictures, into, strict=False):
        np.copyto(place.numpy(), picture.numpy())  # a third faster than torch where colours lie side by side
    return into[: len(pictures)]


def load_frames(data: bytes, sampling: FrameSampling, start: float | None = None, end: float | None = None) -> Tensor:
    """Return the frames of `load_clip`: uint8 (F', 3, S, S), 1 <= F' <= ``max_frames``."""
    return load_clip(data, sampling, start, end).frames


class PictureReader:
    """Decodes pictures of one video and knows each by its slot.

    Args:
        data: bytes of the file.
        container: PyAV's container of it, read to its end.
        index: of its packets.
        budget: what the video may cost.
        augment: as in `FrameSampling`.
    """

    def __init__(
        self,
        data: bytes,
        container: InputContainer,
        index: Index,
        budget: Budget,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._data, self._index, self._budget, self._augment = data, index, budget, augment
        self._opened = _Opened(container, augment)
        self._straight: _Opened | None = None  # read from the beginning on without seeking
        self._unread: Iterator[tuple[int, av.Packet]] = iter(())
        self._position = 0
        self._stack = ExitStack()
        self._whole_only = True
        self.problem = ""
        """FFmpeg's message on the last packet that it could not decode."""

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, slots: Iterable[int], render: Render[T]) -> dict[int, tuple[int, T]]:
        """Return, for each slot, the slot whose picture stands for it, and that picture as rendered.

        Raises:
            VideoError: no picture decodes.
        """
        pictures: dict[int, tuple[int, T]] = {}
        for first, wanted in self._groups(slots):
            if first is not None:
                pictures |= self._read_exactly(first, wanted, render)
        for first, wanted in self._groups(set(slots) - set(pictures)):
            nearest = self._read_nearest(first, wanted, render)
            if nearest is None and self._settle_for_damaged():
                return self.read(slots, render)
            if nearest is None:
                raise VideoError(self.refusal())
            pictures |= nearest
        return pictures

    def first(self) -> tuple[av.VideoFrame, Display]:
        """Return the first picture that decodes, and what brings it to display form."""
        for _, frame, display in self.in_order():
            return frame, display
        raise VideoError(self.refusal())

    def in_order(self) -> Iterator[tuple[int, av.VideoFrame, Display]]:
        """Decode all pictures, each as of `pictures`, later than the one before."""
        before = -1
        for slot, frame, display in self.pictures(None):
            if slot > before:  # else out of order: no player shows it
                before = slot
                yield slot, frame, display
        if before < 0 and self._settle_for_damaged():
            yield from self.in_order()

    def _settle_for_damaged(self) -> bool:
        """Take damaged pictures, too, where none is whole; false if they are taken already."""
        settled, self._whole_only = self._whole_only, False
        return settled

    def pictures(
        self, first: int | None, wanted: set[int] | None = None
    ) -> Iterator[tuple[int, av.VideoFrame, Display]]:
        """Decode from a keyframe on, and yield each whole picture with its slot and its display form.

        Args:
            first: slot of the keyframe; None is the beginning of the file.
            wanted: slots; other pictures that no picture refers to are skipped. None skips none.
        """
        opened, packets = self._packets(first)
        context = opened.stream.codec_context
        came_out = itertools.count(first or 0)
        try:
            for frame in self._frames(context, packets, wanted):
                self._budget.picture(frame.width, frame.height)  # of each: it may change in mid-stream
                slot = next(came_out) if self._index.in_output_order else self._index.slot_of.get(frame.pts)
                if slot is not None and slot < len(self._index.times) and not (self._whole_only and frame.is_corrupt):
                    yield slot, frame, opened.display
        finally:
            context.skip_frame = "DEFAULT"

    def _frames(
        self, context: av.VideoCodecContext, packets: Iterator[tuple[int, av.Packet]], wanted: set[int] | None
    ) -> Iterator[av.VideoFrame]:
        """Decode packets; the number of each comes out with its picture as ``pts``."""
        for number, packet in packets:
            if packet.size == 0:  # the same picture again; to a decoder, the end
                continue
            if number in self._index.restarts:  # nothing before it is what it refers to
                yield from self._decoded(context, None)
                context.flush_buffers()
            if wanted is not None:
                slot = self._index.slot_of.get(number)
                context.skip_frame = "DEFAULT" if slot is None or slot in wanted else "NONREF"
            packet.pts = number
            yield from self._decoded(context, packet)
        yield from self._decoded(context, None)

    def refusal(self) -> str:
        """Return the reason to refuse a video of which no picture decodes."""
        return f"no picture decodes ({self.problem})" if self.problem else "no picture decodes"

    def _decoded(self, context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            pictures: list[av.VideoFrame] = context.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError as error:  # this packet gives no picture
            check_area(context.width, context.height)
            self.problem = describe_error(error)
            return []
        return pictures

    def _read_exactly(self, first: int, wanted: list[int], render: Render[T]) -> dict[int, tuple[int, T]]:
        """Decode the slots of a group of pictures that do give one."""
        pictures: dict[int, tuple[int, T]] = {}
        skippable = None if self._index.in_output_order else set(wanted)
        for slot, frame, display in self.pictures(first, skippable):
            if slot in wanted and slot not in pictures:
                pictures[slot] = slot, render(display, frame)
            if slot >= wanted[-1]:  # pictures come out in the order of time
                break
        return pictures

    def _read_nearest(self, first: int | None, wanted: list[int], render: Render[T]) -> dict[int, tuple[int, T]] | None:
        """Decode the nearest picture to each slot, from ever further back until one is before it; None if none is."""
        back = 1
        while (pictures := self._scan(first, wanted, render)) is None and first is not None:
            position = bisect.bisect_left(self._index.keyframes, first) - back
            first = self._index.keyframes[position] if position >= 0 else None
            back *= 2
        return pictures

    def _scan(self, first: int | None, wanted: list[int], render: Render[T]) -> dict[int, tuple[int, T]] | None:
        """Decode on from a keyframe until each slot has its nearest picture; None if it may be further back."""
        pictures: dict[int, tuple[int, T]] = {}
        pending = list(wanted)
        before: _Picture[T] | None = None
        for decoded in self.pictures(first):
            after = _Picture(*decoded, render)
            if before is not None and after.slot <= before.slot:
                continue  # out of order: no player shows it
            if before is None and first is not None and pending[0] < after.slot:
                return None
            while pending and pending[0] <= after.slot:
                slot = pending.pop(0)
                pictures[slot] = self._nearer(slot, before, after).rendered
            if not pending:
                return pictures
            before = after
        if before is None:
            return None
        return pictures | dict.fromkeys(pending, before.rendered)

    def _nearer(self, slot: int, before: _Picture[T] | None, after: _Picture[T]) -> _Picture[T]:
        if before is None or self._index.is_nearer(slot, after.slot, before.slot):
            return after
        return before

    def _groups(self, slots: Iterable[int]) -> list[tuple[int | None, list[int]]]:
        """Group slots by the keyframe that each is decoded from; None is the beginning of the file."""
        groups: dict[int, list[int]] = {}
        for slot in sorted(set(slots)):
            groups.setdefault(bisect.bisect_right(self._index.keyframes, slot) - 1, []).append(slot)
        return [(self._index.keyframes[at] if at >= 0 else None, group) for at, group in groups.items()]

    def _packets(self, first: int | None) -> tuple[_Opened, Iterator[tuple[int, av.Packet]]]:
        """Return the numbered packets from that of a slot on (None: from the first of the file), and their stream."""
        if first is not None and self._index.seekable:
            packets = self._seek(first)
            if packets is not None:
                return self._opened, packets
        target = 0 if first is None else self._index.packets[first]
        if self._straight is None or target < self._position:
            self._straight = _Opened(self._stack.enter_context(open_video(self._data, self._budget)), self._augment)
            self._unread = numbered_packets(self._straight.container, self._budget)
            self._position = 0
        self._straight.stream.codec_context.flush_buffers()
        return self._straight, self._read_on(target)

    def _seek(self, first: int) -> Iterator[tuple[int, av.Packet]] | None:
        """Have the container find a keyframe; None if it lands behind it, as it does in some formats."""
        index, target = self._index, self._index.packets[first]
        try:
            self._opened.container.seek(index.pts[first], stream=self._opened.stream, backward=True)
            following = numbered_packets(self._opened.container, self._budget)
            packets = ((index.packet_at.get(packet.pts, -1), packet) for _, packet in following)
            for number, packet in packets:
                if number == target:
                    return itertools.chain([(number, packet)], packets)
                if number > target:
                    return None
        except av.error.FFmpegError as error:
            self.problem = describe_error(error)
        return None

    def _read_on(self, target: int) -> Iterator[tuple[int, av.Packet]]:
        """Read packets without seeking."""
        for number, packet in self._unread:
            self._position = number + 1
            if number >= target:
                yield number, packet


class _Opened:
    """A container that is read, its stream, and what brings its pictures to display form."""

    def __init__(self, container: InputContainer, augment: Callable[[Tensor], Tensor] | None) -> None:
        self.container = container
        self.stream = video_stream(container)
        self.display = Display(self.stream, augment)


class _Picture(Generic[T]):
    """A decoded picture, rendered once it is asked for."""

    def __init__(self, slot: int, frame: av.VideoFrame, display: Display, render: Render[T]) -> None:
        self.slot = slot
        self._render = partial(render, display, frame)

    @cached_property
    def rendered(self) -> tuple[int, T]:
        """Its slot, and the picture."""
        return self.slot, self._render()
