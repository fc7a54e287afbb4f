"""The tables of a study: CSV that reads back, LaTeX that compiles by eye."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest

from glscl.errors import UserError
from glscl.study.tables import latex, write_study_tables
from glscl.system.storage import filesystem
from tests.study.study_fixture import TESTS, VARIANTS, make_study

LATEX = ("matrix.tex", "differences.tex", "costs.tex")
FILES = ("results.csv", "comparisons.csv", "costs.csv", "controls.csv", *LATEX)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def study() -> dict[str, Any]:
    return make_study(("short_videos", "long_videos"), examples=0)


def test_csv_reads_back(study: dict[str, Any], tmp_path: Path) -> None:
    write_study_tables(study, str(tmp_path))
    rows = read(tmp_path / "results.csv")
    raw = [row for row in rows if row["scores"] == "raw" and row["metric"] == "R@1"]
    assert len(raw) == len(study["results"]) * 2
    first = study["results"][4]
    chosen = [
        row
        for row in raw
        if all(row[key] == first[key] for key in ("condition", "variant", "training", "test"))
        and row["direction"] == "text_to_video"
    ]
    assert len(chosen) == 1
    value = first["text_to_video"]["R@1"]
    for field, key in (("estimate", "estimate"), ("low", "low"), ("high", "high"), ("sd", "deviation")):
        assert float(chosen[0][field]) == value[key]
    assert (chosen[0]["seeds"], chosen[0]["relation"], chosen[0]["split"]) == ("3", first["relation"], "test")
    assert {row["label"] for row in rows} == {study["label"]}
    metrics = {row["metric"] for row in rows}
    assert {"R@5", "R@10", "MRR", "MnR", "MdR", "hubness", "retention", "lift", "R@1 optimistic"} <= metrics
    columns = [row for row in rows if row["scores"] == "Dual softmax"]
    assert len(columns) == len(study["results"]) * 2 * 3
    assert all(row["note"].startswith("All test queries") for row in columns)
    leaked = sum(result["without_leaked"] is not None for result in study["results"])
    assert sum(row["scores"] == "without leaked videos" for row in rows) == 2 * leaked > 0
    # What there is none of is an empty field: no interval of a median, no deviation of an untrained model.
    assert {row["low"] for row in rows if row["metric"] == "MdR"} == {""}
    assert {row["sd"] for row in raw if row["variant"] == "zero-shot"} == {""}

    assert {(row["videos"], row["videos_of"]) for row in rows} == {("200", "200")}
    assert "Incomplete" not in (tmp_path / "matrix.tex").read_text()
    study["tests"][0] |= {"quarantined": 3, "rejected": 2}
    write_study_tables(study, str(tmp_path))
    rows = read(tmp_path / "results.csv")
    name = study["tests"][0]["name"]
    assert {row["videos_of"] for row in rows if row["test"] == name} == {"205"}
    assert {row["videos_of"] for row in rows if row["test"] != name} == {"200"}
    escaped = name.replace("_", r"\_")
    assert f"Incomplete: {escaped} 200 of 205 videos." in (tmp_path / "matrix.tex").read_text()

    comparisons = read(tmp_path / "comparisons.csv")
    assert len(comparisons) == len(study["comparisons"])
    assert [float(row["estimate"]) for row in comparisons] == [row["estimate"] for row in study["comparisons"]]
    costs = read(tmp_path / "costs.csv")
    assert len(costs) == len(study["costs"])
    assert costs[-1]["length_tied"] == "word_weights (32 × 32); frame_weights (12 × 12)"
    assert costs[0]["machine"] == study["cost_machine"]


def test_no_nan_or_none_is_written(study: dict[str, Any], tmp_path: Path) -> None:
    study["results"][0]["text_to_video"]["R@1"] |= {"estimate": float("nan"), "low": None}
    study["results"][3]["text_to_video"]["R@1"] |= {"estimate": float("nan")}
    study["comparisons"][0] |= {"high": float("inf"), "p_value": float("nan")}
    study["git_commit"] = None
    write_study_tables(study, str(tmp_path))
    for name in FILES:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search(r"\b(nan|none|inf)\b", text, re.IGNORECASE), name


def test_latex_is_balanced_and_escaped(study: dict[str, Any], tmp_path: Path) -> None:
    study["variants"][1]["name"] = study["costs"][0]["variant"] = study["comparisons"][0]["first"] = r"a_b & 5% $x {\y}"
    study["label"] = "Toy_domains #1"
    study["name"] = "two\nlines"
    write_study_tables(study, str(tmp_path))
    for name in LATEX:
        text = (tmp_path / name).read_text(encoding="utf-8")
        body = re.sub(r"\\[{}]", "", text)
        assert body.count("{") == body.count("}")
        assert text.count(r"\begin{") == text.count(r"\end{")
        lines = text.splitlines()
        assert lines[0].startswith("% two lines, ")
        assert r"Toy\_domains \#1." in text
        assert r"a\_b \& 5\% \$x \{\textbackslash{}y\}" in text
        bare = re.sub(r"\\[_&%$#]", "", "\n".join(lines[1:]))
        assert not re.search(r"[_#%]", bare)
        assert bare.count("$") % 2 == 0
        assert bare.isascii()
        columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])  # type: ignore[index]
        for line in lines:
            if line.endswith(r"\\"):
                spans = [int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                assert re.sub(r"\\&", "", line).count("&") + 1 + sum(spans) == columns, line


def test_matrix_marks_the_best_and_the_domain(study: dict[str, Any], tmp_path: Path) -> None:
    for result in study["results"]:
        if result["variant"] == "wti" and result["test"] == "toy_clips":
            result["text_to_video"]["R@1"]["estimate"] = 91.25
    write_study_tables(study, str(tmp_path))
    text = (tmp_path / "matrix.tex").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("wti"))
    assert row.startswith(r"wti & \textit{\textbf{91.2}} {\scriptsize$\pm$0.8} & ")
    assert len(re.findall("textbf", row)) >= 3
    assert len(re.findall("textit", row)) == len(TESTS)
    rows = [line for line in text.splitlines() if line.startswith(tuple(latex(name) + " &" for name in VARIANTS))]
    assert len(rows) == 2 * len(VARIANTS)
    assert sum(line.startswith("zero-shot &") for line in text.splitlines()) == 2


def test_unfinished_study_says_so(study: dict[str, Any], tmp_path: Path) -> None:
    study["results"] = [r for r in study["results"] if r["variant"] != "xclip"]
    study["finished_cells"] = 40
    study["costs"] = study["comparisons"] = []
    write_study_tables(study, str(tmp_path))
    for name in LATEX:
        assert "Unfinished: 40 of 54 cells." in (tmp_path / name).read_text(encoding="utf-8")
    assert "xclip & -- & --" in (tmp_path / "matrix.tex").read_text(encoding="utf-8")


def test_bad_input_is_named(study: dict[str, Any], tmp_path: Path) -> None:
    del study["label"]
    with pytest.raises(UserError, match="study: label: field required"):
        write_study_tables(study, str(tmp_path))


def test_tables_go_to_a_bucket(study: dict[str, Any], bucket: str) -> None:
    write_study_tables(study, f"{bucket}/study/tables")
    fs, path = filesystem(f"{bucket}/study/tables")
    assert isinstance(fs, fsspec.AbstractFileSystem)
    assert sorted(name.rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)) == sorted(FILES)
