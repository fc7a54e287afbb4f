"""Captions of the toy domains: each names every attribute of its video, in words drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable

Forms = tuple[str, str]  # third person, gerund

Words = dict[str, tuple[str, ...]]

_CLIP_NOUNS: Words = {"disc": ("disc", "ball", "circle"), "plank": ("plank", "board"), "pillar": ("pillar", "pole")}
_CLIP_ADJECTIVES: Words = {colour: (colour,) for colour in ("red", "green", "blue", "yellow")}
_CLIP_BACKGROUNDS: Words = {"grey": ("grey", "gray"), "pink": ("pink",)}
_CLIP_EVENTS: dict[str, tuple[Forms, ...]] = {
    "left": (("moves left", "moving left"), ("slides to the left", "sliding to the left"), ("goes left", "going left")),
    "right": (
        ("moves right", "moving right"),
        ("slides to the right", "sliding to the right"),
        ("goes right", "going right"),
    ),
    "up": (("moves up", "moving up"), ("slides upwards", "sliding upwards"), ("rises", "rising")),
    "down": (("moves down", "moving down"), ("slides downwards", "sliding downwards"), ("falls", "falling")),
    "grows": (("grows", "growing"), ("gets bigger", "getting bigger"), ("becomes larger", "becoming larger")),
    "shrinks": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "whitens": (("turns white", "turning white"), ("becomes white", "becoming white")),
    "blackens": (("turns black", "turning black"), ("becomes black", "becoming black")),
}
_CLIP_TEMPLATES = (
    "a {colour} {shape} {first} and then {second} on a {background} background",
    "on a {background} background a {colour} {shape} first {first} , then {second}",
    "there is a {colour} {shape} {first_ing} before {second_ing} in front of {background}",
    "{background} background : the {shape} is {colour} , it {first} and afterwards it {second}",
    "a {shape} in {colour} {first} , next it {second} , all is {background} behind it",
    "a {colour} {shape} {second} after {first_ing} over a {background} backdrop",
)
CAPTIONS_PER_CLIP = 4

_STORY_NOUNS: Words = {
    "disc": ("disc", "circle", "sphere"),
    "plank": ("plank", "board", "beam"),
    "pillar": ("pillar", "pole", "column"),
}
_STORY_ADJECTIVES: Words = {
    "red": ("red", "red", "crimson"),
    "green": ("green", "green", "jade"),
    "blue": ("blue", "blue", "cobalt"),
    "yellow": ("yellow", "yellow", "golden"),
}
_STORY_GROUNDS: Words = {
    "stripes": ("a striped curtain", "striped cloth"),
    "checks": ("a chessboard", "a checked floor"),
    "bricks": ("a brick wall", "stacked bricks"),
    "sand": ("a beach", "yellowish sand"),
}
_STORY_EVENTS: Words = {
    "left": ("moves left", "goes left", "drifts to the left"),
    "right": ("moves right", "goes right", "drifts to the right"),
    "up": ("moves up", "rises", "climbs"),
    "down": ("moves down", "falls", "sinks"),
    "grows": ("grows", "gets bigger", "swells"),
    "shrinks": ("shrinks", "gets smaller", "dwindles"),
    "whitens": ("turns white", "becomes white", "bleaches"),
    "blackens": ("turns black", "becomes black", "darkens"),
}
_STORY_TEMPLATES = (
    "a {colour} {shape} in front of {ground} . first it {one} . then it {two} . last it {three} .",
    "{ground} with a {colour} {shape} . it {one} . after that it {two} . in the end it {three} .",
    "a {colour} {shape} before {ground} . it {one} . next it {two} . finally it {three} .",
)


def write_clip_captions(attributes: dict[str, str], draw: random.Random) -> tuple[str, ...]:
    """Write the captions of one clip: four different sentences, the events in order (or the order in words)."""
    captions = []
    for template in draw.sample(_CLIP_TEMPLATES, CAPTIONS_PER_CLIP):
        events = [draw.choice(_CLIP_EVENTS[attributes[key]]) for key in attributes["order"].split("-")]
        captions.append(
            template.format(
                colour=draw.choice(_CLIP_ADJECTIVES[attributes["colour"]]),
                shape=draw.choice(_CLIP_NOUNS[attributes["shape"]]),
                background=draw.choice(_CLIP_BACKGROUNDS[attributes["background"]]),
                first=events[0][0],
                first_ing=events[0][1],
                second=events[1][0],
                second_ing=events[1][1],
            )
        )
    return tuple(captions)


def write_story_captions(attributes: dict[str, str], draw: random.Random) -> tuple[str, ...]:
    """Write the one paragraph of a story: a sentence for each event, in order."""
    one, two, three = (draw.choice(_STORY_EVENTS[attributes[key]]) for key in attributes["order"].split("-"))
    return (
        draw.choice(_STORY_TEMPLATES).format(
            colour=draw.choice(_STORY_ADJECTIVES[attributes["colour"]]),
            shape=draw.choice(_STORY_NOUNS[attributes["shape"]]),
            ground=draw.choice(_STORY_GROUNDS[attributes["ground"]]),
            one=one,
            two=two,
            three=three,
        ),
    )


_STILL_ADJECTIVES = {"white": ("white",), "black": ("black",)}
_STILL_GROUNDS: Words = {
    "grey": ("a grey background", "a gray backdrop"),
    "pink": ("a pink background", "a pink backdrop"),
}
_STILL_PLACES: Words = {
    "left": ("on the left", "to the left"),
    "right": ("on the right", "to the right"),
    "top": ("at the top", "high up"),
    "bottom": ("at the bottom", "low down"),
    "middle": ("in the middle", "in the centre"),
}
_STILL_SIZES: Words = {"small": ("small", "little"), "large": ("large", "big")}
_STILL_TEMPLATES = (
    "a {size} {colour} {shape} {place} in front of {ground}",
    "{ground} with a {size} {colour} {shape} {place}",
    "{place} a {colour} {shape} , {size} , before {ground}",
    "a photo of a {size} {shape} in {colour} {place} , behind it {ground}",
)
CAPTIONS_PER_STILL = 2


def write_still_captions(attributes: dict[str, str], draw: random.Random) -> tuple[str, ...]:
    """Write the captions of one still, in the words of both other domains."""
    colour, shape, ground = attributes["colour"], attributes["shape"], attributes["ground"]
    return tuple(
        template.format(
            colour=draw.choice(_STORY_ADJECTIVES.get(colour) or _STILL_ADJECTIVES[colour]),
            shape=draw.choice(_CLIP_NOUNS[shape] + _STORY_NOUNS[shape]),
            ground=draw.choice(_STORY_GROUNDS.get(ground) or _STILL_GROUNDS[ground]),
            place=draw.choice(_STILL_PLACES[attributes["place"]]),
            size=draw.choice(_STILL_SIZES[attributes["size"]]),
        )
        for template in draw.sample(_STILL_TEMPLATES, CAPTIONS_PER_STILL)
    )


CAPTIONS: dict[str, Callable[[dict[str, str], random.Random], tuple[str, ...]]] = {
    "toy_clips": write_clip_captions,
    "toy_stories": write_story_captions,
    "toy_stills": write_still_captions,
}
"""Writer of captions of each domain."""
