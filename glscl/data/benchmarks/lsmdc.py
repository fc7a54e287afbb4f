"""LSMDC (Rohrbach et al., IJCV 2017): clips of films, one line per sentence.

Tab-separated without header: clip id, start and end aligned, start and end extracted, sentence. The times are those of
the film; the clips are files of their own.
"""

from __future__ import annotations

from collections import defaultdict

from glscl.data.benchmarks.base import Annotations, ReadResult, check_caption, register
from glscl.data.records import Record
from glscl.errors import UserError

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}


@register("lsmdc", FILES, version=1)
def read_lsmdc(files: Annotations, split: str) -> ReadResult:
    """Read one split; a clip id on several lines is one video with several captions."""
    name = FILES[split]
    captions: dict[str, list[str]] = defaultdict(list)
    for line, text in files.lines(name):  # quotes are part of the sentences: not a case for a CSV parser
        where = f"{files.path(name)}, line {line}"
        columns = text.split("\t")
        if len(columns) != 6:
            raise UserError(f"{where}: {len(columns)} tab-separated columns, expected 6")
        if not (clip_id := columns[0].strip()):
            raise UserError(f"{where}: empty clip id")
        captions[clip_id].append(check_caption(columns[-1], where))
    return files.result(Record(clip_id, tuple(texts)) for clip_id, texts in captions.items())
