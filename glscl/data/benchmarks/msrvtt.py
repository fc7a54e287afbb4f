"""MSR-VTT (Xu et al., CVPR 2016): 10,000 clips, 20 captions each.

``train_9k`` (Gabeur et al., 2020) and ``train_7k`` (Miech et al., 2018) train for ``test_1k_a`` (Yu et al., 2018:
1,000 videos with one caption each); the ``*_full`` splits are the data set's own.
"""

from __future__ import annotations

from collections import defaultdict

from glscl.data.benchmarks.base import Annotations, Entry, ReadResult, check_caption, register
from glscl.data.records import Record
from glscl.errors import UserError

DATA = "MSRVTT_data.json"
TRAIN_LISTS = {"train_9k": "MSRVTT_train.9k.csv", "train_7k": "MSRVTT_train.7k.csv"}
TEST_1K_A = "MSRVTT_JSFUSION_test.csv"
FULL = {"train_full": "train", "val_full": "validate", "test_full": "test"}


@register("msrvtt", (*TRAIN_LISTS, *FULL, "test_1k_a"), version=1)
def read_msrvtt(files: Annotations, split: str) -> ReadResult:
    """Read one split; captions keep the order of the file."""
    if split == "test_1k_a":
        return files.result(_test_1k_a(files))
    videos, splits = _videos(files)
    if split in TRAIN_LISTS:
        listed = TRAIN_LISTS[split]
        ids = [row["video_id"].strip() for _, row in files.rows(listed, ["video_id"])]
        return files.listed(videos, listed, ids, whole=False)
    return files.result(videos[video_id] for video_id in videos if splits[video_id] == FULL[split])


def _test_1k_a(files: Annotations) -> list[Record]:
    captions: dict[str, list[str]] = defaultdict(list)  # each row is one query
    for line, row in files.rows(TEST_1K_A, ["video_id", "sentence"]):
        where = f"{files.path(TEST_1K_A)}, line {line}"
        captions[row["video_id"].strip()].append(check_caption(row["sentence"], where))
    return [Record(video_id, tuple(texts)) for video_id, texts in captions.items()]


def _videos(files: Annotations) -> tuple[dict[str, Record], dict[str, str]]:
    """Every video of the data file, and its split field."""
    data = Entry(files.json(DATA, dict), files.path(DATA))
    captions: dict[str, list[str]] = defaultdict(list)
    for sentence in data.entries("sentences"):
        text = sentence.values.get("caption")
        captions[sentence.get("video_id", str)].append(check_caption(text, sentence.where))
    records, splits = {}, {}
    for video in data.entries("videos"):
        video_id = video.get("video_id", str)
        if video_id not in captions:
            raise UserError(f"{video.where}: '{video_id}' has no sentence")
        # times are those of the source film: the data set's own files are already cut
        duration = video.seconds("end time") - video.seconds("start time")
        records[video_id] = Record(video_id, tuple(captions[video_id]), duration=round(duration, 3))
        splits[video_id] = video.get("split", str)
    return records, splits
