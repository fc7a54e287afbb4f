"""An index of a library of videos: segments encoded once, searched by texts and videos down to the moment."""

from glscl.index.records import Entry, Found, IndexStats, TextFound
from glscl.index.search import VideoIndex, open_index

__all__ = ["Entry", "Found", "IndexStats", "TextFound", "VideoIndex", "open_index"]
