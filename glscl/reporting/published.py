"""Published figures: a CSV of results of papers, one row per method and direction."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from glscl.errors import UserError
from glscl.system.storage import read_bytes

COLUMNS = ("method", "backbone", "dataset", "direction", "recall_at_1", "recall_at_5", "recall_at_10")
NAMES = ("method", "venue", "backbone", "note", "source", "dataset")

PACKAGED = str(Path(__file__).parent / "published_results.csv")
"""Figures of the papers; each row names its source."""


@dataclass(frozen=True)
class PublishedRow:
    """A method's published recalls in per cent, by level (1 for R@1), on one data set."""

    method: str
    venue: str
    backbone: str
    note: str
    source: str
    dataset: str
    text_to_video: Mapping[int, float] = field(default_factory=dict)
    video_to_text: Mapping[int, float] = field(default_factory=dict)


def read_published(uri: str) -> list[PublishedRow]:
    """Read a CSV with the columns ``method, backbone, dataset, direction, recall_at_1, recall_at_5, recall_at_10``.

    Further recalls (``recall_at_20``), ``venue``, ``note`` (say, the post-processing) and ``source`` are optional;
    ``direction`` is ``text_to_video`` or ``video_to_text``.

    Raises:
        UserError: the file is missing, a column is missing, or a value is no number.
    """
    try:
        text = read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file with published figures") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}: not UTF-8 text ({error})") from None
    reader = csv.DictReader(io.StringIO(text))
    columns = list(reader.fieldnames or [])
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(f"{uri}: no column {', '.join(missing)}; needed are {', '.join(COLUMNS)}")
    levels = {name: int(level[1]) for name in columns if (level := re.fullmatch(r"recall_at_(\d+)", name))}
    published: dict[tuple[str, ...], PublishedRow] = {}
    for row in reader:
        direction, recalls = _read_recalls(row, levels, f"{uri}:{reader.line_num}")
        method, venue, backbone, note, source, dataset = key = tuple(row.get(name) or "" for name in NAMES)
        before = published.get(key, PublishedRow(method, venue, backbone, note, source, dataset))
        published[key] = (
            replace(before, text_to_video=recalls)
            if direction == "text_to_video"
            else replace(before, video_to_text=recalls)
        )
    return list(published.values())


def _read_recalls(row: Mapping[str, str], levels: Mapping[str, int], line: str) -> tuple[str, dict[int, float]]:
    """The direction of a row, and its recalls by level."""
    direction = row["direction"]
    if direction not in ("text_to_video", "video_to_text"):
        raise UserError(f"{line}: direction is '{direction}', not text_to_video or video_to_text")
    try:
        return direction, {level: float(row[name]) for name, level in levels.items() if row[name]}
    except ValueError as error:
        raise UserError(f"{line}: {error}") from None


def for_domain(rows: Sequence[PublishedRow], domain: str) -> list[PublishedRow]:
    """The rows on the data set that ``domain`` is named after: ``msrvtt_1k_a`` finds ``MSR-VTT``."""

    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name.lower()))

    return [row for row in rows if plain(row.dataset) and plain(domain).startswith(plain(row.dataset))]
