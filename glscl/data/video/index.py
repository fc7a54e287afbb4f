"""Index of a video: when each of its pictures is shown, and from where it can be decoded.

The clock is the container's: second 0 is the beginning of its earliest stream. Transport and program streams that were
joined have a clock that begins anew in mid-stream; their segments are laid end to end, by the rule of FFmpeg's tools.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import av

from glscl.data.video import limits
from glscl.data.video.budget import Budget, VideoError, check_area
from glscl.data.video.source import numbered_packets, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer

_JOINED = {"mpeg", "mpegts"}
_MAX_STEP_S = 10
"""Forward step of a clock that is still a pause: ``-dts_delta_threshold`` of ffmpeg."""
_MAX_BACK_S = Fraction(1, 10)
"""Backward step that is still an inaccuracy, as in ffmpeg's ``ts_discontinuity_detect``."""


@dataclass(frozen=True)
class Index:
    """The slots of a video: each is the time from which one packet's picture is shown."""

    times: list[int]  # start of each slot in ticks after second 0, ascending
    packets: list[int]  # number of the packet of each slot, in the order of the file
    keyframes: list[int]  # slots that decoding can begin at, ascending
    pts: list[int]  # timestamp that the file gives the packet of each slot
    time_base: Fraction  # seconds of a tick
    duration: float  # seconds from second 0 to the end of the last picture
    seekable: bool  # timestamps are unique, so that the container can find a packet by its timestamp
    in_output_order: bool  # the file does not say when pictures are shown; the decoder's order of output does
    restarts: frozenset[int] = frozenset()  # packets at which a segment of a joined stream begins between two keyframes

    @cached_property
    def slot_of(self) -> dict[int, int]:
        """Slot of each packet that has one."""
        return {packet: slot for slot, packet in enumerate(self.packets)}

    @cached_property
    def packet_at(self) -> dict[int, int]:
        """Number of the packet with a timestamp of the file; of `seekable` files only."""
        return dict(zip(self.pts, self.packets, strict=True))

    def seconds(self, slot: int) -> float:
        """Start of a slot."""
        return self.times[slot] * self.time_base.numerator / self.time_base.denominator

    def window(self, start: float | None, end: float | None) -> tuple[float, float]:
        """Return the first and the last second that are sampled."""
        first = min(max(start or 0.0, 0.0), self.duration)
        last = min(end if end is not None else self.duration, self.duration)
        return (first, last) if last - first >= 1e-3 else (0.0, self.duration)  # beyond the file's end: the whole file

    def select(self, times: Iterable[float]) -> list[int]:
        """Return the slots that are shown at these seconds."""
        return shown_at(range(len(self.times)), times, self.seconds)

    def is_nearer(self, slot: int, one: int, other: int) -> bool:
        """Whether one slot is nearer in time than another; of two alike, neither."""
        return abs(self.times[slot] - self.times[one]) < abs(self.times[slot] - self.times[other])

    def first_nearer(self, before: int, after: int) -> int:
        """Return the first slot between two with a picture that is nearer to the later one."""
        middle = self.times[before] + self.times[after]
        return bisect.bisect_right(self.times, middle, before + 1, after, key=lambda time: 2 * time)


T = TypeVar("T")


def shown_at(slots: Sequence[T], times: Iterable[float], seconds: Callable[[T], float]) -> list[int]:
    """Positions of the slots that are shown at these seconds: the last of those that have begun, or the first."""
    return [max(0, bisect.bisect_right(slots, time + 1e-9, key=seconds) - 1) for time in times]


@dataclass(slots=True)
class _Packet:
    number: int
    pts: int | None
    dts: int | None
    duration: int
    keyframe: bool
    shown: bool  # false: says "the same picture again", or is cut off by an edit list


def read_index(container: InputContainer, budget: Budget) -> Index:
    """Read every packet of the video stream once, without decoding.

    Raises:
        VideoError: no video stream, no decoder, no packet with a picture, or more than is allowed.
    """
    stream = video_stream(container)
    context = stream.codec_context
    if context is None:
        raise VideoError("no decoder for this codec")
    if stream.time_base is None:
        raise VideoError("no time base")
    check_area(context.width, context.height)
    packets = [
        _Packet(number, p.pts, p.dts, p.duration or 0, p.is_keyframe, p.size > 0)
        for number, p in numbered_packets(container, budget)
        if not p.is_discard
    ]
    shown = [packet for packet in packets if packet.shown]
    if not shown:
        raise VideoError("no frames")
    if len(stream.index_entries) > limits.MAX_PHANTOMS + 2 * len(shown):
        raise VideoError("index of frames that are not there")
    in_output_order = _lacks_display_times(shown, context)
    if in_output_order:
        _fill_times(packets)
    return _build(packets, container, stream.time_base, in_output_order)


def _lacks_display_times(packets: list[_Packet], context: av.VideoCodecContext) -> bool:
    """Whether timestamps are those of decoding, although the codec puts pictures in another order (H.264 in AVI)."""
    missing = sum(packet.pts is None for packet in packets)
    if 2 * missing > len(packets):
        return True
    pts = [packet.pts for packet in packets if packet.pts is not None]
    return bool(context.has_b_frames) and all(a < b for a, b in itertools.pairwise(pts))


def _fill_times(packets: list[_Packet]) -> None:
    """Give every packet its decoding time as its timestamp, from the one before where it has none."""
    due = 0
    for packet in packets:
        packet.pts = due = packet.pts if packet.dts is None and packet.pts is not None else packet.dts or due
        due += packet.duration


def _build(packets: list[_Packet], container: InputContainer, time_base: Fraction, in_output_order: bool) -> Index:
    segments = _cut_segments(packets, container, time_base)
    slots, end = _lay_end_to_end(segments)
    if not slots:
        raise VideoError("no frames")
    unique = len({slot.pts for slot in slots}) == len(slots)
    firsts = [segment.packets[0][0] for segment in segments[1:]]
    return Index(
        times=[slot.time for slot in slots],
        packets=[slot.packet for slot in slots],
        keyframes=[number for number, slot in enumerate(slots) if slot.keyframe],
        pts=[slot.pts for slot in slots],
        time_base=time_base,
        duration=max(float(end * time_base), 1e-3),
        seekable=len(segments) == 1 and unique and not in_output_order,
        in_output_order=in_output_order,
        restarts=frozenset(packet.number for packet in firsts if not packet.keyframe),
    )


def _lay_end_to_end(segments: Sequence[_Segment]) -> tuple[list[_Slot], int]:
    """The slots of all segments in order of time, and the end of the last picture."""
    slots: list[_Slot] = []
    end = 0
    for segment in segments:
        offset = end - segment.begin
        for packet, pts in segment.packets:
            time = pts + offset
            end = max(end, time + packet.duration)
            if packet.shown and time >= 0:
                slots.append(_Slot(time, packet.number, pts, packet.keyframe))
    return sorted(slots), end


class _Slot(NamedTuple):
    time: int
    packet: int
    pts: int
    keyframe: bool


class _Segment(NamedTuple):
    """A stretch of the file on one clock: the timestamp at which it begins, and its packets with theirs."""

    begin: int
    packets: list[tuple[_Packet, int]]


def _cut_segments(packets: list[_Packet], container: InputContainer, time_base: Fraction) -> list[_Segment]:
    """Cut the packets where the clock began anew."""
    if not set(container.format.name.split(",")) & _JOINED:
        timed = [[(packet, packet.pts) for packet in packets if packet.pts is not None]]
    else:
        timed = list(_cut(packets, _MAX_BACK_S / time_base, _MAX_STEP_S / time_base))
    timed = [segment for segment in timed if segment]
    if not timed:
        raise VideoError("no frames")
    begins = [min(pts for _, pts in segment) for segment in timed]
    if container.start_time is not None:  # the earliest stream's; a leading picture before the first keyframe is cut
        first = next((pts for packet, pts in timed[0] if packet.shown), begins[0])
        begins[0] = min(first, round(Fraction(container.start_time, av.time_base) / time_base))
    return [_Segment(begin, segment) for begin, segment in zip(begins, timed, strict=True)]


def _cut(packets: list[_Packet], back: Fraction, step: Fraction) -> Iterator[list[tuple[_Packet, int]]]:
    segment: list[tuple[_Packet, int]] = []
    last = due = None
    for packet in packets:
        pts, dts = packet.pts, packet.dts
        if dts is not None:
            if last is not None and due is not None and (dts < last - back or dts > due + step):
                yield segment
                segment = []
            last, due = dts, dts + packet.duration
            if pts is not None and abs(pts - dts) > step:  # FFmpeg guessed it from a packet of the next segment
                pts = max((before + packet.duration for _, before in segment), default=dts)
        if pts is not None:
            segment.append((packet, pts))
    yield segment
