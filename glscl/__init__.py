"""Text-video retrieval: training, evaluation and cross-domain comparison on Ray.

In Python, `load` gives a trained model, which encodes texts and videos, scores and searches, and `open_index` an index
of a library. They are imported when they are asked for, because torch takes seconds.
"""

from typing import TYPE_CHECKING

from glscl.version import __version__ as __version__

if TYPE_CHECKING:
    from glscl.data.video.arrays import Frames as Frames
    from glscl.index.records import Entry as Entry
    from glscl.index.records import Found as Found
    from glscl.index.search import VideoIndex as VideoIndex
    from glscl.index.search import open_index as open_index
    from glscl.retrieval.model import Match as Match
    from glscl.retrieval.model import RetrievalModel as RetrievalModel
    from glscl.retrieval.model import Texts as Texts
    from glscl.retrieval.model import Videos as Videos
    from glscl.retrieval.model import load as load
    from glscl.retrieval.videos import Moment as Moment

_LAZY = {
    "load": "glscl.retrieval.model",
    "open_index": "glscl.index.search",
    "VideoIndex": "glscl.index.search",
    "Found": "glscl.index.records",
    "Entry": "glscl.index.records",
    "RetrievalModel": "glscl.retrieval.model",
    "Texts": "glscl.retrieval.model",
    "Videos": "glscl.retrieval.model",
    "Match": "glscl.retrieval.model",
    "Moment": "glscl.retrieval.videos",
    "Frames": "glscl.data.video.arrays",
}
"""Public names, and the modules that have them."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'glscl' has no attribute '{name}'")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
