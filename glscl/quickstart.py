"""The quickstart: toy domains, their shards, and the run that trains on one and is tested on both."""

from __future__ import annotations

from glscl.data.toy.sets import toy_set
from glscl.training.config import RunConfig, load_config

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
    shards = {(domain, split): toy_set(root, domain, split, count) for domain, split, count in SETS}
    config = load_config("quickstart")
    data = config.data.model_copy(
        update={
            "train": (shards["toy_clips", "train"],),
            "validation": (shards["toy_clips", "dev"],),
            "test": (shards["toy_clips", "test"], shards["toy_stories", "test"]),
        }
    )
    return config.model_copy(update={"data": data, "name": name, "storage": root}).resolved()
