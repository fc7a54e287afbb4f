"""Derive a study's claims again, from ``study.json`` alone and without the package that made them.

    python -m stress.rederive runs/toy-study/study.json

From the figures of the cells follow the differences, from their p-values Holm's correction, from interval and corrected
p-value what is shown, and from these every sentence and count. Whatever does not agree is printed; the exit status is 1
then. Only Python's own library is used.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Figure = Callable[[Mapping[str, Any], Row], float | None]
_NUMBER = r"[+−]?\d+(?:\.\d+)?"
_FIGURES = re.compile(rf": ({_NUMBER}) points \(95 % interval ({_NUMBER}) to ({_NUMBER})\)")
_COUNT = re.compile(r"(?:of|in any of|in) (\d+) comparisons?|(\d+) (shown better|shown worse|shown equal)")


def check(study: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not follow, in words."""
    families: dict[tuple[str, str, bool], list[Row]] = {}
    for row in study["comparisons"]:
        family = (row["condition"], row["direction"], row["scope"].endswith(" mean"))
        families.setdefault(family, []).append(row)
        yield from _check_difference(study, row, _own)
    relevant: dict[str, list[Row]] = {}
    for row in study.get("relevant_comparisons", []):
        relevant.setdefault(row["condition"], []).append(row)
        yield from _check_difference(study, row, _all_relevant)
    for rows in [*families.values(), *relevant.values()]:
        yield from _check_correction(rows)
        for row in rows:
            yield from _check_shown(row)
            yield from _check_sentence(row, study.get("equivalence_margin"))
    yield from _check_claims(study)


def _check_correction(rows: Sequence[Row]) -> Iterator[str]:
    """Holm: the i-th smallest of m p-values times m - i + 1, never below the one before it."""
    largest = 0.0
    for place, row in enumerate(sorted(rows, key=lambda row: row["p_value"])):
        largest = max(largest, min(1.0, (len(rows) - place) * row["p_value"]))
        if abs(largest - row["adjusted_p"]) > 1e-9:
            yield f"{_name(row)}: Holm's correction gives p = {largest:.6g}, the file has {row['adjusted_p']:.6g}"


def _own(result: Mapping[str, Any], row: Row) -> float:
    """A cell's figure where only a caption's own video counts."""
    return float(result[row["direction"]][row["metric"]]["estimate"])


def _all_relevant(result: Mapping[str, Any], row: Row) -> float | None:
    """A cell's figure where all relevant videos count; None where there is no list."""
    several = result["several_relevant"]
    return float(several["text_to_video"][row["metric"]]) if several else None


def _check_difference(study: Mapping[str, Any], row: Row, figure_of: Figure) -> Iterator[str]:
    """The difference of two cells, or of the means over all cells of a relation that both variants have."""
    figures: dict[str, dict[tuple[str, str], float]] = {row["first"]: {}, row["second"]: {}}
    for result in study["results"]:
        if result["condition"] == row["condition"] and result["variant"] in figures:
            cell = (result["training"], result["test"])
            asked = row["scope"] in (f"{cell[0]} -> {cell[1]}", f"{result['relation']} mean")
            if asked and (figure := figure_of(result, row)) is not None:
                figures[result["variant"]][cell] = figure
    one, two = figures[row["first"]], figures[row["second"]]
    cells = one.keys() & two.keys()
    if not cells:
        yield f"{_name(row)}: no cell of both variants is in the file"
        return
    difference = sum(one[cell] - two[cell] for cell in cells) / len(cells)
    if abs(difference - row["estimate"]) > 1e-6:
        yield f"{_name(row)}: the cells give {difference:+.4f} points, the file has {row['estimate']:+.4f}"


def _check_shown(row: Row) -> Iterator[str]:
    excludes = row["low"] > 0 or row["high"] < 0
    if excludes != (row["p_value"] < 0.05):
        yield f"{_name(row)}: interval {row['low']:+.4f} to {row['high']:+.4f} and p = {row['p_value']:.4g} disagree"
    if row["shown"] != (excludes and row["adjusted_p"] <= 0.05):
        yield f"{_name(row)}: 'shown' is {row['shown']}, which interval and corrected p-value do not say"
    equal = row.get("equivalence_p")
    if row.get("equivalent", False) != (equal is not None and equal <= 0.05):
        yield f"{_name(row)}: 'equivalent' is {row['equivalent']} at p = {equal}"


def _check_sentence(row: Row, margin: float | None) -> Iterator[str]:
    sentence = row["sentence"]
    if row["shown"]:
        verb = "better" if row["estimate"] > 0 else "worse"
        begins = f"{row['first']} is {verb} than {row['second']} in "
    else:
        begins = f"No difference shown between {row['first']} and {row['second']} in "
    if not sentence.startswith(begins):
        yield f"{_name(row)}: the sentence does not begin with '{begins.strip()}'"
    said = _FIGURES.search(sentence)
    for text, key in zip(said.groups() if said else ("", "", ""), ("estimate", "low", "high"), strict=True):
        decimals = len(text.partition(".")[2])
        if not text or abs(float(text.replace("−", "-")) - row[key]) > 0.5001 * 10**-decimals:
            yield f"{_name(row)}: the sentence says '{text}' for {key}, the file has {row[key]:+.4f}"
    if margin is not None and (f"They are equal within ±{margin:g} points" in sentence) != row["equivalent"]:
        yield f"{_name(row)}: the sentence and 'equivalent' ({row['equivalent']}) disagree"


def _check_claims(study: Mapping[str, Any]) -> Iterator[str]:
    """Counts first, then the sentences of all means, each one that stands in the comparisons."""
    sentences = {row["sentence"]: row for row in study["comparisons"]}
    counts = [claim for claim in study["claims"] if claim not in sentences]
    possible = [_tally(rows) for rows in _countable(study)]
    for claim in counts:
        if _read_count(claim) not in possible:
            yield f"claim: no set of comparisons of two groups has these counts: {claim}"
    told = [claim for claim in study["claims"] if claim in sentences]
    means = [row["sentence"] for row in study["comparisons"] if _is_claimed(row)]
    if sorted(told) != sorted(means):
        yield f"claims: {len(told)} sentences of means, where the comparisons have {len(means)}"


def _countable(study: Mapping[str, Any]) -> Iterator[list[Row]]:
    """The sets of comparisons that a count may be of: consistency against attention, or a head against itself."""
    variants = {variant["name"]: variant for variant in study["variants"]}
    sets: dict[tuple[object, ...], list[Row]] = {}
    for row in filter(_is_claimed, study["comparisons"]):
        first, second = variants[row["first"]], variants[row["second"]]
        groups = (first["group"], second["group"])
        if groups == ("consistency", "attention"):
            sets.setdefault((row["condition"], row["scope"], first.get("tuned", False)), []).append(row)
        elif groups == ("consistency", "ablation") and first["head"] == second["head"]:
            sets.setdefault((row["condition"],), []).append(row)
    yield from sets.values()


def _is_claimed(row: Row) -> bool:
    return row["direction"] == "text_to_video" and bool(row["scope"].endswith(" mean"))


def _tally(rows: Sequence[Row]) -> dict[str, int]:
    return {
        "compared": len(rows),
        "shown better": sum(row["shown"] and row["estimate"] > 0 for row in rows),
        "shown worse": sum(row["shown"] and row["estimate"] < 0 for row in rows),
        "shown equal": sum(row["equivalent"] for row in rows),
    }


def _read_count(claim: str) -> dict[str, int]:
    found = {"compared": 0, "shown better": 0, "shown worse": 0, "shown equal": 0}
    for compared, number, kind in _COUNT.findall(claim):
        if compared:
            found["compared"] = int(compared)
        else:
            found[kind] = int(number)
    return found


def _name(row: Row) -> str:
    return f"{row['first']} - {row['second']}, {row['scope']}, {row['direction']}, {row['condition']}"


def main(words: Sequence[str]) -> int:
    """Check the files named; returns the exit status."""
    wrong = 0
    for word in words:
        study = json.loads(Path(word).read_text(encoding="utf-8"))
        problems = list(check(study))
        for problem in problems:
            print(f"{word}: {problem}")
        claims, compared = len(study["claims"]), len(study["comparisons"]) + len(study.get("relevant_comparisons", []))
        print(f"{word}: {claims} claims and {compared} comparisons derived again, {len(problems)} do not agree")
        wrong += bool(problems)
    return int(wrong > 0 or not words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
