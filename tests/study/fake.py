"""Results of cells as `run_cell` leaves them, from ranks that a test makes up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from glscl.evaluation.metrics import measure_ranks
from glscl.evaluation.ranks import Ranks
from glscl.runs.cell import Cell, CellResult, CellTest
from glscl.runs.sets import locate_sets
from glscl.study.grid import build_cells
from glscl.study.options import StudyConfig

VIDEOS, CAPTIONS = 40, 2


def study(**changes: Any) -> StudyConfig:
    """Two domains, a consistency head and an attention head."""
    values: dict[str, Any] = {
        "name": "fake",
        "storage": "nowhere",
        "label": "made-up ranks",
        "seeds": [1, 2, 3],
        "domains": {name: {"toy": {"train": 8, "test": VIDEOS}} for name in ("toy_clips", "toy_stories")},
        "union": False,
        "conditions": {"short": {"model": {"max_words": 16, "max_frames": 2}}},
        "variants": {
            "xpool": {"group": "attention", "what": "attention", "run": {"model": {"head": "xpool"}}},
            "glscl": {"group": "consistency", "what": "consistency", "run": {"model": {"head": "mean_pool"}}},
        },
        "run": {"model": {"clip": "glscl-tiny"}},
        "resamples": 200,
    }
    return StudyConfig.model_validate(values | changes)


def entry(domain: str, text_ranks: Sequence[int], video_ranks: Sequence[int]) -> dict[str, Any]:
    """Plain values of one test set in ``cell.json``, with every query's ranks and no ties."""
    queries: dict[str, Any] = {
        "owners": [video for video in range(VIDEOS) for _ in range(CAPTIONS)],
        "query_videos": list(range(VIDEOS)),
        "video_ids": [f"{domain}-{video}" for video in range(VIDEOS)],
        "positions": list(range(VIDEOS)),
        "captions": [f"{domain} caption {query}" for query in range(VIDEOS * CAPTIONS)],
        "top": [[query // CAPTIONS, 0, 1, 2, 3] for query in range(VIDEOS * CAPTIONS)],
    }
    metrics = {}
    for direction, ranks in (("text_to_video", text_ranks), ("video_to_text", video_ranks)):
        values = [int(rank) for rank in ranks]
        queries[direction] = {"optimistic": values, "pessimistic": values}
        metrics[direction] = measure_ranks(Ranks(torch.tensor(values), torch.tensor(values)))
    return {
        "domain": domain,
        "split": "test",
        "relation": "in-domain",
        "captions_per_video": CAPTIONS,
        "max_frames": 2,
        "max_words": 16,
        "videos": VIDEOS,
        "texts": VIDEOS * CAPTIONS,
        "truncated_texts": 3,
        "quarantined": 0,
        "hubness_skewness": 1.5,
        "normalised": [],
        "without_leaked": None,
        "fingerprint": domain,
        **metrics,
        "per_query": queries,
    }


Hits = Callable[[Cell, str], float]
"""Cell and test domain -> share of queries that it finds."""


def cell_test(domain: str, text_ranks: Sequence[int], video_ranks: Sequence[int]) -> CellTest:
    """The same, typed."""
    return CellTest.model_validate(entry(domain, text_ranks, video_ranks))


Change = Callable[[Cell, dict[str, Any]], None]
"""Changes the plain values of a cell's result."""


def finished(
    config: StudyConfig, hits: Hits, change: Change | None = None
) -> tuple[list[Cell], list[tuple[Cell, CellResult]]]:
    """Every cell of a study, and made-up results: each query has a difficulty that is the same for all cells."""
    cells = build_cells(config, locate_sets(config))
    hard = {name: np.random.default_rng(7).random((VIDEOS, CAPTIONS)) for name in config.domains}
    done = []
    for number, cell in enumerate(cells):
        noise = np.random.default_rng(number)
        tests = []
        for domain in config.domains:
            share = hits(cell, domain)
            text = np.where((hard[domain] + 0.05 * noise.standard_normal(hard[domain].shape)) < share, 1, 9).ravel()
            video = np.where(hard[domain][:, 0] < share, 1, 9)
            tests.append(entry(domain, text.tolist(), video.tolist()))
        values = {"config": {}, "tests": tests, "seconds": 2.0, "step": 5, "validation": {}}
        if change is not None:
            change(cell, values)
        done.append((cell, CellResult.model_validate(values)))
    return cells, done
