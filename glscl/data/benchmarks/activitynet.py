"""ActivityNet Captions (Krishna et al., ICCV 2017): the sentences of a video make one paragraph.

Retrieval is reported on ``val_1``; ``val_2`` holds other annotators' sentences for the same videos.
"""

from __future__ import annotations

from glscl.data.benchmarks.base import Annotations, Entry, ReadResult, expect, join_sentences, register
from glscl.data.records import Record

ID_LISTS = {"train": "train_ids.json", "val_1": "val_ids.json", "val_2": "val_ids.json"}


@register("activitynet", ID_LISTS, version=1)
def read_activitynet(files: Annotations, split: str) -> ReadResult:
    """Read one split, in the order of its id list if there is one; ids without annotation are noted."""
    name = f"{split}.json"
    records = {}
    for video_id, value in files.json(name, dict).items():
        where = f"{files.path(name)}, '{video_id}'"
        video = Entry(expect(value, dict, where), where)
        text = join_sentences(video.get("sentences", list), where)
        records[video_id] = Record(video_id, (text,), duration=video.seconds("duration"))
    listed = ID_LISTS[split]
    if not files.has(listed):
        return files.result(records.values(), [f"no {listed}: every annotated video is taken"])
    ids = [expect(video_id, str, files.path(listed)) for video_id in files.json(listed, list)]
    return files.listed(records, listed, ids, whole=True)
