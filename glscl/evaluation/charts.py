"""Charts of a run's report: the curves of its training."""

from collections.abc import Iterator, Mapping, Sequence

from glscl.evaluation.metrics import MAIN_METRIC
from glscl.reporting.plots import Chart, line_chart


def training_charts(history: Sequence[Mapping[str, object]]) -> list[Chart]:
    """Held-out R@1 first, then every number logged over the steps, the total loss before its terms."""
    held_out: dict[str, list[tuple[float, float]]] = {}
    logged: dict[str, list[tuple[float, float]]] = {"loss": []}
    for entry in history:
        step = _number(entry["step"])
        if step is None:
            continue
        for label, score in _held_out_scores(entry.get("validation")):
            held_out.setdefault(label, []).append((step, score))
        for name, value in entry.items():
            if name not in ("step", "epoch") and (number := _number(value)) is not None:
                logged.setdefault(name, []).append((step, number))
    charts = [line_chart(f"held-out {MAIN_METRIC} (%)", held_out, y_range=(0, 100))]
    charts += [line_chart(name, {name: points}) for name, points in logged.items()]
    return [chart for chart in charts if chart is not None]


def _held_out_scores(validation: object) -> Iterator[tuple[str, float]]:
    """Label and R@1 of every held-out set that a row of the log has."""
    for name, value in validation.items() if isinstance(validation, Mapping) else ():
        if name.endswith(MAIN_METRIC) and (score := _number(value)) is not None:
            yield name.removesuffix(MAIN_METRIC).strip().replace("_", " ") or MAIN_METRIC, score


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
