"""The record that an export has of its model: how it was trained and how it scored, without anybody's addresses."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import Field, ValidationError

from glscl.errors import UserError
from glscl.evaluation.locate import FOLDER
from glscl.evaluation.results import RESULTS, Results, Section, Test, parse_results
from glscl.evaluation.saved import ModelCard
from glscl.options.mistakes import first_mistake
from glscl.system import storage
from glscl.version import __version__

RECORD = "record.json"
_CONFIG, _EVALUATIONS = "config.json", ("", "eval")  # of a run directory; where its results are
_KEPT = ("seed", "model", "data", "loss", "training", "evaluation")  # sections of a run's configuration
_NOT_KEPT = ("cache_dir", "storage", "storage_path")
_ADDRESS = re.compile(r"(/|~|\./|\.\./|[a-z0-9]+://)")
T = TypeVar("T")


class Record(Section):
    """How a model was trained, and its results."""

    glscl: str = __version__
    exported: str
    """ISO 8601."""
    run: str
    step: int
    seed: int
    train_domains: tuple[str, ...]
    validation: dict[str, float] = Field(default_factory=dict)
    git_commit: str | None = None
    """Of the code that scored it."""
    config: dict[str, object] = Field(default_factory=dict)
    """Sections of the run's configuration; of addresses, the last part."""
    tests: list[Test] = Field(default_factory=list)


def find_record(folder: str, card: ModelCard) -> Record:
    """The record of a model: that of an export, or of the run directory that its folder lies in, and evaluations since.

    Raises `UserError`: a file of it is damaged.
    """
    is_inside = os.path.basename(folder.rstrip("/")) == FOLDER
    directory = os.path.dirname(folder.rstrip("/")) if is_inside else folder
    scored = [results for part in _EVALUATIONS if (results := _read_results(storage.join(directory, part, RESULTS)))]
    record = _read_record(storage.join(folder, RECORD)) or Record(
        exported="",
        run=card.run,
        step=card.step,
        seed=card.seed,
        train_domains=card.train_domains,
        validation=card.validation,
        git_commit=scored[0].git_commit if scored else None,
        config=_read_config(storage.join(directory, _CONFIG)),
    )
    tests = {test.name: test for test in record.tests}
    tests |= {test.name: _published(test) for results in scored for test in results.tests}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return record.model_copy(update={"exported": now, "glscl": __version__, "tests": list(tests.values())})


def _read_record(where: str) -> Record | None:
    if not storage.exists(where):
        return None
    try:
        return Record.model_validate(storage.read_json(where))
    except ValidationError as error:
        raise UserError(f"{where}: not the record of an export ({first_mistake(error, 'top level')})") from None


def _read_results(where: str) -> Results | None:
    return parse_results(storage.read_json(where)) if storage.exists(where) else None


def _published(test: Test) -> Test:
    """A test without what is for the disk it was made on, or too much: addresses, lists of videos, examples."""
    test = test.without_queries()
    changes: dict[str, object] = {"shards": "", "quarantine": [], "repaired": [], "examples": []}
    for name in ("without_leaked", "several_relevant"):
        if (part := getattr(test, name)) is not None:
            changes[name] = part.model_copy(update={"list": shorten_addresses(part.list)})
    return test.model_copy(update=changes)


def _read_config(where: str) -> dict[str, object]:
    if not storage.exists(where):
        return {}
    values = storage.read_json(where)
    return {key: shorten_addresses(values[key]) for key in _KEPT if key in values} if isinstance(values, dict) else {}


def shorten_addresses(value: T) -> T:
    """The same with only the last part of every path and address in it."""
    shortened: object = value
    if isinstance(value, dict):
        shortened = {key: shorten_addresses(inner) for key, inner in value.items() if key not in _NOT_KEPT}
    elif isinstance(value, list | tuple):
        shortened = type(value)(map(shorten_addresses, value))
    elif isinstance(value, str) and _ADDRESS.match(value):
        shortened = value.rstrip("/").rsplit("/", 1)[-1]
    return shortened  # type: ignore[return-value]
