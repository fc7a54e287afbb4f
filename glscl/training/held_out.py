"""Scoring the held-out sets during training, which chooses the checkpoint and steers sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch

from glscl.data.activity import ActivityTable
from glscl.data.apart import distinct_names
from glscl.data.clips import Sampling
from glscl.data.gallery import Gallery
from glscl.data.quarantine import Quarantine, describe_repairs
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import RunStoppedError
from glscl.evaluation.embed import Embeddings, check_usable, embed
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, RECALLS, measure_ranks
from glscl.evaluation.scoring import split_rows
from glscl.models.caption_tokenizer import Tokenize
from glscl.models.retriever import Retriever
from glscl.training.checkpoint.format import SELECTION_METRIC
from glscl.training.collectives import gather_objects, print_once, rank, world_size
from glscl.training.config import RunConfig
from glscl.training.health.heartbeat import HeartbeatSender
from glscl.training.rank_scoring import RankShare, rank_over_ranks


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores the held-out sets, every rank embedding and scoring its share."""

    config: RunConfig
    sampling: Sampling
    tokenize: Tokenize
    device: torch.device
    activity: ActivityTable
    quarantine: Quarantine
    heartbeats: HeartbeatSender

    def score(self, model: Retriever) -> dict[str, float]:
        """Held-out metrics, the same on every rank (collective). `RunStoppedError`: too many of a set are unusable."""
        metrics: dict[str, float] = {}
        problems = []
        held_out = [open_shard_set(uri) for uri in self.config.data.validation]
        domains = [shard_set.manifest.domain for shard_set in held_out]
        for shard_set, name in zip(held_out, distinct_names(held_out), strict=True):
            domain = shard_set.manifest.domain
            label = domain if domains.count(domain) == 1 else name  # two sets of a domain must not overwrite each other
            embeddings = self._embed(model, shard_set)
            shares, quarantined, repaired = zip(
                *gather_objects((RankShare.of(embeddings.caches), embeddings.quarantined, embeddings.repaired)),
                strict=True,
            )
            bad = list(chain.from_iterable(quarantined))
            self.quarantine.take("validation", [shard_set], bad)
            if problem := self.quarantine.problem("validation", [shard_set]):
                problems.append(problem)
                continue
            videos = sum(len(share.captions) for share in shares)
            check_usable(videos, bad)
            if some := list(chain.from_iterable(repaired)):
                print_once(describe_repairs(f"held-out set {name}", videos, some))
            metrics |= self._score(model, label, embeddings, shares)
        if problems:
            raise RunStoppedError("; ".join(problems))
        recalls = [value for name, value in metrics.items() if name.endswith(f"text_to_video_{MAIN_METRIC}")]
        metrics[SELECTION_METRIC] = sum(recalls) / len(recalls)
        return metrics

    def _embed(self, model: Retriever, shard_set: ShardSet) -> Embeddings:
        """This rank's share of a set."""
        videos = split_rows(shard_set.manifest.videos, rank(), world_size())
        size = self.config.evaluation.batch_size
        gallery = Gallery(shard_set, videos.start, videos.stop, self.sampling, self.tokenize, size, self.activity)
        embeddings = embed(model, gallery, self.config.data.loaders, self.device)
        self.heartbeats.report_unusable("validation", embeddings.quarantined)
        return embeddings

    def _score(
        self, model: Retriever, label: str, embeddings: Embeddings, shares: Sequence[RankShare]
    ) -> dict[str, float]:
        config, score = self.config.evaluation, partial(model, "score")
        ranks = rank_over_ranks(score, embeddings.caches, shares, config, self.device)
        recalls = zip(DIRECTIONS, map(measure_ranks, ranks), strict=True)
        return {f"validation/{label}/{way}_{name}": float(v[name]) for way, v in recalls for name in RECALLS}
