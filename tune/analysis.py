"""From a sweep's trials to figures and sentences."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from scipy import stats

from glscl.data.quarantine import describe_incomplete, merge_incomplete
from glscl.study.analysis import machine
from glscl.study.grid import RESULT
from glscl.system import storage
from glscl.training.driver.outputs import git_commit
from tune.objective import folds, run_on, trials_folder
from tune.options import SweepConfig
from tune.space import Space, value_at
from tune.trial import Setup, run_directories
from tune.trials import Trial, best_of

RESAMPLES = 50
LEAST_TRIALS = 8
"""Below, an importance would be a statement about chance."""
LEVEL = 0.95


def analyse(
    setup: Setup, trials: Sequence[Trial], confirmation: Mapping[str, Any] | None, best_file: str
) -> dict[str, Any]:
    """Everything of `tune.results.SweepResults`.

    Args:
        setup: the sweep's.
        trials: all that are known; one or more have ended.
        confirmation: scores of the winner and the default, if they were trained.
        best_file: the winner as a configuration file; empty while there is none.
    """
    sweep = setup.sweep
    ended = [trial for trial in trials if trial.state in ("finished", "stopped")]
    best = best_of(trials)
    every = tuple(sweep.domains)
    default = run_on(sweep, setup.sets, trials_folder(sweep), "default", {}, sweep.seed, every, every)
    confirmed = confirmed_of(confirmation) if confirmation else None
    budget = _budget(setup, trials)
    trade = trade_offs(sweep, trials)
    claims = _claims(best, confirmed, budget, trade)
    score = f" best={best.score():.2f}" if best else ""
    missing = _incomplete(sweep, trials)
    return {
        "name": sweep.name,
        "label": sweep.label,
        "verdict": f"sweep={sweep.name} trials={len(ended)}/{sweep.trials}{score} {claims[0]} [{sweep.label}]"
        + (f"; incomplete: {describe_incomplete(missing)}" if missing else ""),
        "incomplete": missing,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "command": " ".join(["glscl", *sys.argv[1:]]),
        "machine": machine(default.training.use_gpu is not False),
        "objective": sweep.objective,
        "metric": sweep.metric,
        "searcher": sweep.searcher,
        "scheduler": sweep.scheduler,
        "seed": sweep.seed,
        "planned": sweep.trials,
        "steps": setup.steps,
        "first": setup.first,
        "trainings": len(folds(sweep)),
        "domains": list(sweep.domains),
        "parameters": [
            {
                "key": key,
                "default": value_at(default, key),
                "log": draw.is_log,
                "choices": None if draw.choice is None else [str(value) for value in draw.choice],
                "low": None if draw.choice is not None else draw.ends[0],
                "high": None if draw.choice is not None else draw.ends[1],
                "words": draw.describe(),
            }
            for key, draw in sweep.searched.items()
        ],
        "trials": [
            {
                "name": trial.name,
                "state": trial.state,
                "values": trial.values,
                "history": [score.row() for score in trial.history],
                "cost": trial.cost,
                "seconds": trial.seconds,
                "error": trial.error,
            }
            for trial in trials
        ],
        "best": best.name if best else None,
        "best_file": best_file,
        "importance": importance(sweep.searched, ended, setup.first, sweep.seed),
        "trade_offs": trade,
        "budget": budget,
        "pareto": pareto(trials) if sweep.cost != "none" else [],
        "confirmation": confirmed,
        "claims": claims,
    }


def _incomplete(sweep: SweepConfig, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The sets of which videos are missing, from the finished trainings."""
    finished = [trial.name for trial in trials if trial.state == "finished"]
    results = [storage.join(run, RESULT) for name in finished for run in run_directories(sweep, name)]
    return merge_incomplete(
        storage.read_json(where).get("incomplete", []) for where in results if storage.exists(where)
    )


def confirmed_of(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The winner minus the default, paired by seed, with Student's interval.

    Of a handful of seeds a bootstrap knows too little; Student's t assumes that differences between seeds are normal.
    It covers the chance of training, not that of the held-out videos, on which the winner was chosen.
    """
    winner, default = scores["winner"], scores["default"]
    names = ["objective", *winner[0]["domains"]]

    def values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
        return [row["objective"] if name == "objective" else row["domains"][name] for row in rows]

    differences = []
    for name in names:
        first, second = values(winner, name), values(default, name)
        gaps = np.subtract(first, second)
        low = high = None
        if len(gaps) > 1:
            half = float(stats.t.ppf((1 + LEVEL) / 2, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5)
            low, high = float(gaps.mean()) - half, float(gaps.mean()) + half
        differences.append(
            {
                "name": name,
                "winner": first,
                "default": second,
                "estimate": float(gaps.mean()),
                "low": low,
                "high": high,
            }
        )
    return {"seeds": [row["seed"] for row in winner], "differences": differences}


def importance(space: Space, ended: Sequence[Trial], step: int, seed: int) -> dict[str, Any]:
    """How much of the objective's variance over the space each key explains: fANOVA, over resampled trials.

    Of the scores at the first scoring, which every trial reached: later ones are of the trials that were doing well.

    Args:
        space: what was searched.
        ended: trials.
        step: of the first scoring.
        seed: of trees and resamples.

    Returns:
        ``trials`` that count, their ``step``, ``resamples`` and ``parameters`` with ``estimate``, ``low`` and ``high``
        (5th and 95th percentile of the resamples), the most important first; none where trials are too few.
    """
    scored = [(trial, score) for trial in ended if (score := trial.at(step)) is not None]
    found: dict[str, Any] = {"trials": len(scored), "step": step, "resamples": 0, "parameters": []}
    if len(scored) < LEAST_TRIALS or len({score.objective for _, score in scored}) < 2 or len(space) < 2:
        return found
    points = [(trial.values, score.objective) for trial, score in scored]
    whole = _fanova(space, points, seed)
    generator = np.random.default_rng(seed)
    draws: list[dict[str, float]] = []
    while len(draws) < RESAMPLES:
        chosen = [points[number] for number in generator.integers(len(points), size=len(points))]
        if len({objective for _, objective in chosen}) > 1:
            draws.append(_fanova(space, chosen, seed + len(draws)))
    found["resamples"] = RESAMPLES
    for key in sorted(space, key=lambda key: -whole[key]):
        low, high = np.percentile([draw[key] for draw in draws], [5, 95])
        found["parameters"].append({"key": key, "estimate": whole[key], "low": float(low), "high": float(high)})
    return found


def _fanova(space: Space, points: Sequence[tuple[Mapping[str, Any], float]], seed: int) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    distributions = {key: draw.distribution() for key, draw in space.items()}
    for values, objective in points:
        study.add_trial(
            optuna.trial.create_trial(params=dict(values), distributions=distributions, value=float(objective))
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(shares.get(key, 0.0)) for key in space}


def trade_offs(sweep: SweepConfig, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Per domain: the finished trial that serves it best, and what that costs the others against their own best."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.last]
    if not finished:
        return []
    highest = {name: max(trial.last.domains[name] for trial in finished if trial.last) for name in sweep.domains}
    found = []
    for name in sweep.domains:
        best = max(finished, key=lambda trial, name=name: trial.last.domains[name])  # type: ignore[misc]
        assert best.last is not None
        losses = {other: best.last.domains[other] - highest[other] for other in sweep.domains}
        found.append(
            {"domain": name, "trial": best.name, "values": best.values, "scores": best.last.domains, "losses": losses}
        )
    return found


def pareto(trials: Sequence[Trial]) -> list[str]:
    """Finished trials that no other beats in both objective and cost."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.cost is not None]

    def beaten(own: Trial, other: Trial) -> bool:
        assert own.cost is not None
        assert other.cost is not None
        as_good = other.score() >= own.score() and other.cost <= own.cost
        return as_good and (other.score() > own.score() or other.cost < own.cost)

    return [trial.name for trial in finished if not any(beaten(trial, other) for other in finished)]


def _budget(setup: Setup, trials: Sequence[Trial]) -> dict[str, Any]:
    trained = [(trial.last.step if trial.last else 0) for trial in trials if trial.state in ("finished", "stopped")]
    return {
        "ended": len(trained),
        "stopped": sum(trial.state == "stopped" for trial in trials),
        "failed": sum(trial.state == "failed" for trial in trials),
        "trained": sum(trained) * len(folds(setup.sweep)),
        "full": len(trained) * setup.steps * len(folds(setup.sweep)),
    }


def _claims(
    best: Trial | None,
    confirmed: Mapping[str, Any] | None,
    budget: Mapping[str, Any],
    trade: Sequence[Mapping[str, Any]],
) -> list[str]:
    claims = []
    if confirmed is not None:
        whole = confirmed["differences"][0]
        seeds = len(confirmed["seeds"])
        gap = f"{whole['estimate']:+.2f}"
        if whole["low"] is None:
            claims.append(f"Winner minus default {gap} with one fresh seed: no interval, so no difference shown.")
        else:
            between = f"95 % interval {whole['low']:+.2f} to {whole['high']:+.2f}, {seeds} fresh seeds, paired"
            word = "better" if whole["low"] > 0 else "worse" if whole["high"] < 0 else ""
            claims.append(
                f"The winner is {word} than the default configuration: {gap} ({between})."
                if word
                else f"No difference shown between the winner and the default configuration: {gap} ({between})."
            )
    elif best is None:
        claims.append("No trial has finished yet.")
    else:
        claims.append("The winner was not compared with the default configuration.")
    share = 1 - budget["trained"] / budget["full"] if budget["full"] else 0.0
    claims.append(
        f"{budget['stopped']} of {budget['ended']} trials were stopped early: {budget['trained']:,} steps of "
        f"{budget['full']:,} were trained, {share:.0%} saved."
    )
    if len(trade) > 1 and len({entry["trial"] for entry in trade}) == 1:
        return [*claims, f"One finished trial ({trade[0]['trial']}) is best on every domain."]
    for entry in trade:
        worst = min(entry["losses"], key=lambda name: entry["losses"][name])
        if entry["losses"][worst] < 0:
            claims.append(
                f"The finished trial that is best on {entry['domain']} ({entry['trial']}) is "
                f"{-entry['losses'][worst]:.1f} below the best on {worst}."
            )
    return claims
