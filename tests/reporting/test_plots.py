"""Charts as inline SVG: the page's colours, the same bytes for the same data, and nothing but text from names."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from glscl.reporting.page import environment
from glscl.reporting.plots import INK, SERIES, Chart, Plot, free_box, line_chart, round_numbers
from glscl.reporting.svg import PALETTE
from tests.reporting.html_page import HOSTILE, Page

MATH = "$x_1$ \\alpha \x1b[31m"
"""A name that matplotlib would read as mathematics, and that no XML may hold."""


def drawn(name: str = "a") -> Chart:
    with Plot() as plot:
        (line,) = plot.axes.plot([0, 1, 2], [3, 1, 2], "o-", color=SERIES[0])
        plot.name(line, "best", name)
        plot.axes.plot([0, 1], [1, 2], "s", color=INK)
        plot.axes.set_xlabel(name)
        plot.ticks()
        plot.label_points([(1, 2, name)], radius=3, size=10)
        return plot.chart(name, description=name)


def test_a_chart_has_the_colours_of_the_page_and_no_ids_or_styles() -> None:
    chart = drawn()
    page = Page(str(chart.svg))
    colours = {a[key] for _, a in page.elements for key in ("fill", "stroke") if key in a}
    assert colours == {"none", *(f"var(--{name})" for name in ("ink", "muted", "line", "t2v"))}
    assert not re.search(r"#|url\(|style=|<style|xlink|xmlns| id=|metadata|matplotlib|DejaVu", str(chart.svg))
    assert [a["class"] for tag, a in page.elements if tag == "g"] == ["best", "name"]
    assert sum(tag == "circle" for tag, _ in page.elements) == 3
    (svg,) = [a for tag, a in page.elements if tag == "svg"]
    assert (svg["role"], svg["aria-label"], svg["viewbox"]) == ("img", "a", "0 0 320 176")


def test_names_are_only_text() -> None:
    page = Page(str(drawn(HOSTILE).svg))
    assert page.text.count(HOSTILE) == 4  # axis, name of the point, description, and what pointing at the line shows
    assert "script" not in {tag for tag, _ in page.elements}
    assert "$x_1$ \\alpha \ufffd[31m" in Page(str(drawn(MATH).svg)).text


def test_the_same_data_gives_the_same_bytes_whatever_the_machine_prefers() -> None:
    import matplotlib

    first = drawn()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert drawn() == first


def test_a_colour_of_no_theme_is_refused() -> None:
    with Plot() as plot:
        plot.axes.plot([0, 1], [0, 1], color="#123456")
        with pytest.raises(ValueError, match="#123456 is not a colour of the page"):
            plot.chart("a")


def test_pictures_are_refused() -> None:
    with Plot() as plot:
        plot.axes.imshow([[0, 1], [1, 0]])
        with pytest.raises(ValueError, match="<image> of matplotlib is not drawn"):
            plot.chart("a")


def test_the_palette_is_that_of_the_page() -> None:
    style = environment("glscl.reporting").get_template("page.css.j2").render(narrow="screen")
    light, dark = style.split("@media", 1)[0], style.split("prefers-color-scheme: dark", 1)[1]
    for name, colour in PALETTE.items():
        assert re.search(rf"--{name}: {re.sub('#ffffff', '#fff', colour)};", light), name
        assert f"--{name}: " in dark


def test_lines() -> None:
    points = [(step, 1.0 / (step + 1)) for step in range(2000)]
    chart = line_chart("loss", {"loss": points})
    assert chart
    assert chart.note == "0.0005"
    path = max(re.findall(r' d="([^"]*)"', str(chart.svg)), key=len)
    assert len(re.findall("[ML]", path)) <= 300
    assert line_chart("empty", {"a": [(0, float("nan"))]}) is None
    assert line_chart("one point", {"a": [(3, 0.0)]}) is not None
    wide = line_chart("wide labels", {"a": [(0, 123456.25), (1, 123456.5)]})
    assert wide
    assert min(float(x) for x in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end"', str(wide.svg))) > 38


def test_round_numbers_are_within() -> None:
    assert round_numbers(0, 100, 4) == [0, 20, 40, 60, 80, 100]
    assert round_numbers(2e-4, 3e-4, 4) == pytest.approx([2e-4, 2.2e-4, 2.4e-4, 2.6e-4, 2.8e-4, 3e-4])
    assert round_numbers(1, 1, 4) == [1]


def test_labels_do_not_overlap() -> None:
    taken = [(100 + 5 * n - 6.0, 50 + n - 6.0, 100 + 5 * n + 6.0, 50 + n + 6.0) for n in range(6)]
    boxes = []
    for n in range(6):
        box, _ = free_box(60, 100 + 5 * n, 50 + n, [*taken, *boxes], (0, 0, 400, 200), 6, 14)
        assert 0 <= box[0] < box[2] <= 400
        for other in boxes:
            assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
        boxes.append(box)


def test_matplotlib_is_imported_when_a_page_is_written() -> None:
    check = (
        "import sys, glscl.study.report, glscl.evaluation.report, tune.report; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
