"""The trials of a sweep as its directory keeps them: each one's ``trial.json``, and ``trials.json`` of all.

The report and a restart read them, so that neither opens Ray Tune's state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from glscl.system import storage
from tune.objective import Score, Setup, build_runs, read_history, trials_folder
from tune.options import SweepConfig
from tune.space import Value, Values

FILE = "trials.json"
RECORD = "trial.json"
State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What a trial leaves in its folder when it has ended; ``seconds`` is None where it was stopped."""

    values: dict[str, Value]
    history: tuple[Score, ...]
    seconds: float | None
    error: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of values that was tried; ``name`` is that of its folder under ``trials/``."""

    name: str
    values: dict[str, Value]
    state: State
    """``stopped`` is early, by the scheduler; ``running`` includes what an interruption has left."""
    history: tuple[Score, ...]
    cost: int | None = None
    """Multiply-adds of its head per pair, where that is an objective."""
    seconds: float | None = None
    """Where it finished."""
    error: str = ""

    @property
    def last(self) -> Score | None:
        """Its last score."""
        return self.history[-1] if self.history else None

    @property
    def has_ended(self) -> bool:
        """Whether it finished or was stopped; a failed trial is tried again."""
        return self.state in ("finished", "stopped")

    def score(self) -> float:
        """Its last objective; minus infinity if it has none."""
        return self.last.objective if self.last else -math.inf

    def at(self, step: int) -> Score | None:
        """Its score at a step."""
        return next((score for score in self.history if score.step == step), None)


_RECORD = TypeAdapter(TrialRecord)
_TRIALS = TypeAdapter(list[Trial])


def read_record(sweep: SweepConfig, name: str) -> TrialRecord | None:
    """Read what a trial left when it ended; None if it has not."""
    where = storage.join(trials_folder(sweep), name, RECORD)
    return _RECORD.validate_python(storage.read_json(where)) if storage.exists(where) else None


def write_record(
    sweep: SweepConfig, name: str, values: Values, scores: Sequence[Score], seconds: float | None, error: str
) -> None:
    """Mark a trial as ended: finished, stopped or, with an ``error``, failed for good."""
    record = TrialRecord(dict(values), tuple(scores), None if seconds is None else round(seconds, 2), error)
    storage.write_json(storage.join(trials_folder(sweep), name, RECORD), asdict(record))


def write_trials(sweep: SweepConfig, trials: Iterable[Trial]) -> None:
    """Write what is known of all trials."""
    storage.write_json(storage.join(sweep.directory, FILE), [asdict(trial) for trial in trials])


def read_trials(sweep: SweepConfig) -> list[Trial]:
    """Read what is known of all trials; empty before the first has ended."""
    where = storage.join(sweep.directory, FILE)
    return _TRIALS.validate_python(storage.read_json(where)) if storage.exists(where) else []


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """Return the finished trial with the highest objective at the last step; of equals the first."""
    return max((trial for trial in trials if trial.state == "finished"), key=Trial.score, default=None)


def from_ray(
    setup: Setup,
    trials: Iterable[Any],
    known: Mapping[str, Trial],
    reported: Mapping[str, Mapping[int, Score]],
    ending: Mapping[str, str],
) -> list[Trial]:
    """Convert Ray Tune's trials as they stand, with what this start of the driver knows beside them.

    Args:
        known: by name, the trials that ended before this start, whose reports it has not seen.
        reported: by name and step, the scores that it has seen.
        ending: by name, the final state of trials whose end Ray Tune has just reported and not yet written.
    """
    return [
        known.get(trial.trial_id)
        or _convert(setup, trial, reported.get(trial.trial_id, {}), ending.get(trial.trial_id) or trial.status)
        for trial in trials
    ]


def _convert(setup: Setup, trial: Any, reported: Mapping[int, Score], ray_state: str) -> Trial:
    name = trial.trial_id
    ended = ray_state in ("TERMINATED", "ERROR")
    record = read_record(setup.sweep, name) if ended else None
    result = trial.last_result or {}
    scores = list(reported.values())
    if ended and not scores and (last := result.get("step")) is not None:
        # It ended in the moment before an interruption: its scores are in the logs of its trainings.
        folder = storage.join(trials_folder(setup.sweep), name)
        runs = build_runs(setup.sweep, setup.sets, folder, trial.config, setup.sweep.seed)
        scores = [score for score in read_history(setup.sweep, runs) if score.step <= last]
    state = _state_of(ray_state, scores, setup.steps)
    error = (record.error if record else "") or (_error_of(trial) if state == "failed" else "")
    seconds = record.seconds if record else None
    return Trial(name, dict(trial.config), state, tuple(scores), result.get("cost"), seconds, error)


def _state_of(ray_state: str, scores: Sequence[Score], steps: int) -> State:
    """Translate Ray Tune's state: it terminates both what finished and what a scheduler stopped."""
    if ray_state == "ERROR":
        return "failed"
    if ray_state == "TERMINATED":
        return "finished" if scores and scores[-1].step >= steps else "stopped"
    return "running"


def _error_of(trial: Any) -> str:
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1][:300] if lines else "its process died"
