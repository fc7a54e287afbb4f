"""The tables that a command prints of an evaluation's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glscl.evaluation.results import Oracles, Results, Test, parse_results
from glscl.reporting.console import normalised_table, print_table, results_table


def print_results(results: Mapping[str, Any] | Results) -> None:
    """Print the metrics of every test set, and what oracles would score on toy domains; nothing if nothing was tested.

    Raises:
        UserError: ``results`` lack a key.
    """
    parsed = parse_results(results)
    if not parsed.tests:
        return
    results_table(parsed)
    normalised_table(parsed)
    for test in parsed.tests:
        if test.oracles and test.oracles.single:
            _print_oracles(test, test.oracles)


def _print_oracles(test: Test, oracles: Oracles) -> None:
    """Print what retrieval by known attributes alone would score, and which attributes the model knows."""
    single, pair = (max(kind.items(), key=lambda item: item[1]) for kind in (oracles.single, oracles.pair))
    print(
        f"{test.name}: R@1 {test.text_to_video['R@1']:.1f}, chance {100 / test.videos:.1f}; an oracle that knows "
        f"one attribute: at best {single[1]:.1f} ({single[0]}); two attributes: at best {pair[1]:.1f} ({pair[0]})"
    )
    rows = [
        [
            attribute,
            f"{known.accuracy:.1f}",
            f"{known.ignoring:.1f}",
            f"{known.chance:.1f}",
            f"{oracles.single[attribute]:.1f}",
        ]
        for attribute, known in (test.attribute_accuracy or {}).items()
    ]
    print_table([f"{test.name} attribute", "right in top-1 %", "if ignored %", "chance %", "oracle R@1 %"], rows)
