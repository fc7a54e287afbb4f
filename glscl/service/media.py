"""A video's file as HTTP: whole, or the part that a player asks for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from glscl.service.library import AsyncPartition
from glscl.service.partition import Media
from glscl.service.refusals import Refusal

CHUNK = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


def find_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last that a ``Range`` header asks for; None: the whole file.

    Other units, several ranges and what is no range mean the whole file, as RFC 9110 has it. Raises `Refusal`: 416,
    the range is outside the file.
    """
    match = _RANGE.match((header or "").strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if begin >= end:
        raise Refusal(416, f"the file has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return begin, end


def send_media(
    partition: AsyncPartition, video_id: str, media: Media, range_header: str | None, timeout_s: float
) -> StreamingResponse:
    """The response with the file or the part. Raises `Refusal`: 416."""
    part = find_range(range_header, media.size)
    begin, end = part or (0, media.size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(end - begin), "Cache-Control": "private, max-age=600"}
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{media.size}"
    status = 200 if part is None else 206
    chunks = _read_chunks(partition, video_id, begin, end, timeout_s)
    return StreamingResponse(chunks, status, headers, media_type=media.type)


async def _read_chunks(
    partition: AsyncPartition, video_id: str, begin: int, end: int, timeout_s: float
) -> AsyncIterator[bytes]:
    while begin < end:
        chunk = await asyncio.wait_for(partition.read(video_id, begin, min(end, begin + CHUNK)), timeout_s)
        if not chunk:  # the file has become shorter: the connection ends before the length that was promised
            return
        begin += len(chunk)
        yield chunk
