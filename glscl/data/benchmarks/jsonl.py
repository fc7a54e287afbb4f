"""A user's own videos, described in JSON lines or CSV, in UTF-8.

A row has ``video_id`` (the file's name without extension) or ``video`` (its path under the video folder), and
``caption`` or ``captions``; ``start``, ``end``, ``duration`` (seconds) and ``attributes`` are optional. In CSV,
``captions`` and ``attributes`` hold JSON. Rows of the same video add captions to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from glscl.data.benchmarks.base import FLAG, Annotations, Entry, ReadResult, check_caption, expect, parse_json, register
from glscl.data.records import Record, list_some
from glscl.errors import UserError, did_you_mean
from glscl.system import storage

FIELDS = ("video_id", "video", "caption", "captions", "start", "end", "duration", "attributes")
SECONDS = ("start", "end", "duration")


def read_rows(kind: str, given: Annotations, split: str) -> ReadResult:
    """Read ``<folder>/<split>.jsonl`` (or ``.csv``), or the file itself where the address ends in that extension."""
    files, name = _find_file(kind, given.folder, split)
    videos: dict[str, tuple[Record, int]] = {}  # each with its first line
    unknown: dict[str, None] = {}
    for line, row in (_json_rows if kind == "jsonl" else _csv_rows)(files, name):
        record = _record(row)
        unknown.update((key, None) for key in row.values if key not in FIELDS)
        first, first_line = videos.get(record.video_id, (record, line))
        if first is not record:
            _same_facts(first, record, row.where, first_line)
            record = replace(first, captions=first.captions + record.captions)
        videos[record.video_id] = (record, first_line)
    notes = [f"fields that are not used: {list_some([repr(key) for key in unknown])}"] if unknown else []
    return files.result([record for record, _ in videos.values()], notes)


def _find_file(kind: str, address: str, split: str) -> tuple[Annotations, str]:
    """The folder, and the name of the split's file in it; a `UserError` says that there is no such file."""
    folder, name = address, f"{split}.{kind}"
    if address.lower().endswith(f".{kind}"):
        folder, _, name = storage.resolve(address).rpartition("/")
        folder = folder or "/"
    files = Annotations(folder)
    if not files.has(name):
        names = storage.list_names(folder)
        splits = [known.removesuffix(f".{kind}") for known in names if known.endswith(f".{kind}")]
        hint = f"its splits are {', '.join(splits)}" if splits else f"{FLAG} names a folder of <split>.{kind} files"
        raise UserError(f"{files.path(name)}: no such file{did_you_mean(split, splits)}; {hint}")
    return files, name


def _json_rows(files: Annotations, name: str) -> Iterator[tuple[int, Entry]]:
    for line, text in files.lines(name):
        where = f"{files.path(name)}, line {line}"
        row = expect(parse_json(text, where), dict, where)
        yield line, Entry({key: value for key, value in row.items() if value is not None}, where)


def _csv_rows(files: Annotations, name: str) -> Iterator[tuple[int, Entry]]:
    for line, cells in files.rows(name, []):
        where = f"{files.path(name)}, line {line}"
        row: dict[str, object] = {}
        for key, cell in cells.items():
            if key in ("captions", "attributes") and cell.strip():
                row[key] = parse_json(cell, f"{where}, '{key}'")
            elif key in SECONDS and cell.strip():
                try:
                    row[key] = float(cell)
                except ValueError:
                    raise UserError(f"{where}, '{key}': expected seconds, found {cell!r}") from None
            elif cell.strip() or key == "caption":  # an empty cell is an absent value; an empty caption is a mistake
                row[key] = cell
        if "captions" in row and not cells.get("caption", "").strip():
            row.pop("caption", None)
        yield line, Entry(row, where)


def _one_of(row: Entry, one: str, other: str) -> str:
    """Which of two alternative fields the row has."""
    if (one in row.values) == (other in row.values):
        unknown = [key for key in row.values if key not in FIELDS]
        hints = [f"'{key}'{hint}" for key in unknown if (hint := did_you_mean(key, FIELDS))]
        typo = f" (unknown field {'; '.join(hints)})" if hints else ""
        raise UserError(f"{row.where}: give either '{one}' or '{other}'{typo}")
    return one if one in row.values else other


def _record(row: Entry) -> Record:
    key = _one_of(row, "video_id", "video")
    video_id = row.get(key, str).strip()
    if not video_id:
        raise UserError(f"{row.where}: '{key}' is empty")
    key = _one_of(row, "caption", "captions")
    texts = [row.values["caption"]] if key == "caption" else row.get("captions", list)
    captions = tuple(check_caption(text, f"{row.where}, '{key}'") for text in texts)
    if not captions:
        raise UserError(f"{row.where}: 'captions' is empty")
    seconds = {key: row.seconds(key) for key in SECONDS if key in row.values}
    if seconds.get("end", float("inf")) <= (start := seconds.get("start", 0.0)):
        raise UserError(f"{row.where}: 'end' ({seconds['end']:g}) is not after 'start' ({start:g})")
    attributes = row.get("attributes", dict) if "attributes" in row.values else {}
    return Record(video_id, captions, attributes=attributes, **seconds)


def _same_facts(first: Record, again: Record, where: str, first_line: int) -> None:
    for name in (*SECONDS, "attributes"):
        if getattr(first, name) != getattr(again, name):
            raise UserError(
                f"{where}: '{first.video_id}' has another '{name}' than on line {first_line}; "
                "one video is one part of one file: cut its parts into files of their own"
            )


for _kind in ("jsonl", "csv"):
    register(_kind, version=1)(partial(read_rows, _kind))
