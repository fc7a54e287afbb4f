"""The videos of the toy domains: combinations of attributes, dealt to splits, and their captions.

Every attribute is drawn independently of every other one. Where things happen, combinations come in *twins* that differ
in the order of events only; twins stay together, so every test video has a neighbour which only a model that has
learned the order tells apart. Twins belong to one split by a draw that depends on the domain and the seed, never on the
number of videos asked for: a test combination is never in another split, whatever the counts.
"""

import itertools
import random
from collections import defaultdict

from glscl.data.records import Record
from glscl.data.toy.factorial import FACTORIAL, FACTORIAL_NAMES
from glscl.data.toy.spec import CHANGES, COLOURS, ORDERS_OF_THREE, SHAPES, DomainSpec
from glscl.data.toy.words import (
    CLIP_ADJECTIVES,
    CLIP_BACKGROUNDS,
    CLIP_EVENTS,
    CLIP_NOUNS,
    STORY_ADJECTIVES,
    STORY_EVENTS,
    STORY_GROUNDS,
    STORY_NOUNS,
    Words,
)
from glscl.errors import UserError, did_you_mean

_CLIP_TEMPLATES = (
    "a {colour} {shape} {first} and then {second} on a {background} background",
    "on a {background} background a {colour} {shape} first {first} , then {second}",
    "there is a {colour} {shape} {first_ing} before {second_ing} in front of {background}",
    "{background} background : the {shape} is {colour} , it {first} and afterwards it {second}",
    "a {shape} in {colour} {first} , next it {second} , all is {background} behind it",
    "a {colour} {shape} {second} after {first_ing} over a {background} backdrop",
)
CAPTIONS_PER_CLIP = 4

_STORY_TEMPLATES = (
    "a {colour} {shape} in front of {ground} . first it {one} . then it {two} . last it {three} .",
    "{ground} with a {colour} {shape} . it {one} . after that it {two} . in the end it {three} .",
    "a {colour} {shape} before {ground} . it {one} . next it {two} . finally it {three} .",
)


def write_clip_captions(attributes: dict[str, str], draw: random.Random) -> tuple[str, ...]:
    """Write the captions of one clip: four different sentences, the events in order (or the order in words)."""
    captions = []
    for template in draw.sample(_CLIP_TEMPLATES, CAPTIONS_PER_CLIP):
        events = [draw.choice(CLIP_EVENTS[attributes[key]]) for key in attributes["order"].split("-")]
        captions.append(
            template.format(
                colour=draw.choice(CLIP_ADJECTIVES[attributes["colour"]]),
                shape=draw.choice(CLIP_NOUNS[attributes["shape"]]),
                background=draw.choice(CLIP_BACKGROUNDS[attributes["background"]]),
                first=events[0][0],
                first_ing=events[0][1],
                second=events[1][0],
                second_ing=events[1][1],
            )
        )
    return tuple(captions)


def write_story_captions(attributes: dict[str, str], draw: random.Random) -> tuple[str, ...]:
    """Write the one paragraph of a story: a sentence for each event, in order."""
    one, two, three = (draw.choice(STORY_EVENTS[attributes[key]]) for key in attributes["order"].split("-"))
    return (
        draw.choice(_STORY_TEMPLATES).format(
            colour=draw.choice(STORY_ADJECTIVES[attributes["colour"]]),
            shape=draw.choice(STORY_NOUNS[attributes["shape"]]),
            ground=draw.choice(STORY_GROUNDS[attributes["ground"]]),
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
            colour=draw.choice(STORY_ADJECTIVES.get(colour) or _STILL_ADJECTIVES[colour]),
            shape=draw.choice(CLIP_NOUNS[shape] + STORY_NOUNS[shape]),
            ground=draw.choice(STORY_GROUNDS.get(ground) or _STILL_GROUNDS[ground]),
            place=draw.choice(_STILL_PLACES[attributes["place"]]),
            size=draw.choice(_STILL_SIZES[attributes["size"]]),
        )
        for template in draw.sample(_STILL_TEMPLATES, CAPTIONS_PER_STILL)
    )


TOY_SPLITS = ("train", "dev", "test")
_SHARES = {"test": 0.28, "dev": 0.13}  # of the combinations; training has the rest


DOMAINS: dict[str, DomainSpec] = {
    "toy_clips": DomainSpec(
        values={
            "colour": COLOURS,
            "shape": SHAPES,
            "background": ("grey", "pink"),
            "movement": ("left", "right", "up", "down"),
            "change": CHANGES,
            "order": ("movement-change", "change-movement"),
        },
        dynamic=("movement", "order"),
        seconds=(1.75, 2.25),
        captions=write_clip_captions,
    ),
    "toy_stories": DomainSpec(
        values={
            "colour": COLOURS,
            "shape": SHAPES,
            "ground": ("stripes", "checks", "bricks", "sand"),
            "across": ("left", "right"),
            "upright": ("up", "down"),
            "change": CHANGES,
            "order": ORDERS_OF_THREE,
        },
        dynamic=("across", "upright", "order"),
        seconds=(6.0, 8.0),
        captions=write_story_captions,
    ),
    "toy_stills": DomainSpec(
        values={
            "colour": (*COLOURS, "white", "black"),
            "shape": SHAPES,
            "ground": ("grey", "pink", "stripes", "checks", "bricks", "sand"),
            "place": ("left", "right", "top", "bottom", "middle"),
            "size": ("small", "large"),
        },
        dynamic=(),
        seconds=(0.5, 0.5),
        captions=write_still_captions,
    ),
    **FACTORIAL,
}
FPS = 8


def toy_names() -> tuple[str, ...]:
    """Names of the toy domains."""
    return tuple(DOMAINS)


def describe_names() -> str:
    """The names of the toy domains in words, the factorial ones by their rule."""
    return f"{', '.join(name for name in DOMAINS if name not in FACTORIAL)} and {FACTORIAL_NAMES}"


def domain_spec(domain: str) -> DomainSpec:
    """What may vary in a domain; a `UserError` says that there is no such toy domain."""
    if domain not in DOMAINS:
        raise UserError(
            f"there is no toy domain '{domain}'{did_you_mean(domain, DOMAINS)}; there are {describe_names()}"
        )
    return DOMAINS[domain]


def toy_records(domain: str, split: str, count: int, seed: int) -> list[Record]:
    """Draw the records of one split. Development and test videos all differ in their combination of attributes.

    Training goes round its combinations again when it has more videos than those, with other positions, sizes, speeds
    and words. Raises `UserError`: unknown names, or more development or test videos than combinations.
    """
    spec = domain_spec(domain)
    scenes = spec.scenes or domain
    combinations = _combinations(domain, split, seed)
    if count < 1:
        raise UserError(f"{domain} {split}: {count} videos asked for; ask for at least 1")
    if split != "train" and count > len(combinations):
        raise UserError(
            f"{domain} {split}: {count} videos asked for, but only {len(combinations)} different combinations of "
            f"attributes are kept for this split; ask for at most {len(combinations)}"
        )
    if split == "train":
        combinations = _train_rounds(combinations, count, spec.dynamic)
    records = []
    for index, attributes in enumerate(combinations[:count]):
        draw = random.Random(f"{scenes}/{split}/{seed}/{index}/record")
        frames = draw.randint(round(spec.seconds[0] * FPS), round(spec.seconds[1] * FPS))
        name = f"{scenes}-{split}-{index:05d}"
        texts = spec.captions(attributes, draw)
        records.append(Record(name, texts, duration=frames / FPS, attributes=dict(attributes)))
    return records


def toy_capacity(domain: str, split: str) -> int:
    """Number of different combinations of attributes that a split of a domain holds."""
    return len(_combinations(domain, split, 0))


def _combinations(domain: str, split: str, seed: int) -> list[dict[str, str]]:
    """Combinations of one split in the order in which they are used, twins side by side."""
    if split not in TOY_SPLITS:
        raise UserError(
            f"{domain}: there is no split '{split}'{did_you_mean(split, TOY_SPLITS)}; there are {', '.join(TOY_SPLITS)}"
        )
    spec = domain_spec(domain)
    product = [dict(zip(spec.values, chosen, strict=True)) for chosen in itertools.product(*spec.values.values())]
    units = [unit for unit in product if "order" not in unit or unit["order"] < _reverse(unit["order"])]
    random.Random(f"{spec.scenes or domain}/{seed}/splits").shuffle(units)
    test = round(len(units) * _SHARES["test"])
    dev = test + round(len(units) * _SHARES["dev"])
    chosen_units = {"test": units[:test], "dev": units[test:dev], "train": units[dev:]}[split]
    if "order" not in spec.values:
        return chosen_units
    return [twin for unit in chosen_units for twin in (unit, {**unit, "order": _reverse(unit["order"])})]


def _reverse(order: str) -> str:
    """The order of a twin, which tells the same events the other way round."""
    return "-".join(reversed(order.split("-")))


def _train_rounds(combinations: list[dict[str, str]], count: int, dynamic: tuple[str, ...]) -> list[dict[str, str]]:
    """Go round the combinations, those that look alike in a single frame side by side in every round.

    Neighbours come into the same shard and so, often, into the same global batch: without them a batch is told apart
    by colours and shapes alone, and motion is learned late. Two videos of one combination are a round apart, because
    in one batch each would be a false negative of the other.
    """
    chosen: list[dict[str, str]] = []
    while len(chosen) < count:
        groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
        for attributes in combinations[: count - len(chosen)]:
            groups[tuple(value for key, value in attributes.items() if key not in dynamic)].append(attributes)
        chosen += itertools.chain.from_iterable(groups.values())
    return chosen
