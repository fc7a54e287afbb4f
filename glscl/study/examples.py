"""Example queries that one variant finds and another loses, with pictures of what each put first."""

import base64
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from glscl.data.gallery import Gallery
from glscl.data.shards import open_shard_set
from glscl.evaluation.embed import strip
from glscl.evaluation.results import QueryRanks
from glscl.models.tokenizer import tokenize
from glscl.models.towers import frame_size_of
from glscl.runs.cell import Cell, CellTest
from glscl.runs.options import ZERO_SHOT
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished
from glscl.study.results import Example, Shot
from glscl.training.schedule import make_sampling

LOST = 5  # a query is lost where its video comes after this rank
SHOWN = 3  # videos shown per variant

PicturesOf = Callable[[str, int], list[str]]  # domain and position in its test set -> frames as ``data:`` URIs


@dataclass(frozen=True, slots=True)
class Candidate:
    """A query that could be shown."""

    cell: Cell  # of the variant that finds it
    test: str  # domain of the test set
    query: int  # number of the caption
    finder: str
    loser: str
    of_finder: QueryRanks
    of_loser: QueryRanks

    @property
    def order(self) -> tuple[bool, float]:
        """Across domains before in-domain, then those that the loser misses by most."""
        return self.test in self.cell.domains, -_rank(self.of_loser, self.query)

    @property
    def key(self) -> tuple[str, str]:
        """Test set and caption, so that no query is shown twice."""
        return self.test, self.of_finder.captions[self.query]


def find_examples(study: StudyConfig, finished: Finished) -> list[Example]:
    """Find up to ``study.examples`` queries.

    They are of the first seed, across domains before in-domain, the comparisons in turn, each variant as finder and as
    loser. Pictures are decoded from the test shards.
    """
    by_key = {
        (cell.condition, cell.variant, cell.training): (cell, result)
        for cell, result in finished
        if cell.seed == study.seeds[0] and cell.training != ZERO_SHOT
    }
    queues = []
    for pair in study.pairs:
        for finder, loser in (pair, pair[::-1]):
            candidates: list[Candidate] = []
            for (condition, variant, training), (cell, result) in by_key.items():
                other = by_key.get((condition, loser, training))
                if variant == finder and other is not None:
                    for ours, theirs in zip(result.tests, other[1].tests, strict=True):
                        candidates += find_candidates(cell, finder, loser, ours, theirs)
            queues.append(sorted(candidates, key=lambda candidate: candidate.order))
    chosen = _choose(queues, study.examples)
    pictures = _open_pictures(finished[0][0])
    return [build_example(candidate, pictures) for candidate in chosen]


def find_candidates(cell: Cell, finder: str, loser: str, ours: CellTest, theirs: CellTest) -> Iterator[Candidate]:
    """Yield the queries of one test set that the finder finds first and the loser loses."""
    for query in range(len(ours.per_query.captions)):
        if _rank(ours.per_query, query) <= 1 and _rank(theirs.per_query, query) > LOST:
            yield Candidate(cell, ours.domain, query, finder, loser, ours.per_query, theirs.per_query)


def _choose(queues: Sequence[list[Candidate]], count: int) -> list[Candidate]:
    """Take from the queues in turn, each query once."""
    chosen: list[Candidate] = []
    seen: set[tuple[str, str]] = set()
    while len(chosen) < count and any(queues):
        for queue in queues:
            while queue and queue[0].key in seen:
                queue.pop(0)
            if queue and len(chosen) < count:
                seen.add(queue[0].key)
                chosen.append(queue.pop(0))
    return chosen


def _rank(queries: QueryRanks, query: int) -> float:
    ranks = queries.text_to_video
    return float(ranks.optimistic[query] + ranks.pessimistic[query]) / 2


def _open_pictures(cell: Cell) -> PicturesOf:
    """Open the cell's test shards, whose videos are decoded once each: first, middle and last frame; features: none."""
    sets = [open_shard_set(uri) for uri in cell.config.data.test]
    by_domain = {shard_set.manifest.domain: shard_set for shard_set in sets}
    size = frame_size_of(cell.config.model.clip)

    @functools.cache
    def decode(domain: str, position: int) -> list[str]:
        if by_domain[domain].manifest.features is not None:
            return []
        sampling = make_sampling(cell.config, size, [by_domain[domain]])
        gallery = Gallery(by_domain[domain], position, position + 1, sampling, lambda texts: tokenize(texts, 8), 1)
        (batch,) = gallery.batches(0)
        jpegs = strip(batch.frames[0], batch.frame_mask[0])
        return ["data:image/jpeg;base64," + base64.b64encode(jpeg).decode() for jpeg in jpegs]

    return decode


def build_example(candidate: Candidate, pictures: PicturesOf) -> Example:
    """Build an example; ``pictures`` gives a video's frames."""
    query = candidate.query

    def shots(queries: QueryRanks) -> list[Shot]:
        return [
            Shot(
                video_id=queries.video_ids[row],
                correct=row == queries.owners[query],
                thumbnails=pictures(candidate.test, queries.positions[row]),
            )
            for row in map(int, queries.top[query][:SHOWN])
        ]

    return Example(
        condition=candidate.cell.condition,
        training=candidate.cell.training,
        test=candidate.test,
        query=candidate.of_finder.captions[query],
        finder=candidate.finder,
        loser=candidate.loser,
        finder_rank=_rank(candidate.of_finder, query),
        loser_rank=_rank(candidate.of_loser, query),
        finder_top=shots(candidate.of_finder),
        loser_top=shots(candidate.of_loser),
    )
