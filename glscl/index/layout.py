"""Files of an index: ``index.json``, the model, and parts of videos and of what the head keeps of their segments.

A part is a folder of ``videos.parquet``, ``segments.parquet`` and one ``.npy`` per tensor, raw numbers that are mapped
into memory. It is written beside the others under another name and gets its own once it is whole; ``index.json``, which
is replaced as a whole, says which parts count. docs/index.md describes the format.
"""

from __future__ import annotations

import os
import shutil
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from glscl.errors import UserError
from glscl.options import Options
from glscl.options.mistakes import first_mistake
from glscl.system import storage

FORMAT = 1
INDEX, MODEL, PARTS = "index.json", "model", "parts"
FIRST = "first-"
"""What the folder of a first stage begins with; its number follows."""
VIDEOS, SEGMENTS = "videos.parquet", "segments.parquet"
Precision = Literal["fp32", "fp16", "int8"]
_Count = Annotated[int, Field(ge=0)]


class Cutting(Options):
    """How videos are cut into segments."""

    segment_s: float = Field(gt=0)
    """Seconds of a segment; a video that is not longer is one."""
    stride_s: float = Field(gt=0)
    """Seconds from the beginning of one segment to that of the next."""


class PartFacts(Options):
    """A part, and the bytes of its files, which opening compares."""

    name: str = Field(pattern=r"^[0-9]{6,12}$")
    videos: _Count
    """Rows of its table of videos, those that could not be read included."""
    segments: _Count
    files: dict[str, _Count]


class FirstFacts(Options):
    """The first stage."""

    folder: str = Field(pattern=r"^first-[0-9]{1,12}$")
    width: _Count
    """Numbers of the compact projection of a segment; a code of half as many bytes."""
    candidates: _Count
    """Segments that it hands to the head."""
    recall: float
    """Share of the ten best of all that were among those of the candidates, over texts that it was not fitted to."""
    files: dict[str, _Count]


class IndexFacts(Options):
    """``index.json``."""

    format: int = FORMAT
    library: str
    """What was indexed last."""
    model: str
    """Fingerprint of the model's files."""
    cutting: Cutting
    precision: Precision
    parts: tuple[PartFacts, ...] = ()
    deleted: dict[str, tuple[_Count, ...]] = Field(default_factory=dict)
    """Rows of videos that were deleted or replaced, by part."""
    first: FirstFacts | None = None
    """None: the head scores every segment."""


def read_facts(folder: str) -> IndexFacts:
    """Read ``index.json``. Raises `UserError`: there is none, it is damaged, or of another version."""
    where = os.path.join(folder, INDEX)
    if storage.is_remote(folder):
        raise UserError(f"{folder}: an index is mapped into memory and lies on a local disk; copy the folder first")
    if not os.path.exists(where):
        raise UserError(f"{where}: no such file; `glscl index build LIBRARY --run RUN --output {folder}` makes it")
    raw = storage.read_json(where)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise UserError(f"{where}: format {raw.get('format')!r}, this version reads {FORMAT}; build the index again")
    try:
        return IndexFacts.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: no index of this version ({first_mistake(error, 'top level')})") from None


def write_facts(folder: str, facts: IndexFacts) -> None:
    """Replace ``index.json``."""
    storage.write_json(os.path.join(folder, INDEX), facts.model_dump(mode="json"))


def part_folder(folder: str, name: str) -> str:
    """Where a part lies."""
    return os.path.join(folder, PARTS, name)


def check_files(folder: str, files: dict[str, int]) -> None:
    """Compare files with their sizes. Raises `UserError`: one is missing or has another size."""
    for name, expected in files.items():
        where = os.path.join(folder, name)
        size = os.path.getsize(where) if os.path.exists(where) else None
        if size != expected:
            found = "missing" if size is None else f"{size:,} bytes"
            raise UserError(
                f"{where}: {found} where {INDEX} says {expected:,} bytes; copy the index again, or build it again"
            )


def sizes_of(folder: str) -> dict[str, int]:
    """Bytes of every file directly in a folder."""
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}


def next_part(facts: IndexFacts) -> str:
    """A name that no part has had."""
    return f"{1 + max((int(part.name) for part in facts.parts), default=-1):06d}"


def remove_strays(folder: str, facts: IndexFacts) -> None:
    """Remove what ``index.json`` does not name: left by a command that was killed, or replaced."""
    parts = os.path.join(folder, PARTS)
    kept = {part.name for part in facts.parts}
    for name in os.listdir(parts) if os.path.isdir(parts) else []:
        if name not in kept:
            shutil.rmtree(os.path.join(parts, name))
    for name in os.listdir(folder):
        if name.startswith(FIRST) and (facts.first is None or name != facts.first.folder):
            shutil.rmtree(os.path.join(folder, name))
    if facts.first is not None:
        for name in os.listdir(os.path.join(folder, facts.first.folder)):
            if name.endswith(".npy") and name not in facts.first.files:
                os.remove(os.path.join(folder, facts.first.folder, name))
