"""Constants that bound what one video may cost; `budget` enforces them."""

from glscl.data.limits import MAX_BYTES as MAX_BYTES
from glscl.data.limits import MAX_DECODE_S as MAX_DECODE_S
from glscl.data.limits import MAX_ENCODE_S as MAX_ENCODE_S

MAX_PIXELS = 8192 * 4320
"""Largest picture decoded; a header that claims more is refused before memory is taken."""
MAX_ASPECT = 64
"""Most times that a picture's long side holds its short one: scaled to a given short side it would be enormous."""
MAX_PACKETS = 2_000_000
"""Longest stream indexed (about nine hours at 60 frames a second)."""
MAX_PHANTOMS = 100_000
"""Most frames that an index may list beyond twice those in the file (cut short): each seek walks the index."""
MAX_PIXELS_PER_SECOND = 2_000_000_000
"""Times the seconds allowed: most pixels decoded of a video, more than one core of any machine gets through."""
MAX_SCANS = 100
"""Most passes over a JPEG picture: each costs the whole picture's time in a few bytes."""
MAX_STREAMS = 64
"""Most pictures, sounds and subtitles side by side in a file."""
MAX_MEMORY = 4 << 30
"""Memory that the process may take beyond what it has when a video is opened."""
MAX_WORDS = 60
"""Characters of an error message of FFmpeg that are kept."""
CONTAINERS = ("asf", "avi", "flv", "gif", "matroska", "mov", "mpeg", "mpegts", "mpegvideo", "ogg", "webm")
"""FFmpeg's names of the containers that are opened (mov: mp4, m4v, 3gp ...; asf: wmv; mpeg: mpg, vob)."""
