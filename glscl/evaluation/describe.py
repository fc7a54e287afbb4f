"""From the ranks of a test set to its `Test`: metrics, oracles, attribute accuracies and example retrievals."""

from collections.abc import Sequence

from glscl.data.shards import ShardSet
from glscl.evaluation.embed import Embeddings, measure
from glscl.evaluation.oracles import attribute_accuracy, measure_oracles
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.relevance import Judged
from glscl.evaluation.results import (
    Example,
    Match,
    NormalisedColumn,
    QueryRanks,
    RankBounds,
    Test,
    WithoutLeaked,
)
from glscl.evaluation.saved import ModelCard
from glscl.evaluation.scoring import ScoringResult

SHOWN = 5  # best videos kept per query, in examples and beside the ranks


def describe_test(
    name: str,
    shard_set: ShardSet,
    card: ModelCard,
    embeddings: Embeddings,
    result: ScoringResult,
    *,
    normalised: list[NormalisedColumn],
    without_leaked: WithoutLeaked | None,
    judged: Judged | None,
    examples: int,
    keep_ranks: bool,
) -> Test:
    """Put together what is known of a whole test set; ``examples`` retrievals are shown.

    Every query's ranks are kept with ``keep_ranks``. Videos that all have the same attributes, and some, are synthetic.
    """
    manifest, owners = shard_set.manifest, embeddings.caches.text_to_video.tolist()
    names = {frozenset(row) for row in embeddings.attributes}
    synthetic = len(names) == 1 and names != {frozenset()}
    attributes = [{key: str(value) for key, value in row.items()} for row in embeddings.attributes]
    first_matches = result.text_matches.indices[:, 0].tolist()
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
        **measure(result),
        hubness_skewness=result.hubness_skewness(),
        oracles=measure_oracles(attributes) if synthetic else None,
        attribute_accuracy=attribute_accuracy(attributes, owners, first_matches) if synthetic else None,
        normalised=normalised,
        without_leaked=without_leaked,
        several_relevant=judged.measure(result.relevant, keep_queries=keep_ranks) if judged else None,
        examples=choose_examples(embeddings, result, examples),
        per_query=query_ranks(embeddings, result) if keep_ranks else None,
    )


def query_ranks(embeddings: Embeddings, result: ScoringResult) -> QueryRanks:
    """Every query's ranks, and what its rows are."""

    def bounds(ranks: Ranks) -> RankBounds:
        return RankBounds(optimistic=ranks.optimistic.numpy(), pessimistic=ranks.pessimistic.numpy())

    return QueryRanks(
        text_to_video=bounds(result.text_to_video),
        video_to_text=bounds(result.video_to_text),
        owners=embeddings.caches.text_to_video.tolist(),
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
    right = int(embeddings.caches.text_to_video[query])
    best = result.text_matches.indices[query, :SHOWN].tolist()
    matches = [
        Match(
            video_id=embeddings.video_ids[video],
            score=score,
            correct=video == right,
            thumbnail=embeddings.thumbnails[video],
        )
        for video, score in zip(best, result.text_matches.scores[query, :SHOWN].tolist(), strict=True)
    ]
    return Example(query=embeddings.captions[query], rank=rank, results=matches)


def _spread(items: Sequence[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
