"""What the driver prints, into a pipe and on a terminal."""

from __future__ import annotations

import io
import os
import pty
from typing import Any

import pytest

from glscl.evaluation.console import normalised_table, relevant_table, results_table
from glscl.evaluation.results import parse_results
from glscl.reporting.console import start_panel, verdict

METRICS = {
    "R@1": 63.52,
    "R@5": 91.0,
    "R@10": 96.5,
    "MRR": 75.5,
    "nDCG@10": 80.22,
    "MdR": 1.0,
    "MnR": 2.25,
    "queries": 200,
}
TEST: dict[str, Any] = {
    "domain": "toy_clips",
    "split": "test",
    "relation": "in-domain",
    "videos": 200,
    "texts": 200,
    "captions_per_video": 1.0,
    "max_frames": 8,
    "max_words": 32,
    "truncated_texts": 0,
    "quarantined": 0,
    "text_to_video": METRICS,
    "video_to_text": METRICS | {"R@1": 9.0},
    "hubness_skewness": 0.0,
}
RESULTS: dict[str, Any] = {
    "run": "r",
    "verdict": "OK",
    "created": "2025-06-01",
    "head": "glscl",
    "clip": "glscl-tiny",
    "checkpoint_step": 1,
    "seed": 0,
    "git_commit": None,
    "command": "glscl eval",
    "train_domains": [],
    "tests": [TEST],
}


def on_terminal(write: Any) -> str:
    """What ``write(file=...)`` sends to a real pseudo-terminal."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as file:
        write(file=file)
        file.flush()
        text = os.read(leader, 1 << 16).decode()
    os.close(leader)
    return text


def test_start_panel_is_plain_lines_in_a_pipe() -> None:
    out = io.StringIO()
    start_panel(
        "glscl train", {"head": "glscl", "output": "s3://bucket/" + "x" * 200, "note": "[bold]as is[/bold]"}, file=out
    )
    assert out.getvalue().splitlines() == [
        "glscl train",
        "head: glscl",
        "output: s3://bucket/" + "x" * 200,
        "note: [bold]as is[/bold]",
    ]


def test_results_table_is_aligned_in_a_pipe() -> None:
    out = io.StringIO()
    results_table(parse_results(RESULTS), file=out)
    header, first, second = out.getvalue().splitlines()
    names = ["test", "set", "relation", "direction", "R@1", "R@5", "R@10", "MRR", "nDCG@10", "MdR", "MnR", "queries"]
    assert header.split() == [*names, "videos"]
    assert (
        first == "toy_clips/test  in-domain  text to video  63.5  91.0  96.5  75.5     80.2  1.0  2.2      200     200"
    )
    assert (
        second == "toy_clips/test  in-domain  video to text   9.0  91.0  96.5  75.5     80.2  1.0  2.2      200     200"
    )
    assert len(header) == len(first)
    out = io.StringIO()
    results_table(
        parse_results(RESULTS | {"tests": [TEST | {"videos": 1_600, "quarantined": 300, "rejected": 100}]}), file=out
    )
    assert [line[-15:] for line in out.getvalue().splitlines()[1:]] == ["1,600 of 2,000"[-15:].rjust(15)] * 2


def test_table_of_all_relevant_videos() -> None:
    out = io.StringIO()
    relevant_table(parse_results(RESULTS), file=out)
    assert out.getvalue() == "", "nothing to show"
    figures = {"R@1": 41.1, "R@5": 52.2, "R@10": 63.3, "hit@1": 71.4, "hit@5": 82.5, "MRR": 55.5, "nDCG@10": 66.6}
    column = {"list": "q", "note": "", "captions": 12, "relevant": 1.25, "text_to_video": figures}
    relevant_table(parse_results(RESULTS | {"tests": [TEST | {"several_relevant": column}]}), file=out)
    row = out.getvalue().splitlines()[1]
    assert row.split() == ["toy_clips/test", "41.1", "52.2", "63.3", "71.4", "82.5", "–", "55.5", "66.6", "12", "1.25"]


def test_normalised_table() -> None:
    out = io.StringIO()
    normalised_table(parse_results(RESULTS), file=out)
    assert out.getvalue() == "", "nothing to show"
    column = {
        "name": "qb_norm",
        "label": "QB-Norm",
        "source": "a paper",
        "saw": "A query bank: 9 training videos of a × test captions.",
        "direction": "video_to_text",
        "metrics": METRICS | {"R@1": 70.04},
    }
    normalised_table(parse_results(RESULTS | {"tests": [TEST | {"normalised": [column]}]}), file=out)
    header, row = out.getvalue().splitlines()
    assert header.split() == ["test", "set", "direction", "normalisation", "saw", "R@1", "R@5", "R@10"]
    assert row == "toy_clips/test  video to text  QB-Norm        A query bank  70.0  91.0  96.5"
    assert len(header) == len(row)


@pytest.mark.parametrize(("ok", "line"), [(True, "glscl: OK 3 of 3\n"), (False, "glscl: FAILED 3 of 3\n")])
def test_verdict_is_one_plain_line_in_a_pipe(ok: bool, line: str) -> None:
    out = io.StringIO()
    verdict(ok, "3 of\n 3", file=out)
    assert out.getvalue() == line


def test_terminal_gets_a_panel_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    panel = on_terminal(lambda file: start_panel("glscl train", {"head": "[red]glscl[/red]"}, file=file))
    assert "╭" in panel
    assert "[red]glscl[/red]" in panel
    assert "toy_clips" in on_terminal(lambda file: results_table(parse_results(RESULTS), file=file))
    assert "\x1b[1;32mOK\x1b[0m" in on_terminal(lambda file: verdict(True, "done", file=file))


def test_two_test_sets_of_a_domain_are_told_apart() -> None:
    out = io.StringIO()
    names = ("msrvtt/test (test_1k_a)", "msrvtt/test (test_full)")
    results_table(parse_results(RESULTS | {"tests": [TEST | {"name": name} for name in names]}), file=out)
    assert [line.partition("  ")[0] for line in out.getvalue().splitlines()[1:]] == [names[0]] * 2 + [names[1]] * 2
