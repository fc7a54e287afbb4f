"""Join small parts, and leave out what was deleted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from glscl.index.catalogue import Catalogue
from glscl.index.layout import IndexFacts, next_part, remove_strays, write_facts
from glscl.index.parts import Part, write_part

WHOLE = 65536
"""Segments of a part that is not joined with others."""
MOST_SMALL = 16
"""Smaller parts that are left as they are."""
MOST_DELETED = 0.25
"""Share of a part's segments that may be deleted before it is written again."""


def compact(folder: str, facts: IndexFacts) -> IndexFacts:
    """Write again what is worth it; returns the new facts, which are on disk."""
    catalogue = Catalogue.open(folder, facts)
    small, groups = [], []
    for number, part in enumerate(catalogue.parts):
        left = len(catalogue.live[number])
        if part.facts.segments - left > MOST_DELETED * part.facts.segments:
            groups.append([number])
        elif left < WHOLE:
            small.append(number)
    if len(small) > MOST_SMALL:
        groups += _fill(small, [len(rows) for rows in catalogue.live])
    for group in groups:
        facts = _rewrite(folder, facts, catalogue, group)
    if groups:
        remove_strays(folder, facts)
    return facts


def _fill(small: list[int], sizes: list[int]) -> list[list[int]]:
    """Runs of small parts that make whole ones."""
    groups: list[list[int]] = [[]]
    for number in small:
        if groups[-1] and sum(sizes[one] for one in groups[-1]) + sizes[number] > WHOLE:
            groups.append([])
        groups[-1].append(number)
    return [group for group in groups if len(group) > 1]


def _rewrite(folder: str, facts: IndexFacts, catalogue: Catalogue, group: Sequence[int]) -> IndexFacts:
    """Replace some parts by one without what was deleted; without any video left, by none."""
    parts = [catalogue.parts[number] for number in group]
    videos, segments = [], []
    for number, part in zip(group, parts, strict=True):
        keep = np.ones(part.facts.videos, bool)
        keep[list(catalogue.deleted[number])] = False
        videos.append(part.videos.filter(pa.array(keep)))
        segments.append(part.segments.take(pa.array(catalogue.live[number])))
    tables = pa.concat_tables(videos), pa.concat_tables(segments)
    names = {part.facts.name for part in parts}
    rest = tuple(part for part in facts.parts if part.name not in names)
    if len(tables[0]):
        rows = [catalogue.live[number] for number in group]
        rest = (*rest, write_part(folder, next_part(facts), *tables, _join(parts, rows)))
    deleted = {name: rows for name, rows in facts.deleted.items() if name not in names}
    facts = facts.model_copy(update={"parts": rest, "deleted": deleted})
    write_facts(folder, facts)
    return facts


def _join(parts: Sequence[Part], rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    pieces = [(part.vectors, own) for part, own in zip(parts, rows, strict=True) if part.vectors is not None]
    if not pieces:
        return {}
    return {
        name: np.concatenate([vectors.arrays[name][own] for vectors, own in pieces]) for name in pieces[0][0].arrays
    }
