"""DiDeMo (Hendricks et al., ICCV 2017): Flickr videos; the descriptions of a video make one paragraph.

Ids are the names of the published files, extension included; some end in a bare dot.
"""

from __future__ import annotations

from collections import defaultdict

from glscl.data.benchmarks.base import Annotations, ReadResult, join_sentences, register
from glscl.data.records import Record

ANNOTATED_SECONDS = 30.0  # the annotators saw at most this much of a video


@register("didemo", ("train", "val", "test"), version=1)
def read_didemo(files: Annotations, split: str) -> ReadResult:
    """Read one split: descriptions joined in the file's order, videos restricted to the split's list if there is one.

    That is the protocol's set (CLIP4Clip and later): test 1,004 of 1,037 annotated videos, val 1,065 of 1,094.
    """
    name = f"{split}_data.json"
    descriptions: dict[str, list[str]] = defaultdict(list)
    for row in files.entries(name):
        descriptions[row.get("video", str)].append(row.get("description", str))
    records = {
        video_id: Record(video_id, (join_sentences(texts, f"{files.path(name)}, '{video_id}'"),), end=ANNOTATED_SECONDS)
        for video_id, texts in descriptions.items()
    }
    listed = f"{split}_list.txt"
    if not files.has(listed):
        return files.result(records.values(), [f"no {listed}: every annotated video is taken"])
    return files.listed(records, listed, files.ids(listed), whole=True)
