"""The factorial part of a study's options: which test domains differ from a training domain in which factor."""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

from glscl.data.toy.factorial import read_levels
from glscl.errors import did_you_mean
from glscl.options import Options

Cell = Literal["source", "captions", "pictures", "both"]
"""A cell of the 2 × 2 by what differs from the domain trained on: nothing, caption style, visual style, both."""
CELLS: tuple[Cell, ...] = get_args(Cell)
_FACTORS = ("captions", "pictures", "events")  # as names of toy domains have them
_CHANGED: Mapping[Cell, tuple[str, ...]] = {
    "captions": ("captions",),
    "pictures": ("pictures",),
    "both": ("captions", "pictures"),
}


class OtherCells(Options):
    """The three cells of a 2 × 2 of caption style and visual style besides the domain that is trained on."""

    captions: str
    """Domain with captions of the other style and pictures as in the domain trained on."""
    pictures: str
    """Domain with pictures of the other style and captions as in the domain trained on."""
    both: str
    """Domain with captions as in `captions` and pictures as in `pictures`."""


def cells_of(source: str, others: OtherCells) -> dict[Cell, str]:
    """The domain of every cell, the one trained on first."""
    return {"source": source, "captions": others.captions, "pictures": others.pictures, "both": others.both}


def describe_factors(factors: Mapping[str, OtherCells]) -> dict[str, str]:
    """Describe the cells for the start-up panel; empty without any."""
    lines = [
        f"{source} against other captions ({others.captions}), other pictures ({others.pictures}), both ({others.both})"
        for source, others in factors.items()
    ]
    return {"factors": "; ".join(lines)} if lines else {}


def check_factors(factors: Mapping[str, OtherCells], trained: Collection[str], tested: Collection[str]) -> None:
    """Check that the cells are four tested domains, and that toy domains differ in the factor that they stand for.

    Raises `ValueError`: naming the cell.
    """
    for source, others in factors.items():
        if source not in trained:
            raise ValueError(
                f"factors: '{source}' is none of the domains that are trained on: {', '.join(trained)}"
                f"{did_you_mean(source, trained)}"
            )
        cells = cells_of(source, others)
        for cell, domain in cells.items():
            if domain not in tested:
                raise ValueError(
                    f"factors.{source}{'' if cell == 'source' else f'.{cell}'}: '{domain}' is none of the domains that "
                    f"are tested on: {', '.join(tested)}{did_you_mean(domain, tested)}"
                )
        if len(set(cells.values())) < len(cells):
            raise ValueError(f"factors.{source}: the four cells need four domains, but they are {list(cells.values())}")
        _check_levels(source, cells)


def _check_levels(source: str, cells: Mapping[Cell, str]) -> None:
    """Check that toy domains whose levels are known differ from the source's in what their cells say, and agree."""
    levels = {cell: read_levels(domain) for cell, domain in cells.items()}
    own = levels["source"]
    for cell, expected in _CHANGED.items():
        of_cell = levels[cell]
        if own is None or of_cell is None:
            continue
        changed = tuple(name for name, one, two in zip(_FACTORS, own, of_cell, strict=True) if one != two)
        if changed != expected:
            raise ValueError(
                f"factors.{source}.{cell}: {cells[cell]} differs from {source} in {' and '.join(changed)}, and should "
                f"in {' and '.join(expected)}"
            )
    captions, pictures, both = levels["captions"], levels["pictures"], levels["both"]
    if captions and pictures and both and (both[0], both[1]) != (captions[0], pictures[1]):
        raise ValueError(
            f"factors.{source}.both: {cells['both']} has not the captions of {cells['captions']} and the pictures of "
            f"{cells['pictures']}"
        )
