"""Shard sets of the toy domains, made where they are not there."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack

from glscl.data.build import Encoding
from glscl.data.prepare import build_from_annotations
from glscl.data.shards import MANIFEST, open_shard_set
from glscl.data.toy.render import write_toy
from glscl.system import storage
from glscl.system.ownership import owned

SEED = 0
PATIENCE_S = 3600.0
"""Seconds that another command which writes the same set is waited for."""


def toy_set_address(root: str, domain: str, split: str, count: int) -> str:
    """Where `toy_set` keeps a split; the number of videos is in the name, so that two commands never replace one
    another's."""
    return storage.join(storage.resolve(root), "toy", "shards", domain, f"{split}_{count}")


def toy_set(root: str, domain: str, split: str, count: int) -> str:
    """Shard set of one toy split, written if it is not there (Ray must be running).

    Args:
        root: local folder or s3:// prefix under which ``toy/`` is.
        domain: toy domain.
        split: train, dev or test.
        count: videos.

    Raises:
        UserError: unknown domain or split, or more videos than the split has combinations.
    """
    shards = toy_set_address(root, domain, split, count)
    if _is_made(shards, count):
        return shards
    with tempfile.TemporaryDirectory(prefix="glscl-toy-") as scratch, ExitStack() as stack:
        # The drawn videos stay beside local shards, for looking at; a remote root has no place for loose files.
        remote = storage.is_remote(shards)
        raw = scratch if remote else storage.join(storage.resolve(root), "toy", domain, f"{split}_{count}")
        if not remote:
            stack.enter_context(owned(raw, "choose another --storage", patience_s=PATIENCE_S))
            if _is_made(shards, count):  # by whoever was waited for
                return shards
        print(f"writing {count} videos of {domain}/{split} to {shards}", flush=True)
        write_toy(domain, split, count, SEED, raw, processes=os.cpu_count() or 1)
        build_from_annotations(
            "jsonl",
            os.path.join(raw, "annotations.jsonl"),
            split,
            os.path.join(raw, "videos"),
            shards,
            domain=domain,
            samples_per_shard=50,
            encoding=Encoding(),
            shuffle=False,  # videos that only their motion tells apart lie side by side: negatives to learn motion from
            overwrite=True,
            workers=0 if remote else None,  # tasks on other nodes would not find the scratch folder
        )
    return shards


def _is_made(shards: str, count: int) -> bool:
    return storage.exists(storage.join(shards, MANIFEST)) and open_shard_set(shards).manifest.videos == count
