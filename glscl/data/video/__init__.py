"""Turn video bytes into frames: one index of times, two decoders, one display form.

Frames are chosen by timestamp, never by average frame rate: variable frame rates, late starts, edit lists and clocks
that begin anew give the picture that a player would show at that moment. PyAV is the default because its wheels carry
FFmpeg; torchcodec is optional and returns the same frames.

A video is data from strangers, so what it may cost is bounded: CPU seconds, frames, pixels of a picture and in total,
bytes, memory. Only containers of video are opened, and nothing beside the bytes given: FFmpeg also reads playlists,
which name other files and hosts.
"""

from glscl.data.video.budget import VideoError
from glscl.data.video.decode import Clip, load_clip, load_frames
from glscl.data.video.encode import Copy, make_copy, reencode
from glscl.data.video.limits import MAX_BYTES, MAX_DECODE_S, MAX_ENCODE_S
from glscl.data.video.pictures import Pictures, load_pictures, make_pictures
from glscl.data.video.sampling import Decoder, FrameSampling

__all__ = [
    "MAX_BYTES",
    "MAX_DECODE_S",
    "MAX_ENCODE_S",
    "Clip",
    "Copy",
    "Decoder",
    "FrameSampling",
    "Pictures",
    "VideoError",
    "load_clip",
    "load_frames",
    "load_pictures",
    "make_copy",
    "make_pictures",
    "reencode",
]
