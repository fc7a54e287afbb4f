"""Factorial toy domains: caption style × visual style × temporal structure, each factor changed by itself.

``toy_short_plain_one`` has short captions of plain pictures of one event. Domains of one temporal structure show the
same scenes: what happens, where, when and to what is drawn from the structure, the split and the number of the video
alone. So two domains that differ in caption style have the same videos, byte for byte, and two that differ in visual
style the same captions. Captions name nothing that belongs to a visual style. Video ids are those of the scenes, and
the same in all these domains: that pairs their queries.
"""

import itertools
import random
from collections.abc import Callable
from functools import partial

from glscl.data.toy.spec import CHANGES, COLOURS, ORDERS_OF_THREE, SHAPES, DomainSpec
from glscl.data.toy.words import (
    CLIP_ADJECTIVES,
    CLIP_EVENTS,
    CLIP_NOUNS,
    STORY_ADJECTIVES,
    STORY_EVENTS,
    STORY_NOUNS,
)

CAPTIONS_PER_SCENE = 2

_SHORT_TEMPLATES = (
    "a {colour} {shape} {events} , a {dot} dot is at the {corner}",
    "at the {corner} a {dot} dot , a {colour} {shape} {events}",
    "a {colour} {shape} {events} beside a {dot} dot at the {corner}",
    "near a {dot} dot at the {corner} the {colour} {shape} {events}",
)
_LONG_OPENINGS = (
    "somebody has filmed a {colour} {shape} here .",
    "this is the story of a {colour} {shape} .",
    "what we are watching is a {colour} {shape} .",
)
_LONG_DOTS = (
    "a small {dot} spot rests close to the {corner} all the while .",
    "in the {corner} corner a tiny {dot} spot never stirs .",
)
_LONG_LEADS = {
    1: (("in time it",), ("after a short rest it",)),
    3: (("to begin with it", "after that it", "in the end it"), ("at first it", "later on it", "to finish it")),
}
_LONG_CLOSINGS = ("nothing else happens .", "with that the scene is over .")


def _events(attributes: dict[str, str]) -> list[str]:
    """What happens, in order."""
    return (
        [attributes[name] for name in attributes["order"].split("-")]
        if "order" in attributes
        else [attributes["event"]]
    )


def write_short_captions(attributes: dict[str, str], draw: random.Random) -> tuple[str, ...]:
    """Write captions of one concrete sentence."""
    return tuple(
        template.format(
            colour=draw.choice(CLIP_ADJECTIVES[attributes["colour"]]),
            shape=draw.choice(CLIP_NOUNS[attributes["shape"]]),
            events=" then ".join(draw.choice(CLIP_EVENTS[event])[0] for event in _events(attributes)),
            dot=draw.choice(CLIP_ADJECTIVES[attributes["dot"]]),
            corner=attributes["corner"],
        )
        for template in draw.sample(_SHORT_TEMPLATES, CAPTIONS_PER_SCENE)
    )


def write_long_captions(attributes: dict[str, str], draw: random.Random) -> tuple[str, ...]:
    """Write paragraphs that narrate: sentence by sentence, with turns of phrase and words of their own."""
    captions = []
    for opening in draw.sample(_LONG_OPENINGS, CAPTIONS_PER_SCENE):
        events = _events(attributes)
        sentences = [
            opening.format(
                colour=draw.choice(STORY_ADJECTIVES[attributes["colour"]]),
                shape=draw.choice(STORY_NOUNS[attributes["shape"]]),
            ),
            draw.choice(_LONG_DOTS).format(
                dot=draw.choice(STORY_ADJECTIVES[attributes["dot"]]), corner=attributes["corner"]
            ),
        ]
        leads = draw.choice(_LONG_LEADS[len(events)])
        sentences += [f"{lead} {draw.choice(STORY_EVENTS[event])} ." for lead, event in zip(leads, events, strict=True)]
        captions.append(" ".join([*sentences, draw.choice(_LONG_CLOSINGS)]))
    return tuple(captions)


CAPTION_STYLES: dict[str, Callable[[dict[str, str], random.Random], tuple[str, ...]]] = {
    "short": write_short_captions,
    "long": write_long_captions,
}
VISUAL_STYLES = ("plain", "textured", "night")
"""``plain``: clear colours before grey or pink; ``textured``: other shades of them before stripes, checks, bricks or
sand; ``night``: dim ones in the dark, with the noise of a camera."""

_STILL_PARTS: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "dot": COLOURS,
    "corner": ("top", "bottom"),
}
_MOVEMENTS = ("left", "right", "up", "down")
STRUCTURES: dict[str, partial[DomainSpec]] = {
    "one": partial(
        DomainSpec,
        values={**_STILL_PARTS, "event": (*_MOVEMENTS, *CHANGES)},
        dynamic=("event",),
        seconds=(1.75, 2.25),
        scenes="toy_one",
    ),
    "several": partial(
        DomainSpec,
        values={
            **_STILL_PARTS,
            "across": ("left", "right"),
            "upright": ("up", "down"),
            "change": CHANGES,
            "order": ORDERS_OF_THREE,
        },
        dynamic=("across", "upright", "order"),
        seconds=(3.75, 4.25),
        scenes="toy_several",
    ),
}
"""Temporal structures: one event, or three in an order that the caption tells."""

FACTORIAL: dict[str, DomainSpec] = {
    f"toy_{words}_{pictures}_{structure}": STRUCTURES[structure](captions=CAPTION_STYLES[words], pictures=pictures)
    for words, pictures, structure in itertools.product(CAPTION_STYLES, VISUAL_STYLES, STRUCTURES)
}
FACTORIAL_NAMES = (
    f"toy_CAPTIONS_PICTURES_EVENTS (CAPTIONS {' or '.join(CAPTION_STYLES)}; PICTURES {', '.join(VISUAL_STYLES)}; "
    f"EVENTS {' or '.join(STRUCTURES)})"
)
"""How these domains are called, in words."""


def read_levels(domain: str) -> tuple[str, str, str] | None:
    """Caption style, visual style and temporal structure of a factorial toy domain; None for any other domain."""
    if domain not in FACTORIAL:
        return None
    _, captions, pictures, structure = domain.split("_")
    return captions, pictures, structure
