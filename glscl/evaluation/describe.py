"""From the ranks of a test set to its `Test`: metrics, oracles, attribute accuracies and example retrievals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glscl.data.shards import ShardSet
from glscl.evaluation.embed import Embeddings
from glscl.evaluation.leakage import LeakageReport
from glscl.evaluation.oracles import attribute_accuracy, attribute_pair_oracles, single_attribute_oracles
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.results import (
    AttributeAccuracy,
    Example,
    Match,
    NormalisedColumn,
    Oracles,
    QueryRanks,
    RankBounds,
    Test,
    WithoutLeaked,
)
from glscl.evaluation.retrieval import measure
from glscl.evaluation.saved import ModelCard
from glscl.evaluation.scoring import ScoringResult

SHOWN = 5
"""Best videos kept per query, in examples and beside the ranks."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What was computed from the embeddings of a test set.

    Attributes:
        result: ranks of all its texts and videos.
        normalised: columns of normalised scores.
        without_leaked: metrics without the videos of a leakage list, where there is one.
    """

    result: ScoringResult
    normalised: list[NormalisedColumn]
    without_leaked: WithoutLeaked | None


def describe_test(
    name: str,
    shard_set: ShardSet,
    card: ModelCard,
    embeddings: Embeddings,
    scores: Scores,
    *,
    examples: int,
    keep_ranks: bool,
) -> Test:
    """Put together what is known of a test set.

    Args:
        name: tells it from the other test sets.
        shard_set: the set.
        card: of the model.
        embeddings: of the whole set.
        scores: of all its texts and videos.
        examples: number of example retrievals.
        keep_ranks: add every query's ranks.
    """
    manifest, result = shard_set.manifest, scores.result
    names = {frozenset(row) for row in embeddings.attributes}
    synthetic = len(names) == 1 and names != {frozenset()}
    metrics = measure(result)
    return Test(
        name=name,
        domain=manifest.domain,
        split=manifest.split,
        relation="in-domain" if manifest.domain in card.train_domains else "cross-domain",
        shards=shard_set.uri,
        fingerprint=manifest.fingerprint(),
        videos=len(embeddings.video_ids),
        texts=len(embeddings.captions),
        captions_per_video=len(embeddings.captions) / len(embeddings.video_ids),
        max_frames=card.model.max_frames,
        max_words=card.model.max_words,
        truncated_texts=embeddings.truncated,
        quarantined=len(embeddings.quarantined),
        quarantine=embeddings.quarantined,
        rejected=len(manifest.rejected),
        repaired=embeddings.repaired,
        text_to_video=metrics["text_to_video"],
        video_to_text=metrics["video_to_text"],
        hubness_skewness=result.hubness_skewness(),
        oracles=_oracles(embeddings) if synthetic else None,
        attribute_accuracy=_attribute_accuracy(embeddings, result) if synthetic else None,
        normalised=scores.normalised,
        without_leaked=scores.without_leaked,
        examples=choose_examples(embeddings, result, examples),
        per_query=query_ranks(embeddings, result) if keep_ranks else None,
    )


def describe_without_leaked(
    uri: str, report: LeakageReport, embeddings: Embeddings, result: ScoringResult
) -> WithoutLeaked:
    """Put together what is known of a test set without the videos of the list at ``uri``."""
    metrics = measure(result)
    return WithoutLeaked(
        list=uri,
        note=report.note,
        videos=len(embeddings.video_ids),
        texts=len(embeddings.captions),
        text_to_video=metrics["text_to_video"],
        video_to_text=metrics["video_to_text"],
    )


def query_ranks(embeddings: Embeddings, result: ScoringResult) -> QueryRanks:
    """Every query's ranks, and what its rows are."""

    def bounds(ranks: Ranks) -> RankBounds:
        return RankBounds(optimistic=ranks.optimistic.numpy(), pessimistic=ranks.pessimistic.numpy())

    return QueryRanks(
        text_to_video=bounds(result.text_to_video),
        video_to_text=bounds(result.video_to_text),
        owners=embeddings.text_to_video.tolist(),
        query_videos=result.query_videos.tolist(),
        top=result.text_matches.indices[:, :SHOWN].tolist(),
        video_ids=embeddings.video_ids,
        positions=embeddings.positions,
        captions=embeddings.captions,
    )


def choose_examples(embeddings: Embeddings, result: ScoringResult, count: int) -> list[Example]:
    """Queries spread evenly over the set with their best videos: half hits, half misses, as far as there are."""
    ranks = result.text_to_video.mid.tolist()
    hits = [query for query, rank in enumerate(ranks) if rank <= 1]
    misses = [query for query, rank in enumerate(ranks) if rank > 1]
    chosen = _spread(hits, count - min(len(misses), count // 2)) + _spread(misses, count - min(len(hits), count // 2))
    return [_example(embeddings, result, query, ranks[query]) for query in chosen[:count]]


def _example(embeddings: Embeddings, result: ScoringResult, query: int, rank: float) -> Example:
    right = int(embeddings.text_to_video[query])
    best = result.text_matches.indices[query, :SHOWN].tolist()
    scores = result.text_matches.scores[query, :SHOWN].tolist()
    matches = [
        Match(
            video_id=embeddings.video_ids[video],
            score=score,
            correct=video == right,
            thumbnail=embeddings.thumbnails[video],
        )
        for video, score in zip(best, scores, strict=True)
    ]
    return Example(query=embeddings.captions[query], rank=rank, results=matches)


def _spread(items: list[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _attributes(embeddings: Embeddings) -> list[dict[str, str]]:
    return [{key: str(value) for key, value in row.items()} for row in embeddings.attributes]


def _oracles(embeddings: Embeddings) -> Oracles:
    attributes = _attributes(embeddings)
    return Oracles(
        single=_per_cent(single_attribute_oracles(attributes)), pair=_per_cent(attribute_pair_oracles(attributes))
    )


def _attribute_accuracy(embeddings: Embeddings, result: ScoringResult) -> dict[str, AttributeAccuracy]:
    first_matches = result.text_matches.indices[:, 0].tolist()
    shares = attribute_accuracy(_attributes(embeddings), embeddings.text_to_video.tolist(), first_matches)
    return {name: AttributeAccuracy(**_per_cent(values)) for name, values in shares.items()}


def _per_cent(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: 100.0 * share for name, share in shares.items()}
