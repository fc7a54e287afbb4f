"""Readers of annotation files, one module per data set.

A new reader is one new module here with a function under ``@register``: the command line, the configuration and the
shards then know its name. Readers yield records and never open a video.
"""

from __future__ import annotations

import importlib
import pkgutil

from glscl.data.benchmarks.base import FLAG, READERS, Annotations, Benchmark, ReadResult
from glscl.data.records import id_problem
from glscl.errors import UserError, did_you_mean
from glscl.system import storage

__all__ = ["ReadResult", "benchmark_names", "find_benchmark", "read"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def benchmark_names() -> list[str]:
    """Names of all readers, sorted."""
    return sorted(READERS)


def find_benchmark(name: str) -> Benchmark:
    """The reader of that name; a `UserError` says that there is none."""
    if name not in READERS:
        known = benchmark_names()
        raise UserError(f"unknown benchmark '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}")
    return READERS[name]


def read(name: str, annotations: str, split: str) -> ReadResult:
    """Read one split of a data set by the reader of that name, from a folder (``jsonl`` and ``csv``: or a file).

    Raises:
        UserError: unknown name or split, folder or file missing, malformed file, no record in the split.
    """
    reader = find_benchmark(name)
    if reader.splits and split not in reader.splits:
        hint = did_you_mean(split, reader.splits)
        raise UserError(f"{name} has no split '{split}'{hint}; its splits are {', '.join(reader.splits)}")
    if not storage.exists(annotations):
        raise UserError(f"{annotations}: no such file or folder; {FLAG} names the folder of {name}'s annotation files")
    result = reader.read(Annotations(annotations), split)
    for record in result.records:
        if problem := id_problem(record.video_id):
            raise UserError(f"{', '.join(result.sources)}: {problem}; rename that video")
    if not result.records:
        notes = "".join(f"; {note}" for note in result.notes)
        raise UserError(f"{name} split '{split}' is empty: no video in {', '.join(result.sources)}{notes}")
    return result
