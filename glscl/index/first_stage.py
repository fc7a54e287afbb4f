"""The first stage: a search over compact projections that hands candidates to the head."""

from __future__ import annotations

from collections.abc import Sequence

from glscl.index.layout import IndexFacts
from glscl.retrieval.model import RetrievalModel


def update_first_stage(folder: str, facts: IndexFacts, model: RetrievalModel, texts: Sequence[str]) -> IndexFacts:
    """Fit or extend the first stage, if there are more segments than the head scores by itself."""
    return facts
