"""The error of a video that gives no frames, and limits that can be read without importing a decoder."""

from __future__ import annotations

MAX_BYTES = 4 << 30  # largest video file
MAX_DECODE_S = 60.0  # CPU seconds that decoding one video may take, unless an option says otherwise
MAX_ENCODE_S = 3600.0  # CPU seconds that re-encoding one video may take, unless an option says otherwise


class VideoError(Exception):
    """This video cannot give frames; the message is the reason, short enough to count by."""
