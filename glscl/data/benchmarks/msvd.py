"""MSVD (Chen and Dolan, ACL 2011): 1,970 clips with about 40 captions each, many of them repeated.

Captions come from ``captions_msvd.json`` or from ``raw-captions.pkl``. A pickle may run code when it is loaded: this
reader takes one that holds only containers, texts and numbers, and refuses every other.
"""

from __future__ import annotations

import io
import pickle

from glscl.data.benchmarks.base import Annotations, ReadResult, check_caption, expect, register
from glscl.data.records import Record
from glscl.errors import UserError

JSON = "captions_msvd.json"
PICKLE = "raw-captions.pkl"
MAX_TOKENS = 1000


@register("msvd", ("train", "val", "test"), version=1)
def read_msvd(files: Annotations, split: str) -> ReadResult:
    """Read one split; repeated captions of a video stay, as the multi-caption protocol counts them."""
    name = files.first(JSON, PICKLE)
    captions = files.json(JSON, dict) if name == JSON else _unpickle(files)
    records = {}
    for key, entries in captions.items():
        video_id = expect(key, str, f"{files.path(name)}, an id")
        records[video_id] = _record(video_id, entries, f"{files.path(name)}, '{video_id}'")
    listed = f"{split}_list.txt"
    return files.listed(records, listed, files.ids(listed), whole=False)


def _record(video_id: str, entries: object, where: str) -> Record:
    texts = []
    for index, entry in enumerate(expect(entries, list, where)):
        if isinstance(entry, list | tuple):  # the pickle keeps captions as tokens
            if len(entry) > MAX_TOKENS:  # a list in a pickle may stand in thousands of places and take no room
                raise UserError(f"{where}[{index}]: a caption of {len(entry):,} words; shorten it or remove it")
            entry = " ".join(expect(token, str, f"{where}[{index}]") for token in entry)
        texts.append(check_caption(entry, f"{where}[{index}]"))
    if not texts:
        raise UserError(f"{where}: no caption")
    return Record(video_id, tuple(texts))


class _PlainUnpickler(pickle.Unpickler):
    """Loads builtin containers, texts and numbers, which need no import; refuses everything that needs one."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")


def _unpickle(files: Annotations) -> dict[object, object]:
    path = files.path(PICKLE)
    data = files.raw(PICKLE)
    try:
        value = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path}: refused ({error}); ship the captions as {JSON} instead") from error
    return expect(value, dict, path)
