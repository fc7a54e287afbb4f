"""Scoring the held-out sets during training, which chooses the checkpoint and steers sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import distributed

from glscl.data.activity import Board
from glscl.data.gallery import Gallery
from glscl.data.names import distinct_names
from glscl.data.quarantine import Quarantine
from glscl.data.repairs import describe_repairs
from glscl.data.shards import ShardSet, open_shard_set
from glscl.data.video import FrameSampling
from glscl.errors import RunStoppedError
from glscl.evaluation.embed import Embeddings, concatenate, embed
from glscl.evaluation.metrics import MAIN_METRIC, RECALLS
from glscl.evaluation.retrieval import RowShard, measure, score_rows
from glscl.evaluation.scoring import merge, split_rows
from glscl.models.tokenizer import tokenize
from glscl.training.checkpoint.format import SELECTION_METRIC
from glscl.training.config import RunConfig
from glscl.training.health.watchdog import Reporter


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores the held-out sets, every rank embedding and scoring its share.

    Attributes:
        config: of the run.
        sampling: frames per video.
        rank: this rank.
        world: number of ranks.
        device: where the model is.
        board: where the processes that read say what they do.
        quarantine: takes the videos that cannot be used, and bounds them.
        reporter: tells the driver of them at once.
    """

    config: RunConfig
    sampling: FrameSampling
    rank: int
    world: int
    device: torch.device
    board: Board
    quarantine: Quarantine
    reporter: Reporter

    def score(self, model: Any) -> dict[str, float]:
        """Held-out metrics, the same dictionary on every rank (collective).

        Raises:
            RunStoppedError: too many videos of a set are unusable; those of all sets are listed by then.
        """
        metrics: dict[str, float] = {}
        problems = []
        held_out = [open_shard_set(uri) for uri in self.config.data.validation]
        domains = [shard_set.manifest.domain for shard_set in held_out]
        for shard_set, name in zip(held_out, distinct_names(held_out), strict=True):
            domain = shard_set.manifest.domain
            label = domain if domains.count(domain) == 1 else name  # two sets of a domain must not overwrite each other
            parts = self._embed(model, shard_set)
            bad = [entry for part in parts for entry in part.quarantined]
            self.quarantine.take("validation", [shard_set], bad)
            if problem := self.quarantine.problem("validation", [shard_set]):
                problems.append(problem)
            else:
                embeddings = concatenate(parts)
                if self.rank == 0 and embeddings.repaired:
                    what = f"held-out set {name}"
                    print(describe_repairs(what, len(embeddings.positions), embeddings.repaired), flush=True)
                metrics |= self._score(model, label, embeddings)
        if problems:
            raise RunStoppedError("; ".join(problems))
        recalls = [value for name, value in metrics.items() if name.endswith(f"text_to_video_{MAIN_METRIC}")]
        metrics[SELECTION_METRIC] = sum(recalls) / len(recalls)
        return metrics

    def _embed(self, model: Any, shard_set: ShardSet) -> list[Embeddings]:
        tokens = partial(tokenize, max_words=self.config.model.max_words)
        own = split_rows(shard_set.manifest.videos, self.rank, self.world)
        size = self.config.evaluation.batch_size
        gallery = Gallery(shard_set, own.start, own.stop, self.sampling, tokens, size, self.board)
        part = embed(model, gallery, self.config.data.loaders, self.device)
        self.reporter.found("validation", part.quarantined)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, part)
        return parts

    def _score(self, model: Any, label: str, embeddings: Embeddings) -> dict[str, float]:
        scores: list[Any] = [None] * self.world
        shard = RowShard(self.rank, self.world)
        with torch.no_grad():
            result = score_rows(partial(model, "score"), embeddings, self.config.evaluation, shard, self.device)
        distributed.all_gather_object(scores, result)
        return {
            f"validation/{label}/{direction}_{name}": float(values[name])
            for direction, values in measure(merge(scores)).items()
            for name in RECALLS
        }
