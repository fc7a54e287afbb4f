"""Charts for the pages: matplotlib draws them, as inline SVG in the page's colours.

A chart is a function that enters a `Plot`, draws on its ``axes`` with matplotlib's own methods and the colours below,
and returns ``plot.chart(title)``; the template shows it with the macro ``figures`` of ``chart.html.j2``. Matplotlib is
imported when the first chart is drawn. No display, configuration file or font of the machine has a say in the result:
the same data gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from markupsafe import Markup

from glscl.reporting.formats import significant, tick
from glscl.reporting.svg import PALETTE, Name, css_colour, inline_svg

if TYPE_CHECKING:
    from matplotlib.artist import Artist

PAPER, INK, MUTED, LINE, NEUTRAL = (PALETTE[name] for name in ("paper", "ink", "muted", "line", "neutral"))
SERIES = tuple(PALETTE[name] for name in ("t2v", "v2t", "third", "fourth"))
"""Colours of series; distinct in light and dark, and to colour-blind readers."""
DASHES = ("", "5 3", "1.5 3.5", "8 3 2 3")
"""Of the series of a line chart, in the same order, as SVG writes them."""
MAX_POINTS = 300
"""Points of a line; of more, the means of equal runs are drawn."""

_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are other people's text
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "grid.color": LINE,
    "grid.linewidth": 1,
    "lines.scale_dashes": False,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "text.color": INK,
    **dict.fromkeys(("xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size", "xtick.minor.size", "ytick.minor.size"), 0),
    "xtick.major.pad": 10,
    "ytick.major.pad": 6,
}
"""Applied over matplotlib's defaults; a ``matplotlibrc`` of the machine is ignored."""

Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: how it is drawn, and what it stands for."""

    text: str
    colour: str
    dashes: str = ""
    width: float = 2

    @property
    def stroke(self) -> str:
        """The colour as the page writes it."""
        return css_colour(self.colour)


@dataclass(frozen=True)
class Chart:
    """A finished chart, as the macro ``figures`` shows it."""

    title: str
    svg: Markup
    note: str = ""
    """Stands opposite the title."""
    legend: Sequence[LegendEntry] = ()


class Plot:
    """A figure with one pair of axes, in units of the SVG element; a context in which its charts are drawn.

    ``width`` and ``height`` are of the view box; the chart fills its column, so these set its shape and the size of its
    text. The left margin grows with the labels of the vertical axis.
    """

    def __init__(
        self,
        width: float = 320,
        height: float = 176,
        *,
        left: float = 38,
        right: float = 12,
        top: float = 10,
        bottom: float = 26,
        font: float = 10.5,
    ) -> None:
        self.width, self.height = width, height
        self._left, self._right, self._top, self._bottom = left, right, top, bottom
        self._font = font
        self._names: dict[str, Name] = {}
        self._style = contextlib.ExitStack()

    def __enter__(self) -> Self:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._style.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's fonts are not matplotlib's
        self._style.enter_context(matplotlib.rc_context())
        matplotlib.rcdefaults()
        sizes = dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), self._font)
        matplotlib.rcParams.update(_STYLE | sizes)  # type: ignore[arg-type]  # whose keys are literals
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)
        self._canvas = FigureCanvasSVG(self.figure)
        self.axes = self.figure.add_axes(self._frame(self._left))
        self.axes.grid(axis="y")
        self.axes.set_axisbelow(True)
        self.axes.margins(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._style.close()

    def ticks(self, *, x: int = 3, y: int = 5, whole: bool = False) -> None:
        """Ticks at round numbers, about so many; ``whole``: at whole numbers of the horizontal axis only."""
        from matplotlib.ticker import MaxNLocator

        self.axes.xaxis.set_major_locator(MaxNLocator(x + 1, steps=[1, 2, 5, 10], integer=whole))
        self.axes.yaxis.set_major_locator(MaxNLocator(y + 1, steps=[1, 2, 5, 10]))
        self.axes.xaxis.set_major_formatter(lambda value, _: tick(value))
        self.axes.yaxis.set_major_formatter(lambda value, _: tick(value))

    def x_ticks_at(self, marks: Sequence[tuple[float, str]]) -> None:
        """Ticks of the horizontal axis at these places only, with these labels."""
        self.axes.set_xticks([at for at, _ in marks], [text for _, text in marks])
        self.axes.minorticks_off()

    def name(self, artist: Artist, classes: str = "", title: str = "") -> None:
        """Give something drawn CSS classes, and a text that is shown when it is pointed at."""
        key = f"n{len(self._names)}"
        artist.set_gid(key)
        self._names[key] = Name(classes, title)

    def label_points(self, points: Sequence[tuple[float, float, str]], *, radius: float, size: float) -> None:
        """Write a name beside each marker, where it covers no other name or marker; a thin line leads to one far off.

        The limits of both axes must be set.
        """
        self._fit()
        frame = self.axes.get_window_extent()
        to_units = self.axes.transData.transform
        centres = [tuple(map(float, to_units((x, y)))) for x, y, _ in points]
        taken = [(x - radius - 2, y - radius - 2, x + radius + 2, y + radius + 2) for x, y in centres]
        for (x, y), (_, _, name) in zip(centres, points, strict=True):
            text = self.axes.text(0, 0, name, transform=None, fontsize=size, color=INK, va="center", zorder=5)
            width = max(text.get_window_extent().width, 1.0)
            box, leader = free_box(width, x, y, taken, (frame.x0, frame.y0, self.width, frame.y1), radius, size + 2)
            taken.append(box)
            text.set_position((box[0], (box[1] + box[3]) / 2))
            self.name(text, "name")
            if leader is not None:
                self.axes.plot(*zip((x, y), leader, strict=True), color=NEUTRAL, linewidth=1, transform=None, zorder=1)

    def chart(self, title: str, *, note: str = "", legend: Sequence[LegendEntry] = (), description: str = "") -> Chart:
        """Finish the chart; ``description`` is for those who hear the page."""
        self._fit()
        document = io.StringIO()
        self._canvas.print_svg(document, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return Chart(title, inline_svg(document.getvalue(), self._names, title, description), note, legend)

    def _fit(self) -> None:
        """Make room for the labels of the vertical axis."""
        widths = [label.get_window_extent().width for label in self.axes.get_yticklabels()]
        self.axes.set_position(self._frame(max([self._left, *(width + 10 for width in widths)])))

    def _frame(self, left: float) -> Box:
        across, up = self.width - left - self._right, self.height - self._top - self._bottom
        return left / self.width, self._bottom / self.height, across / self.width, up / self.height


def round_numbers(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within ``[low, high]``, at most about ``count`` of them."""
    if high <= low:
        return [low]
    from matplotlib.ticker import MaxNLocator

    margin = 1e-9 * (high - low)
    values = MaxNLocator(count + 1, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low - margin <= value <= high + margin]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    y_range: tuple[float, float] | None = None,
    draw: Callable[[Plot, str, Points], None] | None = None,
) -> Chart | None:
    """Lines over a common horizontal axis of whole numbers; None if there is nothing finite to draw.

    ``draw`` draws the line of a name. Without, lines have the colours of series and are named with their last values:
    several in a legend, one opposite the title.
    """
    finite = {name: kept for name, points in series.items() if (kept := _finite(points))}
    if not finite:
        return None
    with Plot() as plot:
        for index, (name, points) in enumerate(finite.items()):
            if draw is not None:
                draw(plot, name, _thin(points))
            else:
                _draw_line(plot, _thin(points), index % len(SERIES))
        steps, values = zip(*(point for points in finite.values() for point in points), strict=True)
        plot.axes.set_xlim(*_apart(min(steps), max(steps), 0.5))
        low, high = y_range or (min(values), max(values))
        plot.axes.set_ylim(*_apart(low, high, abs(low) * 0.1 or 1.0))
        plot.ticks(whole=True)
        if draw is not None:
            return plot.chart(title)
        last = {name: significant(points[-1][1]) for name, points in finite.items()}
        if len(last) == 1:
            return plot.chart(title, note=last.popitem()[1])
        entries = map(LegendEntry, map(" ".join, last.items()), itertools.cycle(SERIES), itertools.cycle(DASHES))
        return plot.chart(title, legend=list(entries))


def free_box(
    width: float, x: float, y: float, taken: Sequence[Box], frame: Box, radius: float, height: float
) -> tuple[Box, tuple[float, float] | None]:
    """The place around a marker at (x, y) where its label covers the least, the nearer the better; right side first.

    Boxes are ``(left, bottom, right, top)``: those ``taken`` by other labels and markers, and the ``frame`` where the
    label should be. Returns the label's, and where a line from the marker meets it, if it had to go elsewhere than
    beside the marker.
    """
    best: tuple[float, Box, tuple[float, float] | None] | None = None
    for distance in (0.0, 12.0, 24.0, 38.0, 54.0):
        gap = radius + 3 + distance
        for horizontal, vertical in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            slack = 0.6 if horizontal and vertical else 1.0  # a corner is farther off than a side
            centre_x = x + horizontal * (gap * slack + width / 2)
            centre_y = y + vertical * (gap * slack + height / 2)
            box = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            covered = width * height - _overlap(box, frame) + sum(_overlap(box, other) for other in taken)
            cost = 20 * covered + distance + 2 * (horizontal != 1) + 2 * (vertical != 0)
            if best is None or cost < best[0]:
                edge = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
                best = cost, box, edge if distance else None
    assert best is not None
    return best[1], best[2]


def _draw_line(plot: Plot, points: Points, index: int) -> None:
    """A line of the series' colour and dashes, its last point marked."""
    dashes = tuple(map(float, DASHES[index].split()))
    x, y = zip(*points, strict=True)
    plot.axes.plot(x, y, color=SERIES[index], linewidth=1.75, linestyle=(0, dashes) if dashes else "-")
    plot.axes.plot(x[-1:], y[-1:], "o", color=SERIES[index], markersize=6, markeredgewidth=0, clip_on=False)


def _apart(low: float, high: float, margin: float) -> tuple[float, float]:
    """The ends of an axis; with a margin where they are the same."""
    return (low, high) if high > low else (low - margin, high + margin)


def _finite(points: Points) -> Points:
    return [point for point in points if all(map(math.isfinite, point))]


def _thin(points: Points) -> Points:
    """At most ``MAX_POINTS`` points: the means of equal runs of them."""
    size = -(-len(points) // MAX_POINTS)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in run) / len(run), math.fsum(y for _, y in run) / len(run)) for run in runs]


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
