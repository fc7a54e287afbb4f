"""The head's exact scores of some texts and every segment of an index, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from glscl.errors import UserError
from glscl.evaluation.caches import Cache
from glscl.evaluation.similarity import ScoreFunction
from glscl.index.segments import Segments

Rows = npt.NDArray[np.int64]
BLOCK = 4096
"""Segments that are read and scored at a time."""


@torch.no_grad()
def score_blocks(
    score: ScoreFunction, texts: Cache, segments: Segments, device: torch.device, rows: Rows | None = None
) -> Iterator[tuple[Rows, torch.Tensor]]:
    """Yield blocks of rows with their scores (A, R) on the CPU. Raises `UserError`: one is NaN."""
    chosen = np.arange(len(segments)) if rows is None else rows
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        scores = score(texts, segments.gather(block, device)).float().cpu()
        if scores.isnan().any():
            raise UserError("a similarity is NaN; the model or the index is damaged")
        yield block, scores


def best_rows(score: ScoreFunction, texts: Cache, segments: Segments, device: torch.device, k: int) -> list[Rows]:
    """The ``k`` best segments of each text, best first; of equals, the first."""
    best_scores = torch.zeros(len(next(iter(texts.values()))), 0)
    best: torch.Tensor = torch.zeros(len(best_scores), 0, dtype=torch.int64)
    for block, scores in score_blocks(score, texts, segments, device):
        whole = torch.cat([best_scores, scores], 1)
        numbers = torch.cat([best, torch.from_numpy(block).expand(len(scores), -1)], 1)
        order = whole.argsort(dim=1, descending=True, stable=True)[:, :k]
        best_scores, best = whole.gather(1, order), numbers.gather(1, order)
    return [row.numpy() for row in best]
