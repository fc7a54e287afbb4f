"""The registry of readers, the annotation folder, and the checks that readers share."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from glscl.data.records import MOST_SECONDS, Record, list_some, parse_strict_json
from glscl.errors import UserError
from glscl.system import storage

T = TypeVar("T")
FLAG = "--annotations"
MAX_BYTES = 2 << 30
MAX_CAPTION = 1_000_000  # most characters of a caption (a tokenizer reads the first hundred or so)


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The records of one split."""

    records: list[Record]  # one per video, in the protocol's order
    sources: list[str]  # the files that were read
    notes: list[str]  # what the files disagree about, in sentences for the user


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of an annotation file, and where it stands, for messages."""

    values: Mapping[str, object]
    where: str

    def get(self, key: str, kind: type[T]) -> T:
        """The value of a key; a `UserError` says that it is missing or something else than a ``kind``."""
        if key not in self.values:
            raise UserError(f"{self.where}: '{key}' is missing")
        return expect(self.values[key], kind, f"{self.where}, '{key}'")

    def seconds(self, key: str) -> float:
        """The value of a key as seconds; a `UserError` says that it is missing or no such number."""
        value: object = self.get(key, object)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_SECONDS:
            raise UserError(f"{self.where}, '{key}': expected seconds (a number from 0 up), found {str(value)[:40]}")
        return float(value)

    def entries(self, key: str) -> Iterator[Entry]:
        """The objects of the list under a key."""
        return _entries(self.get(key, list), f"{self.where}, {key}")


def _entries(values: list[object], where: str) -> Iterator[Entry]:
    for index, value in enumerate(values):
        here = f"{where}[{index}]"
        yield Entry(expect(value, dict, here), here)


@dataclass(slots=True)
class Annotations:
    """An annotation folder and the files of it that were read; a `UserError` names a file and line that is wrong."""

    folder: str
    sources: list[str] = field(default_factory=list)

    def path(self, name: str) -> str:
        """Address of one file of the folder."""
        return storage.join(self.folder, name)

    def has(self, name: str) -> bool:
        """True if the folder holds the file."""
        return storage.exists(self.path(name))

    def first(self, *names: str) -> str:
        """The first of several alternative file names that the folder holds."""
        for name in names:
            if self.has(name):
                return name
        raise UserError(f"{self.folder}: there is no {' or '.join(names)}; {FLAG} names the folder that holds it")

    def raw(self, name: str) -> bytes:
        """Read one file."""
        path = self.path(name)
        try:
            if (size := storage.size(path)) > MAX_BYTES:
                raise UserError(
                    f"{path}: {size:,} bytes are no annotation file; {FLAG} names the folder of the right one"
                )
            data = storage.read_bytes(path)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: no such file; {FLAG} names the folder that holds {name}") from None
        except (IsADirectoryError, PermissionError) as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        self.sources.append(path)
        return data

    def text(self, name: str) -> str:
        """Read one UTF-8 file, with or without a byte order mark."""
        data = self.raw(name)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise UserError(f"{self.path(name)}, line {line}: not UTF-8; convert the file to UTF-8") from None

    def json(self, name: str, kind: type[T]) -> T:
        """Read one JSON file whose outermost value is a ``kind``."""
        return expect(parse_json(self.text(name), self.path(name)), kind, self.path(name))

    def entries(self, name: str) -> Iterator[Entry]:
        """Read one JSON file that is a list of objects."""
        return _entries(self.json(name, list), f"{self.path(name)}, ")

    def lines(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield ``(line number, line)`` for the lines of a text file that are not blank."""
        # not splitlines(): a sentence may hold U+2028 or U+0085, which are no line ends in these files
        for count, line in enumerate(self.text(name).split("\n"), start=1):
            if line.strip():
                yield count, line.rstrip("\r")

    def ids(self, name: str) -> list[str]:
        """Read a list of video ids, one a line; repeated ids count once."""
        return list(dict.fromkeys(line.strip() for _, line in self.lines(name)))

    def rows(self, name: str, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield ``(line number, row)`` of a comma-separated file with a header, in which these columns must be."""
        path = self.path(name)
        reader = csv.reader(io.StringIO(self.text(name), newline=""), strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            if repeated := sorted({column for column in header if header.count(column) > 1}):
                raise UserError(f"{path}, line 1: several columns are called '{repeated[0]}'")
            for column in columns:
                if column not in header:
                    raise UserError(f"{path}, line 1: no column '{column}'; the columns are {', '.join(header) or '-'}")
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} fields under {len(header)} columns; "
                        "put quotes around texts with commas"
                    )
                yield reader.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None

    def result(self, records: Iterable[Record], notes: Iterable[str] = ()) -> ReadResult:
        """Put the records together with the files that they came from."""
        return ReadResult(list(records), list(self.sources), list(notes))

    def listed(self, records: Mapping[str, Record], name: str, ids: Iterable[str], *, whole: bool) -> ReadResult:
        """The records in the order of a protocol's list of ids, which the file ``name`` holds.

        Ids without a record and, if the list is meant to name the ``whole``, records without an id make a note.
        """
        wanted = dict.fromkeys(ids)
        notes = []
        if bare := [video_id for video_id in wanted if video_id not in records]:
            notes.append(f"{len(bare)} ids of {name} have no annotation and are left out: {list_some(bare)}")
        if whole and (extra := [video_id for video_id in records if video_id not in wanted]):
            notes.append(f"{len(extra)} annotated videos are not in {name} and are left out: {list_some(extra)}")
        return self.result([records[video_id] for video_id in wanted if video_id in records], notes)


Reader = Callable[[Annotations, str], ReadResult]
READERS: dict[str, Benchmark] = {}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One data set's reader."""

    name: str
    splits: tuple[str, ...]  # those of the protocol; empty where the files themselves name them
    version: int  # raised whenever the same files would give other records
    read: Reader  # annotations and split to records, unchecked; call ``glscl.data.benchmarks.read`` instead


def register(name: str, splits: Iterable[str] = (), *, version: int) -> Callable[[Reader], Reader]:
    """Make a reader known by its name."""

    def add(read: Reader) -> Reader:
        if name in READERS:
            raise ValueError(f"two readers are called '{name}'")
        READERS[name] = Benchmark(name, tuple(splits), version, read)
        return read

    return add


def parse_json(text: str, where: str) -> object:
    """Parse JSON text; a `UserError` says that it is none, or says something twice."""
    try:
        return parse_strict_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def expect(value: object, kind: type[T], where: str) -> T:
    """The value, if it is a ``kind``; else a `UserError`."""
    if not isinstance(value, kind):
        names: dict[type, str] = {dict: "an object {...}", list: "a list [...]", str: "a text"}
        raise UserError(f"{where}: expected {names.get(kind, kind.__name__)}, found {type(value).__name__}")
    return value


def check_caption(text: object, where: str) -> str:
    """A caption without surrounding white space; a `UserError` says that it is none, or cannot be written as UTF-8."""
    stripped = expect(text, str, where).strip()
    if not stripped:
        raise UserError(f"{where}: empty caption; write one or remove the entry")
    if len(stripped) > MAX_CAPTION:
        raise UserError(f"{where}: a caption of {len(stripped):,} characters; shorten it or remove the entry")
    try:
        stripped.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the caption holds half of a surrogate pair; write the file as UTF-8") from None
    return stripped


def join_sentences(sentences: Iterable[object], where: str) -> str:
    """Join sentences, each stripped, by single spaces; empty ones are left out, but one must be left."""
    return check_caption(" ".join(filter(None, (expect(s, str, where).strip() for s in sentences))), where)
