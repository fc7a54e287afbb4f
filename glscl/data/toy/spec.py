"""What may vary in a toy domain."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("disc", "plank", "pillar")
CHANGES = ("grows", "shrinks", "whitens", "blackens")
ORDERS_OF_THREE = tuple("-".join(order) for order in itertools.permutations(("across", "upright", "change")))


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """What may vary in a domain."""

    values: dict[str, tuple[str, ...]]  # attribute name to its values; the combinations are their product
    dynamic: tuple[str, ...]  # the attributes that only the order of frames tells
    seconds: tuple[float, float]  # shortest and longest duration
    captions: Callable[[dict[str, str], random.Random], tuple[str, ...]]
    scenes: str = ""
    """What its scenes are drawn from, and named after; domains that share it have the same. Empty: its own name."""
    pictures: str = ""
    """Visual style of the scenes, where that is a factor; empty: the domain's own look."""
