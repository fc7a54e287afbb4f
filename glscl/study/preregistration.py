"""The pre-registration of a study: what it asks and how it will decide, written before its first cell is trained.

``preregistration.json`` is written anew until the first cell begins, and then never again. Whoever wants proof of its
date publishes its hash, which is printed when it is written. The report compares it with the configuration that it
reports, key by key, and says whether they agree. Where work is done and how fast (``FREE_KEYS`` of a run, storage) is
no part of it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC
from glscl.evaluation.results import Section
from glscl.options.differences import differing_keys
from glscl.study.detectable import Planned
from glscl.study.grid import CELLS
from glscl.study.options import StudyConfig
from glscl.study.results import Preregistration
from glscl.study.statistics import LEVEL
from glscl.system import storage
from glscl.training.checkpoint.format import FREE_KEYS
from glscl.training.driver.outputs import git_commit
from glscl.version import __version__

FILE = "preregistration.json"
_UNREGISTERED = {
    "name", "storage", "root", "concurrent", "beside", "examples", "keep_models", "label",
    "pilot", "assumed_sd", "assumed_query_sd",
    "equivalence_margin", "comparisons",  # beside the plan
}  # fmt: skip
_FREE_OF_RUN = {*FREE_KEYS, "evaluation.memory_mb"} - {"evaluation"}  # evaluation decides what is measured


class Registered(Section):
    """The file."""

    written: str  # ISO 8601
    glscl: str
    git_commit: str | None
    study: str
    plan: dict[str, object]
    comparisons: list[tuple[str, str]]
    endpoints: dict[str, object]
    equivalence_margin: float | None
    detectable: dict[str, float]  # points, by scope; not compared
    sha256: dict[str, str]  # of plan, comparisons, endpoints and equivalence_margin


def register(study: StudyConfig, planned: Sequence[Planned]) -> str | None:
    """Write the file, and return the hash of its bytes; None once a cell has begun: then it is too late."""
    where = storage.join(study.directory, FILE)
    if storage.exists(storage.join(study.directory, CELLS)):
        return None
    values = _registered_values(study)
    registered = Registered.model_validate(
        {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "glscl": __version__,
            "git_commit": git_commit(),
            "study": study.name,
            **values,
            "detectable": {one.scope: one.detectable for one in planned},
            "sha256": {name: _hash(value) for name, value in values.items()},
        }
    )
    storage.write_json(where, registered.model_dump(mode="json"))
    return hashlib.sha256(storage.read_bytes(where)).hexdigest()


def check_registration(study: StudyConfig) -> Preregistration | None:
    """Compare the file with a configuration; None if nothing was registered."""
    where = storage.join(study.directory, FILE)
    if not storage.exists(where):
        return None
    registered = Registered.model_validate(storage.read_json(where))
    current = _registered_values(study)
    saved: dict[str, object] = {
        "plan": registered.plan,
        "comparisons": [list(pair) for pair in registered.comparisons],
        "endpoints": registered.endpoints,
        "equivalence_margin": registered.equivalence_margin,
    }
    differences = differing_keys(saved, current, ())
    differences += [
        f"{name}: the file was changed after it was written"
        for name, value in saved.items()
        if _hash(value) != registered.sha256.get(name)
    ]
    return Preregistration(
        written=registered.written,
        sha256=hashlib.sha256(storage.read_bytes(where)).hexdigest(),
        differences=differences,
        detectable=registered.detectable,
    )


def _registered_values(study: StudyConfig) -> dict[str, object]:
    """What is registered and compared, as plain values."""
    plan = study.model_dump(mode="json", exclude=_UNREGISTERED)
    for run in _runs_of(plan):
        _drop_free(run)
    return {
        "plan": plan,
        "comparisons": [list(pair) for pair in study.pairs],
        "endpoints": {
            "metric": MAIN_METRIC,
            "directions": list(DIRECTIONS),
            "families": "means over cells, single cells; each of a condition and direction, by Holm",
            "level": round(1 - LEVEL, 6),
        },
        "equivalence_margin": study.equivalence_margin,
    }


def _runs_of(plan: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every piece of a run's configuration in a study's."""
    yield from (plan["run"], plan["union_run"], *plan["conditions"].values())
    yield from (part["run"] for part in (*plan["variants"].values(), *plan["domains"].values()))
    if plan["pretraining"]:
        yield plan["pretraining"]["run"]


def _drop_free(run: dict[str, Any], prefix: str = "") -> None:
    """Take out of a piece of a run's configuration the keys that decide nothing of what is learnt and measured."""
    for key in list(run):
        if prefix + key in _FREE_OF_RUN:
            del run[key]
        elif isinstance(run[key], dict):
            _drop_free(run[key], f"{prefix}{key}.")


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
