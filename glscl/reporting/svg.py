"""Matplotlib's SVG rewritten for the inside of an HTML page: themed colours, no ids, no styles, all text escaped."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

PALETTE = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#5c6670",
    "line": "#dfe3e8",
    "neutral": "#8a949e",
    "t2v": "#0072b2",
    "v2t": "#c45500",
    "third": "#00795a",
    "fourth": "#9b4f80",
}
"""CSS variable of the page -> its light colour, which stands for the variable while a chart is drawn."""

_VARIABLES = {colour: f"var(--{name})" for name, colour in PALETTE.items()} | {"none": "none"}
_KEPT = ("text-anchor", "font-size", "font-weight", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity",
         "fill-opacity", "stroke-opacity")  # fmt: skip
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECIMAL = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_CIRCLE_ARCS = 8
"""Curves that matplotlib draws a circle with."""


@dataclass(frozen=True)
class Name:
    """What an element of a chart is called: CSS classes, and the text shown when it is pointed at."""

    classes: str
    title: str


def inline_svg(document: str, names: Mapping[str, Name], label: str, description: str = "") -> Markup:
    """Rewrite a document of matplotlib's SVG backend (``svg.fonttype`` is ``none``) as an ``<svg>`` element.

    The element has the width of its container. Colours become the page's CSS variables, so the chart follows light,
    dark and print. Marker definitions and clip paths are written out or dropped, so no id can clash. ``names``
    are those of artists by group id; ``label`` and ``description`` are for screen readers.

    Raises:
        ValueError: a colour is not one of `PALETTE`, or an element is no line, marker or text.
    """
    source = ElementTree.fromstring(_NOT_XML.sub("\ufffd", document))
    definitions = {element.get("id", ""): element for element in source.iter() if _tag(element) == "path"}
    root = ElementTree.Element(
        "svg", {"viewBox": source.get("viewBox", ""), "role": "img", "aria-label": label, "stroke-linejoin": "round"}
    )
    if description:
        ElementTree.SubElement(root, "desc").text = description
    for child in source:
        root.extend(list(_rewrite(child, names, definitions)))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def css_colour(colour: str) -> str:
    """The CSS variable that a colour of the palette stands for. Raises `ValueError`: it is none of them."""
    if colour not in _VARIABLES:
        raise ValueError(f"{colour} is not a colour of the page: take one of glscl.reporting.plots")
    return _VARIABLES[colour]


def _rewrite(
    source: ElementTree.Element, names: Mapping[str, Name], definitions: Mapping[str, ElementTree.Element]
) -> Iterator[ElementTree.Element]:
    """The elements that stand for one of matplotlib's: a named group, or what a nameless one holds."""
    tag = _tag(source)
    if tag == "g":
        children = [element for child in source for element in _rewrite(child, names, definitions)]
        name = names.get(source.get("id", ""))
        yield from children if name is None else [_group(name, children)]
    elif tag == "use":
        yield _marker(source, definitions[(source.get("{http://www.w3.org/1999/xlink}href") or "").lstrip("#")])
    elif tag == "path":
        attributes = _presentation(source)
        if attributes.get("fill") != "none" or attributes.get("stroke", "none") != "none":
            yield ElementTree.Element("path", {"d": _shape(source), **attributes})
    elif tag == "text":
        yield _text(source)
    elif tag not in ("defs", "metadata"):
        raise ValueError(f"<{tag}> of matplotlib is not drawn on pages: use lines, markers and text")


def _group(name: Name, children: Iterable[ElementTree.Element]) -> ElementTree.Element:
    group = ElementTree.Element("g", {"class": name.classes} if name.classes else {})
    if name.title:
        ElementTree.SubElement(group, "title").text = name.title
    group.extend(children)
    return group


def _text(source: ElementTree.Element) -> ElementTree.Element:
    text = ElementTree.Element("text", {axis: _round(source.get(axis, "0")) for axis in "xy"})
    text.attrib.update(_presentation(source))
    turned = source.get("transform", "")
    if turned and not turned.startswith("rotate(-0 "):
        text.set("transform", _round(turned))
    text.text = source.text
    return text


def _marker(use: ElementTree.Element, definition: ElementTree.Element) -> ElementTree.Element:
    """A marker in its place: a circle where it is one, else its path."""
    x, y, shape, style = _round(use.get("x", "0")), _round(use.get("y", "0")), _shape(definition), _presentation(use)
    if shape.count("C") == _CIRCLE_ARCS:
        radius = shape.partition("C")[0].split()[1].lstrip("-")
        return ElementTree.Element("circle", {"cx": x, "cy": y, "r": radius, **style})
    return ElementTree.Element("path", {"transform": f"translate({x} {y})", "d": shape, **style})


def _presentation(source: ElementTree.Element) -> dict[str, str]:
    """A style attribute as presentation attributes; fonts are the page's."""
    style = dict(entry.strip().split(": ", 1) for entry in source.get("style", "").split("; ") if ": " in entry)
    attributes = {side: css_colour(style[side]) for side in ("fill", "stroke") if side in style}
    return attributes | {key: _round(style[key].removesuffix("px")) for key in _KEPT if key in style}


def _shape(path: ElementTree.Element) -> str:
    text = _round(" ".join(path.get("d", "").split()))
    return re.sub(r" ?([MLCQZz]) ?", r"\1", text)


def _round(text: str) -> str:
    """Every decimal number of a text, to hundredths."""
    return _DECIMAL.sub(lambda match: f"{round(float(match[0]), 2) + 0.0:g}", text)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
