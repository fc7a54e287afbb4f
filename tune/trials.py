"""What is known of a sweep's trials, kept in its directory as ``trials.json``: the report and a restart read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from glscl.system import storage
from tune.objective import Score, history, runs, trials_folder
from tune.options import SweepConfig
from tune.trial import Setup, read_trial

FILE = "trials.json"
State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial.

    Attributes:
        name: of its folder under ``trials/``.
        values: of the searched keys.
        state: ``stopped`` is early, by the scheduler; ``running`` includes what an interruption has left.
        history: its scored steps.
        cost: multiply-adds of its head per pair, where that is an objective.
        seconds: of the trial, where it finished.
        error: why it failed.
    """

    name: str
    values: dict[str, Any]
    state: State
    history: tuple[Score, ...]
    cost: int | None = None
    seconds: float | None = None
    error: str = ""

    @property
    def last(self) -> Score | None:
        """Its last score."""
        return self.history[-1] if self.history else None

    def score(self) -> float:
        """Its last objective; minus infinity if it has none."""
        return self.last.objective if self.last else -math.inf

    def at(self, step: int) -> Score | None:
        """Its score at a step."""
        return next((score for score in self.history if score.step == step), None)


def from_ray(
    setup: Setup,
    trials: Sequence[Any],
    known: Mapping[str, Trial],
    reported: Mapping[str, Mapping[int, Score]],
    ending: Mapping[str, str],
) -> list[Trial]:
    """Ray Tune's trials as they stand.

    Args:
        setup: the sweep's.
        trials: Ray Tune's.
        known: by name, those that ended before this start of the driver, whose reports it has not seen.
        reported: by name and step, what this driver has seen.
        ending: by name, the state of those of which Ray Tune has just said that they end, and not yet written so.
    """
    found = []
    for trial in trials:
        name = trial.trial_id
        ray_state = ending.get(name) or trial.status
        if name in known:
            found.append(known[name])
            continue
        ended = ray_state in ("TERMINATED", "ERROR")
        done = read_trial(setup.sweep, name) if ended else None
        last = (trial.last_result or {}).get("step")
        scores: Sequence[Score] = list(reported.get(name, {}).values())
        if ended and not scores and last is not None:  # ended in the moment before an interruption
            folder = storage.join(trials_folder(setup.sweep), name)
            configs = runs(setup.sweep, setup.sets, folder, trial.config, setup.sweep.seed)
            scores = [score for score in history(setup.sweep, configs) if score.step <= last]
        state: State = "running"
        if ray_state == "ERROR":
            state = "failed"
        elif ray_state == "TERMINATED":
            state = "finished" if scores and scores[-1].step >= setup.steps else "stopped"
        error = (done or {}).get("error") or (_reason(trial) if state == "failed" else "")
        cost = (trial.last_result or {}).get("cost")
        seconds = done["seconds"] if done else None
        found.append(Trial(name, dict(trial.config), state, tuple(scores), cost, seconds, error))
    return found


def _reason(trial: Any) -> str:
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1][:300] if lines else "its process died"


def write_trials(sweep: SweepConfig, trials: Iterable[Trial]) -> None:
    """Keep what is known."""
    storage.write_json(storage.join(sweep.directory, FILE), [asdict(trial) for trial in trials])


def read_trials(sweep: SweepConfig) -> list[Trial]:
    """What is known; empty before the first trial has ended."""
    where = storage.join(sweep.directory, FILE)
    if not storage.exists(where):
        return []
    return [
        Trial(**{**entry, "history": tuple(Score(**score) for score in entry["history"])})
        for entry in storage.read_json(where)
    ]


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The finished trial with the highest objective at the last step; of equals the first."""
    return max((trial for trial in trials if trial.state == "finished"), key=Trial.score, default=None)
