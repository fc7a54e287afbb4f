"""Simulate studies of a 2 × 2 of captions and pictures with planted effects, and count how often intervals hold them.

    python -m stress.decompositions [--simulations 1000] [--json FILE]

For every setting it prints how often the 95 % intervals hold the truth: of the shift by captions, the shift by
pictures, their interaction and the total, for one model and for the difference between two. Once with the same scenes
in all four test sets, and once with others in each.

A model finds a query if its strength there is positive. Strength is a sum of normal parts: of the scene, of the scene
with these captions or these pictures, of the model on the scene, of the training's seed, of the seed on this test set,
and of all at once. The effects are planted as R@1 of the four cells, so the truth is exact.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from glscl.study.decomposition import FACTORS, WEIGHTS, effects_of
from glscl.study.effects import Factor
from glscl.study.factors import CELLS, Cell
from glscl.study.statistics import QueryBootstrap, System

Array = NDArray[np.float64]
SCENE, STYLE, OWN, NOISE = 0.8, 0.4, 0.5, 0.5  # deviations of strength; STYLE once for captions and once for pictures
RESAMPLES = 1000
PLANTED: tuple[Mapping[Cell, float], Mapping[Cell, float]] = (
    {"source": 62.0, "captions": 41.0, "pictures": 50.0, "both": 18.0},
    {"source": 58.0, "captions": 28.0, "pictures": 47.0, "both": 21.0},
)
"""R@1 of two models on the four cells: shifts of -21 and -12 with an interaction of -11, and of -30, -11 and +4."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Test sets and how trainings differ."""

    scenes: int
    seeds: int
    seed_sd: float  # of strength, from seed to seed, on all cells alike
    cell_sd: float  # of strength, from seed to seed, on each cell by itself

    @property
    def deviation(self) -> float:
        """Of strength over scenes and seeds."""
        parts = (SCENE, STYLE, STYLE, OWN, NOISE, self.seed_sd, self.cell_sd)
        return float(np.sqrt(np.square(parts).sum()))

    def draw(self, random: np.random.Generator, *, paired: bool) -> list[dict[Cell, Array]]:
        """Values (S, Q) of both models on every cell."""
        scenes = {cell: self._draw_scenes(random, SCENE) for cell in CELLS}
        if paired:
            scenes = dict.fromkeys(CELLS, scenes["source"])
        # Cells that share a style share what it does to a scene, if they share the scenes.
        captions = {style: self._draw_scenes(random, STYLE) for style in (False, True)}
        pictures = {style: self._draw_scenes(random, STYLE) for style in (False, True)}
        own = [{cell: self._draw_scenes(random, OWN) for cell in CELLS} for _ in PLANTED]
        models = []
        for planted, on_scene in zip(PLANTED, own, strict=True):
            seed = self.seed_sd * random.standard_normal((self.seeds, 1))
            values: dict[Cell, Array] = {}
            for cell in CELLS:
                style = (
                    captions[cell in ("captions", "both")] + pictures[cell in ("pictures", "both")]
                    if paired
                    else self._draw_scenes(random, np.sqrt(2) * STYLE)
                )
                level = self.deviation * stats.norm.ppf(planted[cell] / 100)
                of_model = on_scene["source" if paired else cell]
                of_cell = seed + self.cell_sd * random.standard_normal((self.seeds, 1))
                noise = NOISE * random.standard_normal((self.seeds, self.scenes))
                values[cell] = 100.0 * (level + scenes[cell] + style + of_model + of_cell + noise > 0)
            models.append(values)
        return models

    def _draw_scenes(self, random: np.random.Generator, deviation: float) -> Array:
        return deviation * random.standard_normal(self.scenes)


def true_effects(model: int | None) -> dict[Factor, float]:
    """The planted effects of a model, or those of the first minus those of the second."""
    if model is None:
        first, second = true_effects(0), true_effects(1)
        return {factor: first[factor] - second[factor] for factor in FACTORS}
    cells = PLANTED[model]
    return {factor: sum(weight * cells[cell] for cell, weight in WEIGHTS[factor].items()) for factor in FACTORS}


def rates_of_coverage(setting: Setting, simulations: int, *, paired: bool, seed: int = 1) -> dict[str, float]:
    """Share of 95 % intervals that hold the planted effects, of one model and of the difference between two."""
    random = np.random.default_rng(seed)
    # The same resamples serve all simulations: they know nothing of the values.
    bootstraps = [QueryBootstrap(setting.scenes, RESAMPLES, number) for number in range(1 if paired else len(CELLS))]
    truths = {"one": true_effects(0), "difference": true_effects(None)}
    held = {f"{what}_{factor}": 0 for what in truths for factor in FACTORS}
    for _ in range(simulations):
        systems: list[dict[Cell, System]] = [{}, {}]
        models = setting.draw(random, paired=paired)
        for number, cell in enumerate(CELLS):
            tables = {model: (values[cell], True) for model, values in enumerate(models)}
            for model, system in bootstraps[number % len(bootstraps)].systems(tables).items():
                systems[model][cell] = system
        found = {"one": effects_of(systems[0]), "difference": effects_of(*systems)}
        for what, truth in truths.items():
            for factor, interval in found[what].items():
                held[f"{what}_{factor}"] += interval.low <= truth[factor] <= interval.high
    return {name: count / simulations for name, count in held.items()}


SETTINGS = (
    Setting(scenes=200, seeds=3, seed_sd=0.0, cell_sd=0.0),
    Setting(scenes=200, seeds=3, seed_sd=0.05, cell_sd=0.05),
    Setting(scenes=1000, seeds=3, seed_sd=0.1, cell_sd=0.03),
    Setting(scenes=500, seeds=5, seed_sd=0.05, cell_sd=0.1),
)


def main() -> None:
    """Print a table per setting, and write all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for setting in SETTINGS:
        for paired in (True, False):
            rates = rates_of_coverage(setting, options.simulations, paired=paired)
            rows.append({**asdict(setting), "paired": paired, **rates})
            print("\n".join(f"{name:24} {value}" for name, value in rows[-1].items()), "\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
