"""Queries that one variant finds and another loses, with pictures of what each put first."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from glscl.data.gallery import Gallery
from glscl.data.shards import open_shard_set
from glscl.evaluation.embed import strip
from glscl.models.tokenizer import tokenize
from glscl.models.towers import frame_size_of
from glscl.study.grid import Cell
from glscl.study.options import StudyConfig
from glscl.study.results import ZERO_SHOT
from glscl.training.sampling import make_sampling

LOST = 5
"""A query is lost where its video comes after this rank."""
SHOWN = 3
"""Videos shown per variant."""

Finished = Sequence[tuple[Cell, Mapping[str, Any]]]


def examples(study: StudyConfig, finished: Finished) -> list[dict[str, Any]]:
    """Up to ``study.examples`` queries, as `glscl.study.results.Example` has them.

    They are of the first seed, across domains before in-domain, the comparisons in turn, each variant as finder and as
    loser. Pictures are decoded from the test shards.
    """
    by_key = {
        (cell.condition, cell.variant, cell.training): (cell, result)
        for cell, result in finished
        if cell.seed == study.seeds[0] and cell.training != ZERO_SHOT
    }
    queues = []
    for first, second in study.pairs:
        for finder, loser in ((first, second), (second, first)):
            found = []
            for (condition, variant, training), (cell, result) in by_key.items():
                other = by_key.get((condition, loser, training))
                if variant == finder and other is not None:
                    for entry, against in zip(result["tests"], other[1]["tests"], strict=True):
                        found += _queries(cell, finder, loser, entry, against)
            found.sort(key=lambda item: item[0])
            queues.append([example for _, example in found])
    chosen: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    while len(chosen) < study.examples and any(queues):
        for queue in queues:
            while queue and (queue[0]["test"], queue[0]["query"]) in seen:
                queue.pop(0)
            if queue and len(chosen) < study.examples:
                seen.add((queue[0]["test"], queue[0]["query"]))
                chosen.append(queue.pop(0))
    _add_pictures(finished, chosen)
    return chosen


def _queries(
    cell: Cell, finder: str, loser: str, entry: Mapping[str, Any], against: Mapping[str, Any]
) -> list[tuple[tuple[bool, float], dict[str, Any]]]:
    """Queries of one test set, those that the loser misses by most first."""
    ours, theirs = entry["per_query"], against["per_query"]
    found = []
    for query, caption in enumerate(ours["captions"]):
        own, other = (_rank(side, query) for side in (ours, theirs))
        if own <= 1 and other > LOST:
            example = {
                "condition": cell.condition,
                "training": cell.training,
                "test": entry["domain"],
                "query": caption,
                "finder": finder,
                "loser": loser,
                "finder_rank": own,
                "loser_rank": other,
                "finder_top": _shots(ours, query),
                "loser_top": _shots(theirs, query),
            }
            found.append(((entry["domain"] in cell.domains, -other), example))
    return found


def _rank(queries: Mapping[str, Any], query: int) -> float:
    ranks = queries["text_to_video"]
    return float(ranks["optimistic"][query] + ranks["pessimistic"][query]) / 2


def _shots(queries: Mapping[str, Any], query: int) -> list[dict[str, Any]]:
    right = queries["owners"][query]
    return [
        {"video_id": queries["video_ids"][row], "correct": row == right, "position": queries["positions"][row]}
        for row in map(int, queries["top"][query][:SHOWN])
    ]


def _add_pictures(finished: Finished, chosen: list[dict[str, Any]]) -> None:
    cell = finished[0][0]
    sets = {open_shard_set(uri).manifest.domain: open_shard_set(uri) for uri in cell.config.data.test}
    sampling = make_sampling(cell.config, frame_size_of(cell.config.model.clip))
    pictures: dict[tuple[str, int], list[str]] = {}
    for example in chosen:
        for shot in (*example["finder_top"], *example["loser_top"]):
            key = example["test"], shot.pop("position")
            if key not in pictures:
                gallery = Gallery(sets[key[0]], key[1], key[1] + 1, sampling, lambda captions: tokenize(captions, 8), 1)
                (batch,) = gallery.batches(0)
                jpegs = strip(batch.frames[0], batch.frame_mask[0])
                pictures[key] = ["data:image/jpeg;base64," + base64.b64encode(jpeg).decode() for jpeg in jpegs]
            shot["thumbnails"] = pictures[key]
