"""Several relevant videos per caption: the lists that name them (qrels), and the metrics that count all of them.

A caption often describes more than one video of a test set; MSVD's test part has 4,372 such captions, word for word.
With a list of what is relevant, text to video gets a second column in which every relevant video counts. The first
stays what the field publishes: only the caption's own video counts.

Of R relevant videos of a query, with grades g (trec_eval's definitions, whose figures these are where nothing ties)::

    R@k      share of the R that is among the first k
    hit@k    1 if any of them is
    MRR      1 / rank of the first of them
    nDCG@k   sum of g / log2(1 + rank) over those among the first k, over the same sum of the best possible order

All are expectations over breaking ties at random, as the ranks' own are. R@k and nDCG are sums over relevant videos, so
each one's own rank gives its share. Of n videos that tie after ``greater`` others, r of them relevant and none before,
the first relevant one comes later than place ``greater + j`` with chance ``C(n - j, r) / C(n, r)``.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.data.records import compose_accents, parse_strict_json
from glscl.errors import UserError
from glscl.evaluation.embed import Embeddings
from glscl.evaluation.lists import read_by_domain, read_text
from glscl.evaluation.metrics import (
    MRR,
    NDCG,
    NDCG_LEVEL,
    RECALL_LEVELS,
    RELEVANT_SUMMARY,
    hit_name,
    recall_name,
)
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.results import Metrics, RelevantQueries, SeveralRelevant
from glscl.evaluation.scoring import RelevantPairs

JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Qrels:
    """A list of relevant videos: the grade of each by caption (``VIDEO#N``) and video; below 1 is not relevant."""

    uri: str
    grades: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Judged:
    """A test set's relevant pairs with their grades (P,) float64, and what the list says of the set."""

    uri: str
    note: str
    texts: int
    pairs: RelevantPairs
    grades: Tensor

    def measure(self, ranks: Ranks, *, keep_queries: bool = False) -> SeveralRelevant:
        """The second column, from each pair's rank; with ``keep_queries`` every query's figures, too."""
        counts = self.pairs.texts.bincount(minlength=self.texts)
        values = relevant_values(self.pairs.texts, ranks, self.grades) if keep_queries else {}
        queries = RelevantQueries(
            captions=self.pairs.texts.unique_consecutive().tolist(),
            values={name: of_queries.numpy() for name, of_queries in values.items()},
        )
        return SeveralRelevant(
            list=self.uri,
            note=self.note,
            captions=int((counts > 1).sum()),
            relevant=float(counts.double().mean()),
            text_to_video=measure_relevant(self.pairs.texts, ranks, self.grades),
            per_query=queries if keep_queries else None,
        )


def caption_name(video_id: str, number: int) -> str:
    """Name of a video's caption in a list, as the query: ``VIDEO#N``, counted from 0."""
    return f"{video_id}#{number}"


def read_qrels(uri: str) -> Qrels:
    """Read TREC's lines ``QUERY 0 VIDEO GRADE``, or (``.jsonl``) JSON objects with query, doc and rel, which may lack.

    Raises `UserError`: no such file, a line that is not of that form, a pair that is there twice, or no line.
    """
    parse = _parse_json if uri.lower().endswith(JSON_LINES) else _parse_trec
    grades: dict[str, dict[str, int]] = {}
    for number, line in enumerate(read_text(uri).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            query, video, grade = parse(line)
        except ValueError as error:
            raise UserError(f"{uri}, line {number}: {error}") from None
        of_query = grades.setdefault(compose_accents(query), {})
        if of_query.setdefault(compose_accents(video), grade) != grade:
            raise UserError(f"{uri}, line {number}: {query} with {video} has another grade in a line before")
    if not grades:
        raise UserError(f"{uri}: names no relevant video; expected lines 'QUERY 0 VIDEO GRADE', or JSON in a .jsonl")
    return Qrels(uri, grades)


def _parse_trec(line: str) -> tuple[str, str, int]:
    fields = line.split()
    if len(fields) != 4 or not fields[3].lstrip("-").isdecimal():
        raise ValueError("expected 'QUERY 0 VIDEO GRADE'; names with spaces need JSON lines, in a file named .jsonl")
    return fields[0], fields[2], int(fields[3])


def _parse_json(line: str) -> tuple[str, str, int]:
    value = parse_strict_json(line)
    if isinstance(value, dict):
        query, video, grade = value.get("query"), value.get("doc"), value.get("rel", 1)
        if isinstance(query, str) and isinstance(video, str) and isinstance(grade, int) and not isinstance(grade, bool):
            return query, video, grade
    raise ValueError('expected {"query": "VIDEO#N", "doc": "VIDEO", "rel": 1}')


def read_qrels_lists(entries: Sequence[str], domains: Collection[str]) -> dict[str, Qrels]:
    """Read the lists that ``evaluation.qrels`` names as ``DOMAIN=FILE``; ``domains`` has the test sets'.

    Raises `UserError`: see `read_by_domain` and `read_qrels`.
    """
    return {domain: qrels for domain, (_, qrels) in read_by_domain("qrels", entries, domains, read_qrels).items()}


def match_qrels(qrels: Qrels | None, embeddings: Embeddings) -> Judged | None:
    """Find a list's captions and videos in a test set; None without a list.

    Raises `UserError`: it names none of the captions.

    A caption's own video is relevant with grade 1, unless the list has it with another grade. Captions to which nothing
    is relevant then are no queries. Videos that are not in the set, because they could not be used, are left out.
    """
    if qrels is None:
        return None
    names = list(map(compose_accents, embeddings.video_ids))
    named = [(qrels.grades.get(name, {}), owner) for name, owner in name_captions(embeddings)]
    matched = sum(bool(listed) for listed, _ in named)
    if not matched:
        raise UserError(
            f"{qrels.uri}: none of its {len(qrels.grades):,} queries is a caption of this test set; they are named by "
            f"video and number, like {caption_name(names[0], 0)}"
        )
    pairs = _list_pairs(named, names)
    if not pairs:
        raise UserError(f"{qrels.uri}: no video is relevant to any caption of this test set; a grade must be 1 or more")
    columns = [torch.tensor(column, dtype=torch.int64) for column in zip(*pairs, strict=True)]
    note = f"{matched:,} of {len(qrels.grades):,} listed captions are in this set."
    if unknown := set().union(*(listed for listed, _ in named)) - set(names):
        note += f" {len(unknown):,} videos that the list calls relevant or not are not in it, and left out."
    return Judged(qrels.uri, note, len(named), RelevantPairs(columns[0], columns[1]), columns[2].double())


def _list_pairs(named: Sequence[tuple[Mapping[str, int], int]], names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Text, video and grade of all that is relevant; of every caption, its listed grades and its own video."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    pairs = []
    for text, (listed, owner) in enumerate(named):
        grades = {owner: 1} | {row: grade for video, grade in listed.items() for row in rows.get(video, ())}
        pairs += [(text, row, grade) for row, grade in sorted(grades.items()) if grade > 0]
    return pairs


def name_captions(embeddings: Embeddings) -> Iterator[tuple[str, int]]:
    """Name and video of every caption, in their order."""
    for owner, (video_id, count) in enumerate(zip(embeddings.video_ids, embeddings.caches.captions, strict=True)):
        for number in range(count):
            yield compose_accents(caption_name(video_id, number)), owner


def measure_relevant(queries: Tensor, ranks: Ranks, grades: Tensor) -> Metrics:
    """Metrics in per cent of queries with several relevant candidates, by `RELEVANT_SUMMARY`, and their number.

    Arguments and errors are those of `relevant_values`, whose means these are.
    """
    values = relevant_values(queries, ranks, grades)
    means = {name: float(of_queries.mean()) for name, of_queries in values.items()}
    return means | {"queries": len(next(iter(values.values())))}


def relevant_values(queries: Tensor, ranks: Ranks, grades: Tensor) -> dict[str, Tensor]:
    """Figures in per cent of every query with several relevant candidates, (Q,) float64 by `RELEVANT_SUMMARY`.

    Args:
        queries: (P,) int64, which does not decrease: the query of each relevant candidate.
        ranks: (P,) of the relevant candidates among all candidates of their query.
        grades: (P,) float64, positive.

    Raises `ValueError`: no queries.
    """
    if not len(queries):
        raise ValueError("no queries: there is nothing to measure")
    _, query, relevant = queries.unique_consecutive(return_inverse=True, return_counts=True)
    total = len(relevant)

    def add_up(values: Tensor) -> Tensor:
        return torch.zeros(total, dtype=torch.float64).index_add_(0, query, values)

    first = torch.full((total,), torch.iinfo(torch.int64).max).scatter_reduce_(0, query, ranks.optimistic, "amin")
    is_first = ranks.optimistic == first[query]
    among = add_up(is_first.double())  # relevant ones among those that tie for the first place of any
    tied = torch.zeros(total, dtype=torch.int64).scatter_reduce_(0, query, ranks.tied * is_first, "amax")
    gain = add_up(grades * ranks.discounted(NDCG_LEVEL))
    figures = {recall_name(k): add_up(ranks.within(k)) / relevant for k in RECALL_LEVELS}
    figures |= {hit_name(k): 1 - _all_later(k, first, tied, among) for k in RECALL_LEVELS}
    figures[MRR] = _reciprocal(first, tied, among)
    figures[NDCG] = gain / _best_gain(query, grades, relevant)
    return {name: 100.0 * figures[name] for name in RELEVANT_SUMMARY}


def _all_later(k: int, first: Tensor, tied: Tensor, among: Tensor) -> Tensor:
    """Chance that ``among`` relevant of ``tied`` candidates, the first at rank ``first``, all come after rank ``k``."""
    later = torch.ones(len(first), dtype=torch.float64)
    for place in range(k):
        factor = (tied - among - place).clamp(min=0) / (tied - place).clamp(min=1)
        later = torch.where(first + place <= k, later * factor, later)
    return later


def _reciprocal(first: Tensor, tied: Tensor, among: Tensor) -> Tensor:
    """Expected 1 / rank of the first of ``among`` relevant of ``tied`` candidates, ``first`` being the least rank."""
    alone = Ranks(first, first + tied - 1).reciprocal
    several = among > 1
    if not several.any():
        return alone
    least, n, r = first[several].double(), tied[several].double(), among[several]
    expected, later = torch.zeros_like(least), torch.ones_like(least)
    for place in range(int((n - r).max()) + 1):
        here = later * (r / (n - place)).clamp(max=1)  # chance that the first one is at this place
        here = torch.where(place <= n - r, here, 0.0)
        expected += here / (least + place)
        later = later - here
    alone[several] = expected
    return alone


def _best_gain(query: Tensor, grades: Tensor, relevant: Tensor) -> Tensor:
    """The discounted gain of the best order of each query's relevant candidates."""
    by_grade = grades.argsort(descending=True, stable=True)
    order = by_grade[query[by_grade].argsort(stable=True)]
    begins = relevant.cumsum(0) - relevant
    place = 1 + torch.arange(len(query)) - begins[query]  # `order` keeps the queries in their order
    gains = grades[order] * Ranks(place, place).discounted(NDCG_LEVEL)
    return torch.zeros(len(relevant), dtype=torch.float64).index_add_(0, query, gains)
