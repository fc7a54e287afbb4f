"""Open a video: from its bytes alone, in known containers, without reading other files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import av

from glscl.data.video import limits
from glscl.data.video.budget import Budget, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer


class _Bytes(io.BytesIO):
    """The file as FFmpeg reads it; the budget is checked at every access, so that an endless search ends."""

    budget: Budget

    def read(self, size: int | None = -1, /) -> bytes:
        self.budget.check()
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.budget.check()
        return super().seek(offset, whence)


def open_video(data: bytes, budget: Budget) -> InputContainer:
    """Open a PyAV container on the bytes: one thread, known containers, no other files, bounded pictures."""
    if not data:
        raise VideoError("empty file")
    if len(data) > limits.MAX_BYTES:
        raise VideoError(f"more than {limits.MAX_BYTES >> 30} GiB")
    file = _Bytes(data)
    file.budget = budget
    container: InputContainer = av.open(
        file,
        metadata_errors="ignore",
        options={"max_pixels": str(limits.MAX_PIXELS)},
        container_options={
            "format_whitelist": ",".join(limits.CONTAINERS),
            "protocol_whitelist": "none",
            "max_streams": str(limits.MAX_STREAMS),
        },
        io_open=refuse_other_files,
    )
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # loader workers are the parallelism
            stream.codec_context.options = {"max_pixels": str(limits.MAX_PIXELS)}  # it may grow in mid-stream
    return container


def refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Refuse to open a file that the container names; FFmpeg calls this instead of opening it."""
    raise VideoError("names other files")


def video_stream(container: InputContainer) -> av.VideoStream:
    """Return the first stream of moving pictures: sound files carry their cover as a video of one picture."""
    cover = av.stream.Disposition.attached_pic
    stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    if stream is None:
        raise VideoError("no video stream")
    return stream


def numbered_packets(container: InputContainer, budget: Budget) -> Iterator[tuple[int, av.Packet]]:
    """Number the packets of the video stream, from the container's position on.

    What cannot be read any further ends the file, as in FFmpeg's tools; it is an error only for the first packet.
    """
    stream = video_stream(container)
    packets = container.demux(stream)
    number = 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            if not number:
                raise
            return
        if packet.pts is None and packet.dts is None and packet.size == 0:  # PyAV's mark of the end
            continue
        if number >= limits.MAX_PACKETS:
            raise VideoError(f"more than {limits.MAX_PACKETS} frames")
        budget.check()
        yield number, packet
        number += 1
