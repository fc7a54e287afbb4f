"""The videos of a library: a folder, local or s3://, or a shard set, with what a file of metadata says of them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from glscl.data.locate import VIDEO_EXTENSIONS, walk_files
from glscl.data.records import compose_accents, id_problem, list_some, parse_strict_json
from glscl.data.shards import MANIFEST, Shard, ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.index.records import Value
from glscl.system import storage

ID_KEYS = ("id", "video_id", "video", "file")
CAPTION_KEYS = ("captions", "caption")
_EXTENSIONS = {f".{extension}" for extension in VIDEO_EXTENSIONS if extension not in ("", "null")}
_SHARD_MARK = "#"


@dataclass(frozen=True, slots=True)
class Item:
    """A video of a library that is to be indexed.

    Attributes:
        id: its name in the index.
        source: path or address of its file, or of its tar, ``#`` and its place there.
        stamp: changes whenever its bytes do.
        captions: that describe it.
        metadata: what else is known.
        start: first second that counts; None is the beginning.
        end: last second that counts; None is the end.
        problem: why it cannot be indexed, whatever its bytes.
    """

    id: str
    source: str
    stamp: str
    captions: tuple[str, ...] = ()
    metadata: dict[str, Value] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    problem: str = ""


def list_library(library: str, metadata: str | None = None) -> tuple[list[Item], list[str]]:
    """All videos of a folder at any depth, or of a shard set, in the order of their ids; and notes for the user.

    ``metadata`` is a file of JSON lines or CSV, a row per video: ``id`` (or video_id, video, file) is its id with or
    without the extension, ``captions`` or ``caption`` describe it, all else is metadata. Raises `UserError`: no such
    folder, no video in it, or a damaged file of metadata.
    """
    library = storage.resolve(library)
    is_shards = storage.exists(storage.join(library, MANIFEST))
    items = list(_list_shards(open_shard_set(library)) if is_shards else _list_files(library))
    if not items:
        raise UserError(f"{library}: no video in it ({', '.join(sorted(_EXTENSIONS))}), and no {MANIFEST} of shards")
    notes: list[str] = []
    if metadata is not None:
        items, notes = _add_metadata(items, metadata)
    return sorted(_apart(items), key=lambda item: item.id), notes


def _list_files(folder: str) -> Iterator[Item]:
    fs, root = storage.filesystem(folder)
    remote = storage.is_remote(folder)
    for path in walk_files(folder, "name a folder of videos or a shard set"):
        if PurePosixPath(path).suffix.lower() not in _EXTENSIONS:
            continue
        if remote:
            info = fs.info(f"{root}/{path}")
            stamp = f"{info.get('size')}-{info.get('ETag') or info.get('LastModified')}"
        else:
            status = os.stat(os.path.join(root, path))
            stamp = f"{status.st_size}-{status.st_mtime_ns}"
        name = compose_accents(path)
        problem = id_problem(name)
        yield Item(ascii(name)[1:-1] if problem else name, storage.join(folder, path), stamp, problem=_refusal(problem))


def _refusal(problem: str | None) -> str:
    return f"its name is {problem}" if problem else ""


def _list_shards(shard_set: ShardSet) -> Iterator[Item]:
    for number, entry in enumerate(shard_set.manifest.shards):
        shard = Shard(shard_set, number)
        try:
            for position, sample in enumerate(shard.samples):
                metadata = {
                    key: value for key, value in sample.attributes.items() if isinstance(value, str | float | int)
                }
                yield Item(
                    sample.video_id,
                    f"{shard.uri}{_SHARD_MARK}{position}",
                    f"{entry.sha256}-{position}",
                    sample.captions,
                    metadata,
                    sample.start,
                    sample.end,
                )
        finally:
            shard.close()


def split_source(source: str) -> tuple[str, int] | None:
    """Tar and place of a source in a shard set; None of a file."""
    tar, mark, place = source.rpartition(_SHARD_MARK)
    return (tar, int(place)) if mark and tar.endswith(".tar") and place.isdecimal() else None


def _apart(items: list[Item]) -> Iterator[Item]:
    """Items with an id each: the second of an id becomes ``id#2``."""
    seen: dict[str, int] = {}
    for item in items:
        seen[item.id] = count = seen.get(item.id, 0) + 1
        yield item if count == 1 else replace(item, id=f"{item.id}#{count}")


def _add_metadata(items: list[Item], file: str) -> tuple[list[Item], list[str]]:
    rows = _read_rows(file)
    unused = set(rows)
    described = []
    for item in items:
        name = next((name for name in (item.id, os.path.splitext(item.id)[0]) if name in rows), None)
        if name is None:
            described.append(item)
            continue
        unused.discard(name)
        captions, values = rows[name]
        described.append(replace(item, captions=item.captions + captions, metadata={**item.metadata, **values}))
    lacking = len(items) - (len(rows) - len(unused))
    notes = [f"{file}: {len(unused)} rows of no video of the library: {list_some(sorted(unused), 3)}"] if unused else []
    if lacking:
        notes.append(f"{file}: no row for {lacking} of {len(items)} videos")
    return described, notes


def _read_rows(file: str) -> dict[str, tuple[tuple[str, ...], dict[str, Value]]]:
    """Captions and metadata by id."""
    try:
        text = storage.read_bytes(storage.resolve(file)).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--metadata: {file}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"--metadata: {file}: not UTF-8") from None
    rows: dict[str, tuple[tuple[str, ...], dict[str, Value]]] = {}
    for number, row in _csv_rows(text) if file.lower().endswith(".csv") else _json_rows(text, file):
        where = f"--metadata: {file}, line {number}"
        key = next((key for key in ID_KEYS if row.get(key) not in (None, "")), None)
        if key is None:
            raise UserError(f"{where}: says of no video what it is about; one of {', '.join(ID_KEYS)} is needed")
        name = compose_accents(str(row[key]))
        if name in rows:
            raise UserError(f"{where}: '{name}' has a row already")
        rows[name] = _read_row({k: v for k, v in row.items() if k != key}, where)
    return rows


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        yield reader.line_num, {key: _typed(value) for key, value in row.items() if key is not None and value}


def _typed(word: str) -> object:
    """A cell of a CSV as a number or a truth value where it is one."""
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(word)
        except ValueError:
            continue
        if str(number) == word or (kind is float and number == number and abs(number) != float("inf")):
            return number
    return word


def _json_rows(text: str, file: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = parse_strict_json(line)
        except ValueError as error:
            raise UserError(f"--metadata: {file}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"--metadata: {file}, line {number}: not an object")
        yield number, row


def _read_row(row: dict[str, object], where: str) -> tuple[tuple[str, ...], dict[str, Value]]:
    captions: list[str] = []
    values: dict[str, Value] = {}
    for key, value in row.items():
        if key in CAPTION_KEYS:
            texts = value if isinstance(value, list) else [value]
            captions += [str(text) for text in texts if str(text).strip()]
        elif isinstance(value, str | float | int | bool):
            values[key] = value
        elif value is not None:
            raise UserError(f"{where}: '{key}' is a list or an object; metadata are texts, numbers, true and false")
    return tuple(captions), values
