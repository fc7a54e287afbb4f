"""Sweeps and trials that a test makes up."""

from __future__ import annotations

from typing import Any

from glscl.runs.sets import locate_sets
from tune.analysis import analyse
from tune.objective import Score, Setup
from tune.options import SweepConfig
from tune.results import SweepResults
from tune.trials import Trial
from tune.winner import SeedScore

STEPS, FIRST = 20, 5


def sweep(**changes: Any) -> SweepConfig:
    """Two toy domains, two keys."""
    values: dict[str, Any] = {
        "name": "fake",
        "storage": "nowhere",
        "label": "made-up scores",
        "domains": {name: {"toy": {"train": 8, "dev": 4}} for name in ("toy_clips", "toy_stories")},
        "run": {"model": {"clip": "glscl-tiny"}, "training": {"max_steps": STEPS}},
        "space": {
            "model.heads.glscl.tau": {"loguniform": (0.5, 20.0)},
            "training.lr_head": {"loguniform": (1e-5, 1e-2)},
        },
        "trials": 4,
    }
    return SweepConfig.model_validate(values | changes)


def setup(**changes: Any) -> Setup:
    """Of `sweep`."""
    config = sweep(**changes)
    return Setup(config, locate_sets(config), STEPS, FIRST)


def trial(name: str, state: Any, scores: dict[int, tuple[float, float]], tau: float = 1.0, **changes: Any) -> Trial:
    """A trial of `sweep` with both domains' scores by step; the objective is their mean."""
    history = tuple(
        Score(step, (clips + stories) / 2, {"toy_clips": clips, "toy_stories": stories})
        for step, (clips, stories) in scores.items()
    )
    return Trial(name, {"model.heads.glscl.tau": tau, "training.lr_head": 1e-3}, state, history, **changes)


def many(count: int = 12) -> list[Trial]:
    """Trials whose first score follows tau, a third of them finished; the winner is the last that finished."""
    found = []
    for number in range(count):
        tau = 0.5 * 40 ** (number / (count - 1))
        scores = {FIRST: (2.0 * number, 1.0 * number)}
        if number % 3 == 0:
            scores |= {STEPS: (3.0 * number, 20.0 - number)}
        found.append(trial(f"t{number}", "finished" if number % 3 == 0 else "stopped", scores, tau))
    return found


def make_sweep() -> SweepResults:
    """Results of a finished sweep over all of GLSCL's keys."""
    ready = setup(spaces=["glscl"], space={}, trials=12)
    trials = []
    for number, own in enumerate(many(12)):
        values = {key: draw.samples()[number % 3] for key, draw in ready.sweep.searched.items()}
        trials.append(
            Trial(own.name, values, own.state, own.history, seconds=60.0 if own.state == "finished" else None)
        )
    rows = [SeedScore(STEPS, 10.0 + n, {"toy_clips": 12.0, "toy_stories": 8.0}, seed=n) for n in (2, 3, 4)]
    return analyse(ready, trials, {"winner": rows, "default": rows[::-1]}, "# the winner\nname: fake-best\n")
