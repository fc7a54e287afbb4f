"""WiSE-FT in a study: every cell's recall by towers between those before and after its training.

The head is the trained one throughout; the result itself is of the trained towers (α = 1). What changes is taken query
by query and seed by seed, and on average over the cells of a relation.
"""

from collections.abc import Iterator, Sequence

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, METRICS, Direction
from glscl.reporting.formats import signed
from glscl.runs.cell import Cell, WiseFtTest, read_wise_ft
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, as_estimate
from glscl.study.results import Estimate, Relation, StudyResults, WiseFt
from glscl.study.retested import (
    Changed,
    Retested,
    collect_retested,
    estimate_change,
    resample_changes,
    shown_higher,
    shown_lower,
)
from glscl.study.statistics import mean_of_cells

WISE_FT_COLUMNS = (
    "condition", "variant", "scope", "relation", "training", "test", "towers_alpha", "direction", "estimate", "low",
    "high", "change", "change_low", "change_high", "sd", "seeds",
)  # fmt: skip
_Mean = tuple[str, str, Relation, float]  # condition, variant, relation, alpha
_Figures = dict[Direction, tuple[Estimate, Estimate]]  # recall and its change


def find_wise_ft(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> list[WiseFt]:
    """The cells that are reported and their means, where all seeds of a cell were tested with the same towers."""
    if not study.wise_ft:
        return []
    retested: list[Retested[WiseFtTest, float]] = collect_retested(
        cells, finished, read_wise_ft, lambda test: test.towers_alpha, "tests of wise_ft"
    )
    single: dict[tuple[Retested[WiseFtTest, float], float], _Figures] = {}
    means: dict[_Mean, _Figures] = {}
    for direction in DIRECTIONS:
        groups: dict[_Mean, list[tuple[str, Changed]]] = {}
        for entry, alpha, bootstrap, changed in resample_changes(study, retested, study.wise_ft, direction):
            single.setdefault((entry, alpha), {})[direction] = estimate_change(bootstrap, changed)
            key = (entry.condition, entry.variant, entry.relation, alpha)
            groups.setdefault(key, []).append((entry.training, changed))
        for key, members in groups.items():
            means.setdefault(key, {})[direction] = _mean(members)
    rows = [
        _row(condition, variant, relation, alpha, own) for (condition, variant, relation, alpha), own in means.items()
    ]
    rows += [
        _row(entry.condition, entry.variant, entry.relation, alpha, own, entry.training, entry.test)
        for (entry, alpha), own in single.items()
    ]
    return rows


def _mean(members: Sequence[tuple[str, Changed]]) -> tuple[Estimate, Estimate]:
    """Means of recall and of its change over the cells of a relation."""
    recall = mean_of_cells([(training, one.recall) for training, one in members], METRICS[MAIN_METRIC].bounds)
    return as_estimate(recall), as_estimate(mean_of_cells([(training, one.change) for training, one in members]))


def _row(
    condition: str, variant: str, relation: Relation, alpha: float, own: _Figures, training: str = "", test: str = ""
) -> WiseFt:
    return WiseFt(
        condition=condition,
        variant=variant,
        relation=relation,
        training=training,
        test=test,
        towers_alpha=alpha,
        recall={direction: recall for direction, (recall, _) in own.items()},
        change={direction: change for direction, (_, change) in own.items()},
    )


def describe_wise_ft(study: StudyResults, condition: str) -> Iterator[str]:
    """Sentences: for each share and relation, in how many heads the mean recall changes."""
    groups: dict[tuple[float, Relation], list[Estimate]] = {}
    for row in study.wise_ft:
        if row.condition == condition and not row.test and row.relation in ("in-domain", "cross-domain"):
            groups.setdefault((row.towers_alpha, row.relation), []).append(row.change["text_to_video"])
    for (alpha, relation), changes in sorted(groups.items()):
        lower, higher = sum(map(shown_lower, changes)), sum(map(shown_higher, changes))
        least, most = (signed(end(one.estimate for one in changes)) for end in (min, max))
        yield (
            f"Towers at α = {alpha:g} ({relation} mean): text-to-video {MAIN_METRIC} is shown higher for {higher} of "
            f"{len(changes)} heads, lower for {lower}; changes from {least} to {most} points."
        )


Table = list[tuple[str, dict[tuple[Relation, float], WiseFt]]]  # a head's means, by relation and share


def wise_ft_tables(study: StudyResults) -> dict[str, tuple[list[tuple[Relation, float]], Table, list[WiseFt]]]:
    """What the page shows by condition: columns of the means, the means, and the cells."""
    tables = {}
    relations: tuple[Relation, ...] = ("in-domain", "cross-domain", "union")
    for condition in study.conditions:
        rows = [row for row in study.wise_ft if row.condition == condition]
        means: dict[str, dict[tuple[Relation, float], WiseFt]] = {}
        for row in rows:
            if not row.test:
                means.setdefault(row.variant, {})[row.relation, row.towers_alpha] = row
        known = {column for own in means.values() for column in own}
        columns = sorted(known, key=lambda column: (relations.index(column[0]), column[1]))
        tables[condition] = (columns, list(means.items()), [row for row in rows if row.test])
    return tables


def wise_ft_rows(study: StudyResults) -> Iterator[dict[str, object]]:
    """Rows of ``wise_ft.csv``: one per mean or cell, share and direction."""
    for row in study.wise_ft:
        for direction in DIRECTIONS:
            recall, change = row.recall[direction], row.change[direction]
            yield {
                **row.model_dump(exclude={"recall", "change"}),
                **recall.model_dump(include={"estimate", "low", "high", "seeds"}),
                "scope": f"{row.training} -> {row.test}" if row.test else f"{row.relation} mean",
                "direction": direction,
                "change": change.estimate,
                "change_low": change.low,
                "change_high": change.high,
                "sd": recall.deviation,
            }
