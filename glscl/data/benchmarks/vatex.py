"""VATEX (Wang et al., ICCV 2019): 10-second clips, ten English captions each.

Retrieval work cuts the official validation set in two: ``val`` and ``test`` by Chen et al. (HGR, CVPR 2020), and a
second test set ``test1k5`` by Liu et al. (TS2-Net, ECCV 2022). The lists of ids define the splits.
"""

from __future__ import annotations

from glscl.data.benchmarks.base import Annotations, ReadResult, check_caption, register
from glscl.data.records import Record
from glscl.errors import UserError

LISTS = {"train": "train_list.txt", "val": "val_list.txt", "test": "test_list.txt", "test1k5": "test1k5_sec_list.txt"}
TRAINING = "vatex_training_v1.0.json"
VALIDATION = "vatex_validation_v1.0.json"
PUBLIC_TEST = "vatex_public_test_english_v1.1.json"


@register("vatex", LISTS, version=1)
def read_vatex(files: Annotations, split: str) -> ReadResult:
    """Read one split; the public test set is looked at only for ids that the validation set does not have."""
    listed = LISTS[split]
    ids = files.ids(listed)
    videos = _videos(files, TRAINING if split == "train" else VALIDATION)
    if split != "train" and not videos.keys() >= set(ids) and files.has(PUBLIC_TEST):
        videos = _videos(files, PUBLIC_TEST) | videos
    return files.listed(videos, listed, ids, whole=False)


def _videos(files: Annotations, name: str) -> dict[str, Record]:
    records = {}
    for video in files.entries(name):
        where = f"{video.where}, 'enCap'"
        texts = tuple(check_caption(text, where) for text in video.get("enCap", list))
        if not texts:
            raise UserError(f"{where}: no caption")
        video_id = video.get("videoID", str)
        records[video_id] = Record(video_id, texts)
    return records
