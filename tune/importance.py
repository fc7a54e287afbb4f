"""The importance of every searched key: how much of the objective's variance it explains (fANOVA)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tune.results import Importance, ImportanceShare
from tune.space import Space, Values
from tune.trials import Trial

RESAMPLES = 50
LEAST_TRIALS = 8
"""Below, an importance would be a statement about chance."""


def measure_importance(space: Space, ended: Sequence[Trial], step: int, seed: int) -> Importance:
    """Measure how much of the objective's variance over the space each key explains: fANOVA, over resampled trials.

    Of the scores at the first scoring, which every trial reached: later ones are of the trials that were doing well.

    Args:
        space: what was searched.
        ended: trials.
        step: of the first scoring.
        seed: of trees and resamples.

    Returns:
        the keys with the 5th and 95th percentile of the resamples, the most important first; none where trials are too
        few.
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
