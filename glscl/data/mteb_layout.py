"""Read a video task in mteb's layout: parquet tables of queries, corpus and relevance (qrels), or one table of pairs.

mteb's standard layout has the tables ``corpus``, ``queries`` and ``qrels`` (or ``default``); one of the first two has a
column ``video``, the other ``text``. Most tasks of MVEB are one table with a ``video`` and a ``caption`` instead, which
are relevant to each other; their id is then the row's number, as in mteb. Which files a table has is said in the
folder's ``README.md``, as Hugging Face's hub has it, else by the names ``TABLE/SPLIT-*.parquet``.

Neither mteb nor its decoder is needed. A video becomes a file of its own, under its id.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from glscl.data.benchmarks.base import check_caption
from glscl.data.records import MTEB_SPLIT, list_some
from glscl.errors import UserError

CAPTION = "caption"
QRELS = ("qrels", "default")
QRELS_COLUMNS = ("query-id", "corpus-id", "score")
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_BATCH = 16
"""Rows whose videos are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Table:
    """The files of one table's split."""

    name: str
    files: tuple[Path, ...]

    def columns(self) -> list[str]:
        """Names of its columns."""
        return list(_open(self.files[0]).schema_arrow.names)

    def read(self, columns: Sequence[str]) -> dict[str, list[object]]:
        """These columns, whole. Raises `UserError`: one is missing, or a file is damaged."""
        return {
            name: [value for batch in self.batches(columns) for value in batch.column(name).to_pylist()]
            for name in columns
        }

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows in order, some at a time."""
        for path in self.files:
            file = _open(path)
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise UserError(f"{path}: no column '{missing[0]}'; it has {', '.join(file.schema_arrow.names)}")
            try:
                yield from file.iter_batches(_BATCH, columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                raise _damaged(path, error) from None


@dataclass(frozen=True, slots=True)
class Task:
    """The videos of a task with the texts that are relevant to each.

    Attributes:
        videos: the table that has them.
        ids: of the videos, in its order.
        captions: of each video.
        notes: for the user.
    """

    videos: Table
    ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def read_task(folder: str, split: str) -> Task:
    """Read all of a task but its videos.

    Raises `UserError`: no tables, a damaged one, a column missing, or a video to which no text is relevant.
    """
    tables = _find_tables(Path(folder), split)
    if {"corpus", "queries"} <= tables.keys():
        return _read_standard(folder, tables)
    pairs = [table for table in tables.values() if {"video", CAPTION} <= set(table.columns())]
    if len(pairs) != 1:
        raise UserError(
            f"{folder}: neither tables corpus, queries and qrels nor one table with columns video and {CAPTION}; "
            f"found {', '.join(sorted(tables))}"
        )
    texts = pairs[0].read([CAPTION])[CAPTION]
    captions = [(check_caption(text, f"{folder}, row {number}"),) for number, text in enumerate(texts)]
    return Task(pairs[0], tuple(map(str, range(len(texts)))), tuple(captions), ())


def write_files(task: Task, output: str, split: str) -> str:
    """Write the videos as files, and JSON lines of their captions; returns the name of the split there.

    Raises `UserError`: a row has no video's bytes, or the disk is full.
    """
    folder, name = Path(output), MTEB_SPLIT + split
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (video_id, captions, cell) in enumerate(zip(task.ids, task.captions, _cells(task.videos), strict=True)):
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes) or not data:
            raise UserError(f"{task.videos.files[0].parent}, row {number}: no bytes of a video")
        plain = video_id if _PLAIN.fullmatch(video_id) else f"row_{number}"
        file = f"{plain}{_extension(cell)}"
        (folder / file).write_bytes(data)
        rows.append({"video": file, "captions": captions})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return name


def _read_standard(folder: str, tables: dict[str, Table]) -> Task:
    of_corpus = "video" in tables["corpus"].columns()
    videos, texts = (tables[name] for name in (("corpus", "queries") if of_corpus else ("queries", "corpus")))
    if "video" not in videos.columns() or "text" not in texts.columns():
        raise UserError(f"{folder}: corpus and queries must be videos and texts, in either order (columns video, text)")
    known = dict(zip(_ids(texts), texts.read(["text"])["text"], strict=True))
    described: dict[str, list[str]] = {name: [] for name in _ids(videos)}
    for query, document in _relevant_pairs(folder, tables):
        video, text = (document, query) if of_corpus else (query, document)
        if video in described and text in known:
            described[video].append(text)
    _check_described(folder, described)
    captions = {name: tuple(check_caption(known[text], f"{folder}, text '{text}'") for text in texts_of)
                for name, texts_of in described.items()}  # fmt: skip
    return Task(videos, tuple(captions), tuple(captions.values()), tuple(_notes(described)))


def _check_described(folder: str, described: Mapping[str, Sequence[str]]) -> None:
    if bare := [name for name, texts in described.items() if not texts]:
        raise UserError(
            f"{folder}: {len(bare):,} of {len(described):,} videos have no relevant text ({list_some(bare, 3)}), and a "
            f"shard set holds described videos; score this task with mteb itself (docs/tools.md)"
        )


def _notes(described: Mapping[str, Sequence[str]]) -> Iterator[str]:
    uses = Counter(chain.from_iterable(described.values()))
    if several := sum(count > 1 for count in uses.values()):
        yield f"{several:,} texts are relevant to several videos: each is a caption of each of them"


def _relevant_pairs(folder: str, tables: Mapping[str, Table]) -> Iterator[tuple[str, str]]:
    """Query and document of every row of the qrels whose score is above 0."""
    qrels = next((tables[name] for name in QRELS if name in tables), None)
    if qrels is None:
        raise UserError(f"{folder}: no table {' or '.join(QRELS)}, which says what is relevant")
    read = qrels.read(QRELS_COLUMNS)
    for query, document, score in zip(*(read[name] for name in QRELS_COLUMNS), strict=True):
        if isinstance(score, int | float) and score > 0:
            yield str(query), str(document)


def _ids(table: Table) -> list[str]:
    """Ids of a table's rows. Raises `UserError`: there is no such column, or one is there twice."""
    column = next((name for name in ("id", "_id") if name in table.columns()), "id")
    ids = list(map(str, table.read([column])[column]))
    if len(set(ids)) < len(ids):
        raise UserError(f"{table.files[0].parent}: an id is there twice")
    return ids


def _cells(table: Table) -> Iterator[object]:
    for batch in table.batches(["video"]):
        yield from batch.column("video").to_pylist()


def _extension(cell: object) -> str:
    path = cell.get("path") if isinstance(cell, dict) else None
    found = os.path.splitext(path)[1].lower() if isinstance(path, str) else ""
    return found if re.fullmatch(r"\.[a-z0-9]{1,5}", found) else ".mp4"


def _find_tables(folder: Path, split: str) -> dict[str, Table]:
    """The tables of a folder that have the split, or one split only."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one as `hf download --repo-type dataset` writes it")
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    if not files:
        raise UserError(f"{folder}: no .parquet file at any depth; is it mteb's layout?")
    found = {}
    for name, splits in (_listed(folder, files) or _by_name(folder, files)).items():
        chosen = splits.get(split) or (next(iter(splits.values())) if len(splits) == 1 else [])
        if chosen:
            found[name] = Table(name, tuple(chosen))
    if not found:
        raise UserError(f"{folder}: no table has a split '{split}'")
    return found


def _listed(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """Files by table and split, as the page of the data set lists them; empty if it does not."""
    tables: dict[str, dict[str, list[Path]]] = {}
    for entry in _objects(_front_matter(folder / "README.md"), "configs"):
        for part in _objects(entry, "data_files"):
            patterns = part.get("path")
            wanted = patterns if isinstance(patterns, list) else [patterns]
            if matches := [path for path in files if any(_fits(folder, path, pattern) for pattern in wanted)]:
                tables.setdefault(str(entry.get("config_name")), {})[str(part.get("split"))] = matches
    return tables


def _front_matter(readme: Path) -> object:
    """The YAML that a data set's page begins with; None without."""
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    matter = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        return yaml.safe_load(matter[1]) if matter else None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{readme}: its first part is not YAML ({str(error).splitlines()[0]})") from None


def _objects(value: object, key: str) -> list[dict[str, object]]:
    """The objects in the list under a key of an object, if that is what it is."""
    inner = value.get(key) if isinstance(value, dict) else None
    return [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []


def _fits(folder: Path, path: Path, pattern: object) -> bool:
    return fnmatch.fnmatchcase(path.relative_to(folder).as_posix(), str(pattern))


def _by_name(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """Files by their folder's name and the part of their own before the first dash: ``corpus/test-00000-of-00001``."""
    tables: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        table = path.parent.name if path.parent != folder else "default"
        tables.setdefault(table, {}).setdefault(re.split(r"[-.]", path.name)[0], []).append(path)
    return tables


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: no sound parquet file ({str(error).splitlines()[0][:120]})")
