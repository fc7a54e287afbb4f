"""The query bank: training videos and captions, embedded once, that normalisations look at beside each test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glscl.data.quarantine import Quarantine
from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.evaluation.actors import Evaluators
from glscl.evaluation.embed import Embeddings, concatenate
from glscl.evaluation.metrics import Direction
from glscl.evaluation.normalise import Bank
from glscl.evaluation.options import EvaluationConfig

if TYPE_CHECKING:
    from glscl.evaluation.actors import Shared


@dataclass(frozen=True, slots=True)
class QueryBank:
    """Training videos and captions, embedded once for all test sets."""

    embeddings: Shared
    texts: int
    videos: int
    domains: tuple[str, ...]

    def similarities(self, evaluators: Evaluators, test_set: Shared, domain: str) -> dict[Direction, Bank]:
        """Score the bank's queries against the candidates of a test set of ``domain``, in both directions."""
        in_domain, domains = domain in self.domains, " and ".join(self.domains)
        captions = f"{self.texts:,} training captions of {domains}"
        videos = f"{self.videos:,} training videos of {domains}"
        return {
            "text_to_video": Bank(evaluators.similarity(self.embeddings, test_set), captions, in_domain),
            "video_to_text": Bank(evaluators.similarity(test_set, self.embeddings).T, videos, in_domain),
        }


def videos_per_set(config: EvaluationConfig, bank: Sequence[ShardSet]) -> int:
    """Videos that each training set gives to the query bank; 0 if there is to be none.

    Raises:
        UserError: fewer videos than sets.
    """
    if not config.normalisations or not config.bank_videos or not bank:
        return 0
    if config.bank_videos < len(bank):
        raise UserError(
            f"bank_videos ({config.bank_videos}) is fewer than the {len(bank)} training sets that the query bank is "
            f"drawn from: raise it, or set it to 0 for no bank"
        )
    return config.bank_videos // len(bank)


def embed_bank(evaluators: Evaluators, bank: Sequence[ShardSet], per_set: int, quarantine: Quarantine) -> QueryBank:
    """Embed the first ``per_set`` usable videos of each set, reading on for as many as cannot be decoded.

    Raises:
        UserError: more than the quarantine allows cannot be.
    """
    sets = []
    for shard_set in bank:
        pieces: list[Embeddings] = []
        read, missing = 0, per_set
        while missing and read < shard_set.manifest.videos:
            videos = range(read, min(read + missing, shard_set.manifest.videos))
            new = evaluators.embed(shard_set.uri, videos)
            pieces += new
            quarantine.take("bank", [shard_set], [entry for piece in new for entry in piece.quarantined])
            if problem := quarantine.problem("bank", [shard_set]):
                raise UserError(problem)
            read, missing = videos.stop, missing - sum(len(piece.positions) for piece in new)
        sets.append(concatenate(pieces))
    whole = concatenate(sets)  # the order of a bank's queries matters to nobody
    domains = dict.fromkeys(shard_set.manifest.domain for shard_set in bank)
    return QueryBank(evaluators.share(whole), len(whole.captions), len(whole.video_ids), tuple(domains))
