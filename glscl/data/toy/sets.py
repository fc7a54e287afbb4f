"""Shard sets of the toy domains, written where they are missing."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack

from glscl.data.build import BuildOptions
from glscl.data.prepare import Source, prepare
from glscl.data.shards import MANIFEST, open_shard_set
from glscl.data.toy.render import write_toy
from glscl.system import storage
from glscl.system.ownership import owned

SEED = 0
PATIENCE_S = 3600.0  # seconds to wait for another command that writes the same set


def toy_set_address(root: str, domain: str, split: str, count: int) -> str:
    """Where `toy_set` keeps a split; by the number of videos too, so that no command replaces another's."""
    return storage.join(storage.resolve(root), "toy", "shards", domain, f"{split}_{count}")


def toy_set(root: str, domain: str, split: str, count: int) -> str:
    """Return the address of the shard set of so many videos of a toy split; write it if it is missing (by Ray's tasks).

    ``root`` is the local folder or s3:// prefix that holds ``toy/``. Errors are those of `toy_records`.
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
            if _is_made(shards, count):  # by the command that was waited for
                return shards
        print(f"writing {count} videos of {domain}/{split} to {shards}", flush=True)
        write_toy(domain, split, count, SEED, raw, processes=os.cpu_count() or 1)
        source = Source(
            benchmark="jsonl",
            annotations=os.path.join(raw, "annotations.jsonl"),
            split=split,
            videos=os.path.join(raw, "videos"),
            domain=domain,
        )
        options = BuildOptions(
            samples_per_shard=50,
            shuffle=False,  # videos that only their motion tells apart lie side by side: negatives to learn motion from
            overwrite=True,
            workers=0 if remote else None,  # tasks on other nodes would not find the scratch folder
        )
        prepare(source, shards, options)
    return shards


def _is_made(shards: str, count: int) -> bool:
    return storage.exists(storage.join(shards, MANIFEST)) and open_shard_set(shards).manifest.videos == count
