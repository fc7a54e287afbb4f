"""The quickstart: toy domains, their shards, and the run that trains on one and is tested on both."""

from __future__ import annotations

import os

from glscl import storage
from glscl.config import RunConfig, load_config
from glscl.data.build import Encoding
from glscl.data.prepare import build_from_annotations
from glscl.data.shards import MANIFEST, open_shard_set
from glscl.data.toy import write_toy

SEED = 0
SETS = (
    ("toy_clips", "train", 1600),
    ("toy_clips", "dev", 100),
    ("toy_clips", "test", 200),
    ("toy_stories", "test", 200),
)
"""Domain, split and number of videos of the sets that the quickstart makes."""


def quickstart_config(root: str, name: str) -> RunConfig:
    """Write the toy sets that are not there yet, and return the quickstart's configuration on them.

    Ray must be running: shards are written by its tasks.

    Args:
        root: local folder or prefix of run directories; the toy data goes into ``toy/`` beside them.
        name: of the run.
    """
    shards = {(domain, split): _toy_set(root, domain, split, count) for domain, split, count in SETS}
    config = load_config("quickstart")
    data = config.data.model_copy(
        update={
            "train": (shards["toy_clips", "train"],),
            "validation": (shards["toy_clips", "dev"],),
            "test": (shards["toy_clips", "test"], shards["toy_stories", "test"]),
        }
    )
    return config.model_copy(update={"data": data, "name": name, "storage": root}).resolved()


def _toy_set(root: str, domain: str, split: str, count: int) -> str:
    """Shard set of one toy split; made if it is not there with this number of videos."""
    raw = storage.join(storage.resolve(root), "toy", domain, split)
    shards = storage.join(storage.resolve(root), "toy", "shards", domain, split)
    if storage.exists(storage.join(shards, MANIFEST)) and open_shard_set(shards).manifest.videos == count:
        return shards
    print(f"writing {count} videos of {domain}/{split} to {raw}", flush=True)
    write_toy(domain, split, count, SEED, raw, processes=os.cpu_count() or 1)
    build_from_annotations(
        "jsonl",
        storage.join(raw, "annotations.jsonl"),
        split,
        storage.join(raw, "videos"),
        shards,
        domain=domain,
        samples_per_shard=50,
        encoding=Encoding(),
        shuffle=False,  # videos that only their motion tells apart lie side by side: the negatives to learn motion from
        overwrite=True,
    )
    return shards
