"""From the cells' ranks to figures, intervals and sentences."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glscl.data.quarantine import describe_incomplete, merge_incomplete
from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.evaluation.metrics import (
    DIRECTIONS,
    MAIN_METRIC,
    MEDIAN_RANK,
    METRICS,
    OPTIMISTIC,
    PESSIMISTIC,
    RECALL_LEVELS,
    Direction,
    recall_name,
)
from glscl.evaluation.ranks import Ranks
from glscl.study.grid import Cell
from glscl.study.options import StudyConfig
from glscl.study.results import UNION, ZERO_SHOT
from glscl.study.statistics import (
    LEVEL,
    Interval,
    QueryBootstrap,
    System,
    claim,
    holm,
    mean_difference,
    over_seeds,
    per_query,
)
from glscl.training.driver.outputs import git_commit

Key = tuple[str, str]  # variant, training
Finished = Sequence[tuple[Cell, Mapping[str, Any]]]


@dataclass(slots=True)
class Panel:
    """Everything measured on one test set in one condition.

    Attributes:
        test: domain.
        cells: (variant, training) -> results of its seeds, in the order of the seeds.
        bootstraps: by direction.
        systems: direction -> (variant, training, metric) -> resampled values.
    """

    test: str
    cells: dict[Key, list[Mapping[str, Any]]] = field(default_factory=dict)
    bootstraps: dict[str, QueryBootstrap] = field(default_factory=dict)
    systems: dict[str, dict[tuple[str, str, str], System]] = field(default_factory=dict)


def analyse(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> dict[str, Any]:
    """Everything of `glscl.study.results.StudyResults` that follows from the cells' results.

    While it is unfinished, the seeds that are: see `_comparable`.

    Args:
        study: the study.
        cells: all its cells.
        finished: those that are finished, with their results.

    Raises:
        UserError: nothing is finished, or cells were tested on different queries.
    """
    comparable = _comparable(cells, finished)
    if not comparable:
        raise UserError(f"{study.directory}: no cell is finished; there is nothing to report")
    domains = {cell.training: list(cell.domains) for cell in cells}
    results: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    tested: dict[str, dict[str, Mapping[str, Any]]] = {}
    for condition in study.conditions:  # one after the other: the resamples of a large study fill memory
        panels = _panels(study, [(cell, result) for cell, result in comparable if cell.condition == condition])
        results += [
            _result(condition, panel, variant, training, domains)
            for panel in panels.values()
            for variant, training in panel.cells
        ]
        comparisons += _comparisons(study, condition, panels, domains)
        for name, panel in panels.items():
            tested.setdefault(name, {})[condition] = next(iter(panel.cells.values()))[0]
    claims = _claims(study, comparisons)
    missing = merge_incomplete(result.get("incomplete", []) for _, result in comparable)
    first = comparable[0][0].config
    return {
        "name": study.name,
        "label": study.label,
        "verdict": f"study={study.name} cells={len(finished)}/{len(cells)} {' '.join(claims[:1])} [{study.label}]"
        + (f"; incomplete: {describe_incomplete(missing)}" if missing else ""),
        "incomplete": missing,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "command": " ".join(["glscl", *sys.argv[1:]]),
        "machine": machine(first.training.use_gpu is not False),
        "finished_cells": len(finished),
        "cells": len(cells),
        "seeds": list(study.seeds),
        "conditions": list(study.conditions),
        "claims": claims,
        "protocol": _protocol(study, cells),
        "variants": _variants(study),
        "trainings": [
            {"name": name, "domains": own}
            for name, own in sorted(domains.items(), key=lambda item: (item[0] != ZERO_SHOT, item[0] == UNION))
        ],
        "tests": [_test(name, tested[name]) for name in study.domains if name in tested],
        "results": results,
        "comparisons": comparisons,
    }


def compact(result: Mapping[str, Any], same: dict[str, Any]) -> dict[str, Any]:
    """A cell's result with its queries' ranks as arrays, and what is the same in all cells held once.

    A large study has hundreds of cells with tens of thousands of queries each.

    Args:
        result: what ``cell.json`` holds.
        same: captions, names and owners seen so far; updated.
    """
    tests = []
    for entry in result["tests"]:
        queries = dict(entry["per_query"])
        for name in ("owners", "query_videos", "video_ids", "positions", "captions"):
            known = same.setdefault(f"{entry['fingerprint']}/{name}", queries[name])
            queries[name] = known if known == queries[name] else queries[name]
        for direction in DIRECTIONS:
            queries[direction] = {name: np.asarray(ranks, np.int32) for name, ranks in queries[direction].items()}
        tests.append({**entry, "per_query": queries | {"top": np.asarray(queries["top"], np.int32)}})
    return {**result, "tests": tests}


def _comparable(cells: Sequence[Cell], finished: Finished) -> list[tuple[Cell, Mapping[str, Any]]]:
    """The results to report: those of the seeds of which a condition is finished as a whole, else of its first seed.

    So that every comparison is between equally many seeds, and a study that has weeks to go has a report.
    """
    chosen = []
    for condition in dict.fromkeys(cell.condition for cell in cells):
        own = [(cell, result) for cell, result in finished if cell.condition == condition]
        done = {cell.label for cell, _ in own}
        missing = {cell.seed for cell in cells if cell.condition == condition and cell.label not in done}
        seeds = {cell.seed for cell, _ in own if cell.seed not in missing}
        seeds = seeds or {next((cell.seed for cell, _ in own if cell.domains), -1)}
        chosen += [(cell, result) for cell, result in own if cell.seed in seeds or not cell.domains]
    return chosen


def _panels(study: StudyConfig, comparable: Finished) -> dict[str, Panel]:
    """The test sets of one condition."""
    panels: dict[str, Panel] = {}
    owners: dict[str, list[int]] = {}
    for cell, result in sorted(comparable, key=lambda item: item[0].seed):
        for entry in result["tests"]:
            test, own = entry["domain"], entry["per_query"]["owners"]
            panel = panels.setdefault(test, Panel(test))
            if owners.setdefault(test, own) != own:
                raise UserError(
                    f"{cell.directory}: tested on other videos of {test} than the cells before it (some could not be "
                    f"decoded then or now); delete the folders of the cells that are out of step"
                )
            timed = {**entry, "seconds": result["seconds"]}
            panel.cells.setdefault((cell.variant, cell.training), []).append(timed)
    order = [ZERO_SHOT, *study.variants]
    for number, panel in enumerate(panels.values()):
        panel.cells = dict(sorted(panel.cells.items(), key=lambda item: order.index(item[0][0])))
        for direction in DIRECTIONS:
            # Captions of one video are not independent: they are resampled together.
            queries: Any = np.asarray(owners[panel.test])
            if direction == "video_to_text":
                queries = len(next(iter(panel.cells.values()))[0]["per_query"]["query_videos"])
            panel.bootstraps[direction] = QueryBootstrap(
                queries, study.resamples, 2 * number + list(DIRECTIONS).index(direction)
            )
            tables = {}
            for (variant, training), entries in panel.cells.items():
                seeds = [per_query(_ranks(entry, direction)) for entry in entries]
                for metric in METRICS:
                    values = np.stack([seed[metric] for seed in seeds])
                    tables[variant, training, metric] = (values, training != ZERO_SHOT)
            panel.systems[direction] = panel.bootstraps[direction].systems(tables)
    return panels


def _ranks(entry: Mapping[str, Any], direction: str) -> Ranks:
    own = entry["per_query"][direction]
    return Ranks(torch.tensor(own["optimistic"]), torch.tensor(own["pessimistic"]))


def _relation(training: str, domains: Mapping[str, Sequence[str]], test: str) -> str:
    if training in (ZERO_SHOT, UNION):
        return training
    return "in-domain" if test in domains[training] else "cross-domain"


def _estimate(interval: Interval, values: NDArray[Any] | None = None) -> dict[str, Any]:
    """As the schema has it; ``values`` (S,) are the seeds'."""
    low, high = (float(end) if np.isfinite(end) else None for end in (interval.low, interval.high))
    deviation = over_seeds(values).deviation if values is not None else None
    return {
        "estimate": interval.estimate,
        "low": low,
        "high": high,
        "deviation": deviation,
        "seeds": min(interval.seeds),
        "note": interval.note,
    }


def _result(
    condition: str, panel: Panel, variant: str, training: str, domains: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    entries = panel.cells[variant, training]
    figures: dict[str, dict[str, Any]] = {}
    for direction in DIRECTIONS:
        bootstrap, systems = panel.bootstraps[direction], panel.systems[direction]
        figures[direction] = {}
        for metric, kind in METRICS.items():
            system = systems[variant, training, metric]
            interval = bootstrap.mean(system, kind.bounds)
            figures[direction][metric] = _estimate(interval, system.units.mean(1))
    bootstrap, systems = panel.bootstraps["text_to_video"], panel.systems["text_to_video"]
    own = systems[variant, training, MAIN_METRIC]
    at_home = systems.get((variant, panel.test, MAIN_METRIC))
    zero_shot = systems.get((ZERO_SHOT, ZERO_SHOT, MAIN_METRIC))
    relation = _relation(training, domains, panel.test)
    kept = bootstrap.retention(own, at_home) if at_home is not None and relation == "cross-domain" else None
    lift = bootstrap.difference(own, zero_shot) if zero_shot is not None and training != ZERO_SHOT else None
    skewness = over_seeds([entry["hubness_skewness"] for entry in entries])
    leaked = [entry["without_leaked"] for entry in entries]
    return {
        "condition": condition,
        "variant": variant,
        "training": training,
        "test": panel.test,
        "relation": relation,
        **figures,
        "median_rank": {d: _mean(entry[d][MEDIAN_RANK] for entry in entries) for d in DIRECTIONS},
        "ties": {
            d: [_mean(entry[d][bound] for entry in entries) for bound in (PESSIMISTIC, OPTIMISTIC)] for d in DIRECTIONS
        },
        "hubness": {
            "estimate": skewness.mean,
            "low": skewness.minimum,
            "high": skewness.maximum,
            "deviation": skewness.deviation,
            "seeds": skewness.seeds,
            "note": "range over seeds",
        },
        "retention": _estimate(kept) if kept is not None else None,
        "lift": _estimate(lift) if lift is not None else None,
        "columns": _columns(entries),
        "without_leaked": {
            "note": leaked[0]["note"],
            "videos": leaked[0]["videos"],
            **{d: _mean(entry[d][MAIN_METRIC] for entry in leaked) for d in DIRECTIONS},
        }
        if all(leaked)
        else None,
        "seconds": _mean(entry["seconds"] for entry in entries) if training != ZERO_SHOT else None,
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _columns(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of the normalised figures."""
    columns = []
    for number, column in enumerate(entries[0]["normalised"]):
        seeds = [entry["normalised"][number]["metrics"] for entry in entries]
        recalls = {
            f"recall_at_{k}": _mean(seed[name] for seed in seeds)
            for k in RECALL_LEVELS
            if all((name := recall_name(k)) in seed for seed in seeds)
        }
        columns.append({key: column[key] for key in ("label", "saw", "direction")} | recalls)
    return columns


def _comparisons(
    study: StudyConfig, condition: str, panels: Mapping[str, Panel], domains: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Every pair's difference in R@1, on the average of each relation and cell by cell.

    Two families of each condition and direction are corrected each for itself: the means, and the single cells.
    """
    found = []
    for direction in DIRECTIONS:
        means: dict[tuple[str, str, str, str], Interval] = {}
        single: dict[tuple[str, str, str, str], Interval] = {}
        for first, second in study.pairs:
            averaged: dict[str, list[tuple[str, System, System]]] = {"in-domain": [], "cross-domain": []}
            for test, panel in panels.items():
                systems = panel.systems[direction]
                for training in domains:
                    one, two = (systems.get((variant, training, MAIN_METRIC)) for variant in (first, second))
                    if one is None or two is None:
                        continue
                    relation = _relation(training, domains, test)
                    interval = panel.bootstraps[direction].difference(one, two)
                    single[first, second, f"{training} -> {test}", relation] = interval
                    if relation in averaged:
                        averaged[relation].append((training, one, two))
            for relation, cells in averaged.items():
                if cells:
                    means[first, second, f"{relation} mean", relation] = mean_difference(cells)
        for family in (means, single):
            adjusted = holm({key: interval.p_value or 0.0 for key, interval in family.items()})
            for (first, second, scope, relation), interval in family.items():
                p = adjusted[first, second, scope, relation]
                where = f"({in_words(direction)}, {scope}{f', {condition}' if len(study.conditions) > 1 else ''})"
                found.append(
                    {
                        "condition": condition,
                        "first": first,
                        "second": second,
                        "scope": scope,
                        "relation": relation,
                        "direction": direction,
                        "metric": MAIN_METRIC,
                        "estimate": interval.estimate,
                        "low": interval.low,
                        "high": interval.high,
                        "p_value": interval.p_value,
                        "adjusted_p": p,
                        "shown": interval.excludes_null and p <= 1 - LEVEL,
                        "sentence": claim(interval, first, second, MAIN_METRIC, where, p),
                    }
                )
    return found


def _claims(study: StudyConfig, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the study says: per condition a count of the means, then every mean's own sentence."""
    claims = []
    groups = {name: variant.group for name, variant in study.variants.items()}
    sentences = []
    for condition in study.conditions:
        main = [c for c in comparisons if c["condition"] == condition and c["direction"] == "text_to_video"]
        for relation in ("cross-domain", "in-domain"):
            own = [c for c in main if c["scope"] == f"{relation} mean"]
            sentences += [c["sentence"] for c in own]
            asked = [c for c in own if (groups[c["first"]], groups[c["second"]]) == ("consistency", "attention")]
            if not asked:
                continue
            where = "Across domains" if relation == "cross-domain" else "In the domain trained on"
            claims.append(
                f"{where}{f' ({condition})' if len(study.conditions) > 1 else ''}, global-local consistency against "
                f"attention: {_tally(asked)} (mean text-to-video {MAIN_METRIC}, Holm's correction)."
            )
    return [*claims, *sentences]


def _tally(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """How many differences were shown, and which way."""
    better = sum(c["shown"] and c["estimate"] > 0 for c in comparisons)
    worse = sum(c["shown"] and c["estimate"] < 0 for c in comparisons)
    compared = f"{len(comparisons)} comparison{'s' if len(comparisons) > 1 else ''}"
    if not better and not worse:
        return f"no difference shown in {'any of ' if len(comparisons) > 1 else ''}{compared}"
    rest = len(comparisons) - better - worse
    return f"of {compared}, {better} shown better, {worse} shown worse, {rest} with no difference shown"


def _variants(study: StudyConfig) -> list[dict[str, str]]:
    variants = [
        {"name": name, "head": v.run.get("model", {}).get("head", "glscl"), "group": v.group, "what": v.what}
        for name, v in study.variants.items()
    ]
    if study.zero_shot:
        what = "the towers before any training, mean of the frames"
        variants.insert(0, {"name": ZERO_SHOT, "head": "mean_pool", "group": "pooling", "what": what})
    return variants


def _test(name: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A test set, from one entry per condition."""
    entry = next(iter(entries.values()))
    return {
        "name": name,
        "split": entry["split"],
        "videos": entry["videos"],
        "texts": entry["texts"],
        "chance": 100.0 / entry["videos"],
        "truncated": {condition: own["truncated_texts"] for condition, own in entries.items()},
        "quarantined": entry["quarantined"],
        "rejected": entry.get("rejected", 0),
    }


def _protocol(study: StudyConfig, cells: Sequence[Cell]) -> dict[str, str]:
    """What was held equal, in words."""
    cell = cells[-1]
    config = cell.config
    training = config.training
    trained = next(c.config for c in cells if c.domains)
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs} epochs"
    if len({(c.config.training.max_steps, c.config.training.epochs) for c in cells if c.domains}) > 1:
        length = "steps as each domain's settings say"
    sets = {c.training: c.config.data.train for c in cells if c.training in study.domains}
    videos = {name: sum(open_shard_set(uri).manifest.videos for uri in uris) for name, uris in sets.items()}
    towers = f"pretrained here on {study.pretraining.domain}" if study.pretraining else str(config.model.pretrained)
    rule = f"best held-out {MAIN_METRIC} of the training domain" if trained.data.validation else "last step"
    return {
        "Towers": f"{config.model.clip}, {towers}; the same for all",
        "Frame context": f"{config.model.frame_context}, the same for all heads"
        if len({c.config.model.frame_context for c in cells if c.domains}) == 1
        else "as each variant's settings say",
        "Lengths": "; ".join(
            f"{name}: {own.model.max_words} words, {own.model.max_frames} frames, in training and in testing"
            for name, own in {c.condition: c.config for c in cells}.items()
        ),
        "Training": f"{length}, global batch {training.global_batch}, {training.precision}, "
        f"{len(study.seeds)} seeds per cell",
        "Videos trained on": ", ".join(f"{name} {count:,}" for name, count in videos.items()),
        "Checkpoint": f"{rule}; never chosen on a test set or on another domain",
        "Ranks": "every caption is a query; ties count by expectation; a video's best caption counts, video to text",
        "Intervals": f"95 %: paired bootstrap over queries ({study.resamples:,} resamples, captions of a video "
        "together), seeds as a random effect, Student's t; Holm's correction within means and within single cells",
        "Retention": "R@1 on a domain after training on another, over R@1 there after training there",
        "Lift": "R@1 minus that of the towers before any training",
    }


def in_words(direction: Direction) -> str:
    """``text-to-video``."""
    return direction.replace("_", "-")


def machine(use_gpu: bool) -> str:
    """The machine that this process runs on, in words."""
    if use_gpu and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{os.cpu_count()} CPU cores ({name}), no GPU used, torch {torch.__version__}"
