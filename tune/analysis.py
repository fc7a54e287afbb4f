"""Compute the typed results of a sweep from its trials: figures and claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from glscl.runs.cell import find_incomplete, read_cell_file
from glscl.runs.summary import summarise
from glscl.training.config import RunConfig
from tune.objective import Setup, build_run_on_all, run_directories, training_folds, trials_folder
from tune.options import SweepConfig
from tune.results import (
    Budget,
    Confirmation,
    Difference,
    Importance,
    ImportanceShare,
    Parameter,
    SweepResults,
    TradeOff,
)
from tune.space import Space, Values, value_at
from tune.trials import Trial, best_of
from tune.winner import DEFAULT, WINNER, SeedScores

LEVEL = 0.95
RESAMPLES = 50
LEAST_TRIALS = 8
"""Below, an importance would be a statement about chance."""


def analyse(setup: Setup, trials: Sequence[Trial], confirmation: SeedScores | None, best_file: str) -> SweepResults:
    """Compute the results of a sweep.

    Of all trials that are known one or more have ended; the winner's ``best_file`` is empty while there is none, and
    ``confirmation`` is None until winner and default were trained.
    """
    sweep = setup.sweep
    ended = [trial for trial in trials if trial.has_ended]
    best = best_of(trials)
    default = build_run_on_all(sweep, setup.sets, trials_folder(sweep), "default", {})
    compared = compare_with_default(confirmation) if confirmation else None
    budget = _sum_budget(setup, trials)
    trade_offs = find_trade_offs(sweep, trials)
    claims = _write_claims(best, compared, budget, trade_offs)
    score = f" best={best.score():.2f}" if best else ""
    finished = [run for trial in trials if trial.state == "finished" for run in run_directories(sweep, trial.name)]
    missing = find_incomplete(cell for run in finished if (cell := read_cell_file(run)))
    progress = f"trials={len(ended)}/{sweep.trials}{score}"
    summary = summarise(sweep, progress, claims, missing, use_gpu=default.training.use_gpu is not False)
    return SweepResults(
        **dict(summary),
        objective=sweep.objective,
        metric=sweep.metric,
        searcher=sweep.searcher,
        scheduler=sweep.scheduler,
        seed=sweep.seed,
        planned=sweep.trials,
        steps=setup.steps,
        first=setup.first,
        trainings=len(training_folds(sweep)),
        domains=list(sweep.domains),
        parameters=_list_parameters(sweep.searched, default),
        trials=list(trials),
        best=best.name if best else None,
        best_file=best_file,
        importance=measure_importance(sweep.searched, ended, setup.first, sweep.seed),
        trade_offs=trade_offs,
        budget=budget,
        pareto=find_pareto_front(trials) if sweep.cost != "none" else [],
        confirmation=compared,
    )


def _list_parameters(space: Space, default: RunConfig) -> list[Parameter]:
    return [
        Parameter(
            key=key,
            default=value_at(default, key),
            log=draw.is_log,
            choices=None if draw.choice is None else [str(value) for value in draw.choice],
            low=None if draw.choice is not None else draw.ends[0],
            high=None if draw.choice is not None else draw.ends[1],
            words=draw.describe(),
        )
        for key, draw in space.items()
    ]


def measure_importance(space: Space, ended: Sequence[Trial], step: int, seed: int) -> Importance:
    """Measure how much of the objective's variance over the space each key explains: fANOVA, over resampled trials.

    Of the scores at ``step``, the first scoring, which every trial reached: later ones are of the trials that were
    doing well. ``seed`` is of trees and resamples. Keys come with the 5th and 95th percentile of the resamples, the
    most important first; none where trials are too few.
    """
    points = [(trial.values, score.objective) for trial in ended if (score := trial.at(step)) is not None]
    if len(points) < LEAST_TRIALS or len({objective for _, objective in points}) < 2 or len(space) < 2:
        return Importance(trials=len(points), step=step, resamples=0, parameters=[])
    whole = _fanova(space, points, seed)
    generator = np.random.default_rng(seed)
    draws: list[dict[str, float]] = []
    while len(draws) < RESAMPLES:
        chosen = [points[number] for number in generator.integers(len(points), size=len(points))]
        if len({objective for _, objective in chosen}) > 1:
            draws.append(_fanova(space, chosen, seed + len(draws)))
    shares = []
    for key in sorted(space, key=lambda key: -whole[key]):
        low, high = np.percentile([draw[key] for draw in draws], [5, 95])
        shares.append(ImportanceShare(key=key, estimate=whole[key], low=float(low), high=float(high)))
    return Importance(trials=len(points), step=step, resamples=RESAMPLES, parameters=shares)


def _fanova(space: Space, points: Sequence[tuple[Values, float]], seed: int) -> dict[str, float]:
    """Share of the variance by key."""
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


def compare_with_default(scores: SeedScores) -> Confirmation:
    """Compare the winner with the default, paired by seed, with Student's interval.

    Of a handful of seeds a bootstrap knows too little; Student's t assumes that differences between seeds are normal.
    It covers the chance of training, not that of the held-out videos, on which the winner was chosen.
    """
    winner, default = ([one.domains | {"objective": one.objective} for one in scores[of]] for of in (WINNER, DEFAULT))
    differences = [
        _difference(name, [one[name] for one in winner], [one[name] for one in default])
        for name in ("objective", *scores[WINNER][0].domains)
    ]
    return Confirmation(seeds=[one.seed for one in scores[WINNER]], differences=differences)


def _difference(name: str, winner: list[float], default: list[float]) -> Difference:
    gaps = np.subtract(winner, default)
    mean = float(gaps.mean())
    low = high = None
    if len(gaps) > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5)
        low, high = mean - half, mean + half
    return Difference(name=name, winner=winner, default=default, estimate=mean, low=low, high=high)


def find_trade_offs(sweep: SweepConfig, trials: Sequence[Trial]) -> list[TradeOff]:
    """Find per domain the finished trial that serves it best, and what that costs the others against their own best."""
    scores = {trial.name: trial.last.domains for trial in trials if trial.state == "finished" and trial.last}
    values = {trial.name: trial.values for trial in trials}
    if not scores:
        return []
    highest = {domain: max(of_trial[domain] for of_trial in scores.values()) for domain in sweep.domains}
    trade_offs = []
    for domain in sweep.domains:
        best = max(scores, key=lambda name, domain=domain: scores[name][domain])  # type: ignore[misc]
        losses = {other: scores[best][other] - highest[other] for other in sweep.domains}
        trade_offs.append(TradeOff(domain=domain, trial=best, values=values[best], scores=scores[best], losses=losses))
    return trade_offs


def find_pareto_front(trials: Sequence[Trial]) -> list[str]:
    """Find the finished trials that no other beats in both objective and cost."""
    finished = {
        trial.name: (trial.score(), -trial.cost)
        for trial in trials
        if trial.state == "finished" and trial.cost is not None
    }

    def beaten(own: tuple[float, int]) -> bool:
        return any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in finished.values())

    return [name for name, own in finished.items() if not beaten(own)]


def _sum_budget(setup: Setup, trials: Sequence[Trial]) -> Budget:
    steps = [(trial.last.step if trial.last else 0) for trial in trials if trial.has_ended]
    trainings = len(training_folds(setup.sweep))
    return Budget(
        ended=len(steps),
        stopped=sum(trial.state == "stopped" for trial in trials),
        failed=sum(trial.state == "failed" for trial in trials),
        trained=sum(steps) * trainings,
        full=len(steps) * setup.steps * trainings,
    )


def _write_claims(
    best: Trial | None, compared: Confirmation | None, budget: Budget, trade_offs: Sequence[TradeOff]
) -> list[str]:
    """Write what the sweep says: of the winner first, then of the budget, then of the domains."""
    share = 1 - budget.trained / budget.full if budget.full else 0.0
    claims = [
        _claim_of_winner(best, compared),
        f"{budget.stopped} of {budget.ended} trials were stopped early: {budget.trained:,} steps of "
        f"{budget.full:,} were trained, {share:.0%} saved.",
    ]
    if len(trade_offs) > 1 and len({entry.trial for entry in trade_offs}) == 1:
        return [*claims, f"One finished trial ({trade_offs[0].trial}) is best on every domain."]
    for entry in trade_offs:
        worst = min(entry.losses, key=lambda name, entry=entry: entry.losses[name])  # type: ignore[misc]
        if entry.losses[worst] < 0:
            claims.append(
                f"The finished trial that is best on {entry.domain} ({entry.trial}) is "
                f"{-entry.losses[worst]:.1f} below the best on {worst}."
            )
    return claims


def _claim_of_winner(best: Trial | None, compared: Confirmation | None) -> str:
    if compared is None:
        if best is None:
            return "No trial has finished yet."
        return "The winner was not compared with the default configuration."
    objective = compared.differences[0]
    gap = f"{objective.estimate:+.2f}"
    if objective.low is None or objective.high is None:
        return f"Winner minus default {gap} with one fresh seed: no interval, so no difference shown."
    seeds = len(compared.seeds)
    between = f"95 % interval {objective.low:+.2f} to {objective.high:+.2f}, {seeds} fresh seeds, paired"
    word = "better" if objective.low > 0 else "worse" if objective.high < 0 else ""
    if word:
        return f"The winner is {word} than the default configuration: {gap} ({between})."
    return f"No difference shown between the winner and the default configuration: {gap} ({between})."
