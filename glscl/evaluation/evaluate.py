"""Scoring a trained model on several shard sets over the cluster, and what the report shows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glscl.data.gallery import Gallery
from glscl.data.names import distinct_names
from glscl.data.quarantine import Quarantine
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import BrokenRunError, UserError
from glscl.evaluation.embed import Embeddings, concatenate, embed
from glscl.evaluation.leakage import LeakageList, leakage_lists, leave_out
from glscl.evaluation.metrics import Direction
from glscl.evaluation.normalise import Bank, normalised_metrics
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.oracles import attribute_accuracy, attribute_pair_oracles, single_attribute_oracles
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.retrieval import Part, metrics_of, score_part, similarity_part
from glscl.evaluation.saved import ModelCard, check_weights, load_model, read_card
from glscl.evaluation.scoring import ScoringResult, merge, rank_matrix, split_rows
from glscl.models.heads.base import Features
from glscl.models.tokenizer import tokenize
from glscl.system.progress import Progress

POLL_S = 1.0
"""Seconds between two looks at how far the actors have come."""


class Evaluator:
    """One Ray actor: holds the model, embeds and scores its share."""

    def __init__(self, model_uri: str, config: EvaluationConfig, use_gpu: bool, loader_workers: int) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        model, self.card = load_model(model_uri)
        self.model = model.to(self.device)
        self.config = config
        self.loader_workers = loader_workers
        self.done = 0

    def progress(self) -> int:
        """Videos embedded and queries scored since the last task of this actor began; asked while it works."""
        return self.done

    def _note(self, count: int) -> None:
        self.done += count

    def _score(self, text: Features, video: Features) -> Tensor:
        self._note(len(next(iter(text.values()))) * len(next(iter(video.values()))))
        return self.model.score(text, video)

    def embed(self, uri: str, videos: range, thumbnails: bool, part: Part) -> Embeddings:
        """Embed this part of a set's ``videos`` and their captions."""
        own = split_rows(len(videos), part.index, part.count)
        first, last = videos.start + own.start, videos.start + own.stop
        sampling = self.card.sampling(self.model.frame_size)
        gallery = Gallery(open_shard_set(uri), first, last, sampling, self._tokenize, self.config.batch_size)
        self.done = 0
        return embed(self.model, gallery, self.loader_workers, self.device, thumbnails=thumbnails, note=self._note)

    def _tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return tokenize(captions, self.card.model.max_words)

    @torch.no_grad()
    def score(self, embeddings: Embeddings, part: Part) -> ScoringResult:
        """Score this part's rows in both directions."""
        self.done = 0
        return score_part(self._score, embeddings, self.config, part, self.device)

    @torch.no_grad()
    def similarity(self, texts: Embeddings, videos: Embeddings, part: Part) -> Tensor:
        """Similarities (a, N) of this part's texts of one set with all videos of the same or another set."""
        self.done = 0
        return similarity_part(self._score, texts, videos, self.config, part, self.device)


Each = Callable[..., list[Any]]
"""Name of a method of `Evaluator` and its arguments without ``part`` -> what each actor returns for its part."""


@dataclass(frozen=True, slots=True)
class _QueryBank:
    """Training videos and captions, embedded once for all test sets."""

    shared: Any
    """Ray's reference to the `Embeddings`."""
    texts: int
    videos: int
    domains: tuple[str, ...]


def evaluate_model(
    model_uri: str,
    tests: Sequence[str],
    config: EvaluationConfig,
    *,
    workers: int,
    use_gpu: bool = False,
    cpus_per_worker: float = 1.0,
    loader_workers: int = 0,
    bank: Sequence[str] = (),
    keep_ranks: bool = False,
    quarantine: Quarantine | None = None,
) -> list[dict[str, Any]]:
    """Score a model on every test set with ``workers`` Ray actors.

    The numbers do not depend on the number of workers.

    Args:
        model_uri: folder of a saved model, or a run directory.
        tests: shard sets.
        config: block sizes, number of examples, normalisations, videos to leave out.
        workers: actors.
        use_gpu: one GPU per actor.
        cpus_per_worker: CPUs that Ray reserves per actor.
        loader_workers: decoding processes per actor.
        bank: training shard sets that ``config.bank_videos`` are drawn from.
        keep_ranks: add ``per_query``: every query's ranks, for paired statistics.
        quarantine: lists the videos that cannot be used and bounds them set by set; without, any number is left out.

    Returns:
        one entry per test set, as `glscl.reporting` lays it out; plain values, except for thumbnails.

    Raises:
        UserError: model, test set or list of videos missing, nothing decodable, or too many videos of a set that cannot
            be used; those of all sets are listed by then.
    """
    import ray

    if not tests:
        return []
    folder, card = read_card(model_uri)
    sets = [open_shard_set(uri) for uri in tests]
    bank_sets = [open_shard_set(uri) for uri in bank]
    share = _bank_share(config, bank_sets)
    leaked = leakage_lists(config.leave_out, [shard_set.manifest.domain for shard_set in sets])
    # Of the two calls at once, one asks how far the other has come.
    actor = ray.remote(num_cpus=cpus_per_worker, num_gpus=int(use_gpu), max_concurrency=2)(Evaluator)
    actors = [actor.remote(folder, config, use_gpu, loader_workers) for _ in range(workers)]
    parts = [Part(index, workers) for index in range(workers)]
    entries = []
    problems: list[str] = []
    quarantine = quarantine or Quarantine(None, 1.0, "")

    def each(method: str, *arguments: Any, progress: Progress | None = None) -> list[Any]:
        calls = [getattr(a, method).remote(*arguments, part) for a, part in zip(actors, parts, strict=True)]
        waiting = calls
        while progress is not None and waiting:
            ended, waiting = ray.wait(calls, num_returns=len(calls), timeout=POLL_S)
            ray.get(ended)  # an actor that failed is not waited for any longer
            progress.reach(sum(ray.get([a.progress.remote() for a in actors])) if waiting else progress.total)
        return list(ray.get(calls))

    try:
        query_bank = _embed_bank(each, bank_sets, share, quarantine) if share else None
        for shard_set, name in zip(sets, distinct_names(sets), strict=True):
            domain = shard_set.manifest.domain
            videos = shard_set.manifest.videos
            with Progress(f"embedding {name}", videos, "videos") as progress:
                pieces = each("embed", shard_set.uri, range(videos), config.examples > 0, progress=progress)
            quarantine.take("test", [shard_set], [entry for piece in pieces for entry in piece.quarantined])
            if problem := quarantine.problem("test", [shard_set]):
                problems.append(problem)
                continue
            embeddings = concatenate(pieces)
            shared = ray.put(embeddings)
            pairs = 2 * len(embeddings.captions) * len(embeddings.video_ids)  # once in each direction
            normalised: list[dict[str, Any]] = []
            if config.normalisations:  # these hold the whole matrix: every pair is then scored once, not once per way
                with Progress(f"scoring {name}", pairs // 2, "pairs") as progress:
                    similarity = torch.cat(each("similarity", shared, shared, progress=progress))
                result = rank_matrix(similarity, embeddings.text_to_video)
                banks = _banks(each, shared, query_bank, domain) if query_bank else None
                normalised = normalised_metrics(similarity, embeddings.text_to_video, banks)
                del similarity, banks
            else:
                with Progress(f"scoring {name}", pairs, "pairs") as progress:
                    result = merge(each("score", shared, progress=progress))
            del shared
            entry = {"name": name} | _entry(shard_set, card, embeddings, result, config.examples)
            entry["normalised"] = normalised
            entry["without_leaked"] = _without_leaked(each, embeddings, leaked[domain]) if domain in leaked else None
            if keep_ranks:
                entry["per_query"] = _per_query(embeddings, result)
            entries.append(entry)
    except ray.exceptions.RayTaskError as error:
        raise _of_the_actor(error) from None
    finally:
        for a in actors:
            ray.kill(a)
    if problems:
        raise UserError("; ".join(problems))
    return entries


def _of_the_actor(error: Any) -> BaseException:
    """What an actor ended with, where it is meant to be read; Ray's own carries a traceback in its text."""
    cause = error.cause
    return type(cause)(str(cause)) if isinstance(cause, UserError | BrokenRunError) else error


def _bank_share(config: EvaluationConfig, bank: Sequence[ShardSet]) -> int:
    """Videos that each set gives to the query bank; 0 if there is to be none."""
    if not config.normalisations or not config.bank_videos or not bank:
        return 0
    if config.bank_videos < len(bank):
        raise UserError(
            f"bank_videos ({config.bank_videos}) is fewer than the {len(bank)} training sets that the query bank is "
            f"drawn from: raise it, or set it to 0 for no bank"
        )
    return config.bank_videos // len(bank)


def _embed_bank(each: Each, bank: Sequence[ShardSet], share: int, quarantine: Quarantine) -> _QueryBank:
    """Embed the first ``share`` usable videos of each set, reading on for as many as cannot be decoded.

    Raises:
        UserError: more than the quarantine allows cannot be.
    """
    import ray

    sets = []
    for shard_set in bank:
        pieces: list[Embeddings] = []
        read, missing = 0, share
        while missing and read < shard_set.manifest.videos:
            videos = range(read, min(read + missing, shard_set.manifest.videos))
            new = each("embed", shard_set.uri, videos, False)
            pieces += new
            quarantine.take("bank", [shard_set], [entry for piece in new for entry in piece.quarantined])
            if problem := quarantine.problem("bank", [shard_set]):
                raise UserError(problem)
            read, missing = videos.stop, missing - sum(len(piece.positions) for piece in new)
        sets.append(concatenate(pieces))
    whole = concatenate(sets)  # the order of a bank's queries matters to nobody
    domains = dict.fromkeys(shard_set.manifest.domain for shard_set in bank)
    return _QueryBank(ray.put(whole), len(whole.captions), len(whole.video_ids), tuple(domains))


def _banks(each: Each, shared: Any, bank: _QueryBank, domain: str) -> dict[Direction, Bank]:
    """The query bank against the candidates of a test set, which ``shared`` refers to."""
    own, domains = domain in bank.domains, " and ".join(bank.domains)
    return {
        "text_to_video": Bank(
            torch.cat(each("similarity", bank.shared, shared)), f"{bank.texts:,} training captions of {domains}", own
        ),
        "video_to_text": Bank(
            torch.cat(each("similarity", shared, bank.shared)).T, f"{bank.videos:,} training videos of {domains}", own
        ),
    }


def _without_leaked(each: Each, embeddings: Embeddings, leaked: LeakageList) -> dict[str, Any]:
    """Metrics of the set without the listed videos."""
    import ray

    smaller, report = leave_out(embeddings, leaked.names)
    return {
        "list": leaked.uri,
        "note": report.note,
        "videos": len(smaller.video_ids),
        "texts": len(smaller.captions),
        **metrics_of(merge(each("score", ray.put(smaller)))),
    }


def _per_query(embeddings: Embeddings, result: ScoringResult) -> dict[str, Any]:
    """Every query's ranks, and what its rows are."""

    def bounds(ranks: Ranks) -> dict[str, list[int]]:
        return {"optimistic": ranks.optimistic.tolist(), "pessimistic": ranks.pessimistic.tolist()}

    return {
        "text_to_video": bounds(result.text_to_video),
        "video_to_text": bounds(result.video_to_text),
        "owners": embeddings.text_to_video.tolist(),
        "query_videos": result.query_videos.tolist(),
        "top": result.text_matches.indices[:, :5].tolist(),
        "video_ids": embeddings.video_ids,
        "positions": embeddings.positions,
        "captions": embeddings.captions,
    }


def _entry(
    shard_set: ShardSet, card: ModelCard, embeddings: Embeddings, result: ScoringResult, examples: int
) -> dict[str, Any]:
    manifest = shard_set.manifest
    videos, texts = len(embeddings.video_ids), len(embeddings.captions)
    names = {frozenset(row) for row in embeddings.attributes}
    synthetic = len(names) == 1 and names != {frozenset()}
    attributes = [{key: str(value) for key, value in row.items()} for row in embeddings.attributes]
    top = result.text_matches.indices[:, 0].tolist()
    return {
        "domain": manifest.domain,
        "split": manifest.split,
        "relation": "in-domain" if manifest.domain in card.train_domains else "cross-domain",
        "shards": shard_set.uri,
        "fingerprint": manifest.fingerprint(),
        "videos": videos,
        "texts": texts,
        "captions_per_video": texts / videos,
        "max_frames": card.model.max_frames,
        "max_words": card.model.max_words,
        "truncated_texts": embeddings.truncated,
        "quarantined": len(embeddings.quarantined),
        "repaired": embeddings.repaired,
        "quarantine": embeddings.quarantined,
        "rejected": len(manifest.rejected),
        **metrics_of(result),
        "hubness_skewness": result.hubness_skewness(),
        "oracles": {
            "single": _per_cent(single_attribute_oracles(attributes)),
            "pair": _per_cent(attribute_pair_oracles(attributes)),
        }
        if synthetic
        else None,
        "attribute_accuracy": {
            name: _per_cent(values)
            for name, values in attribute_accuracy(attributes, embeddings.text_to_video.tolist(), top).items()
        }
        if synthetic
        else None,
        "examples": _examples(embeddings, result, examples),
    }


def _per_cent(shares: dict[str, float]) -> dict[str, float]:
    return {name: 100.0 * share for name, share in shares.items()}


def _examples(embeddings: Embeddings, result: ScoringResult, count: int) -> list[dict[str, Any]]:
    """Queries spread evenly over the set with their five best videos: half hits, half misses, as far as there are."""
    ranks = result.text_to_video.mid.tolist()
    hits = [query for query, rank in enumerate(ranks) if rank <= 1]
    misses = [query for query, rank in enumerate(ranks) if rank > 1]
    chosen = _spread(hits, count - min(len(misses), count // 2)) + _spread(misses, count - min(len(hits), count // 2))
    examples = []
    for query in chosen[:count]:
        right = int(embeddings.text_to_video[query])
        best = result.text_matches.indices[query, :5].tolist()
        scores = result.text_matches.scores[query, :5].tolist()
        examples.append(
            {
                "query": embeddings.captions[query],
                "rank": ranks[query],
                "results": [
                    {
                        "video_id": embeddings.video_ids[video],
                        "score": score,
                        "correct": video == right,
                        "thumbnail": embeddings.thumbnails[video],
                    }
                    for video, score in zip(best, scores, strict=True)
                ],
            }
        )
    return examples


def _spread(items: list[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def without_thumbnails(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same entries small enough for ``results.json``."""
    return [
        entry
        | {
            "examples": [
                example
                | {"results": [{k: v for k, v in item.items() if k != "thumbnail"} for item in example["results"]]}
                for example in entry["examples"]
            ]
        }
        for entry in entries
    ]


def check_tests(model_uri: str, tests: Sequence[str], config: EvaluationConfig, bank: Sequence[str] = ()) -> None:
    """Fail early on what would fail in an actor: the model's card and weights, every manifest, and the options.

    Raises:
        UserError: naming what is missing or does not fit.
    """
    check_weights(model_uri)
    check_options(config, [open_shard_set(uri) for uri in tests], [open_shard_set(uri) for uri in bank])


def check_options(config: EvaluationConfig, tests: Sequence[ShardSet], bank: Sequence[ShardSet]) -> None:
    """Fail early on options that do not fit the sets, and on lists of videos that cannot be read.

    Raises:
        UserError: naming the option.
    """
    _bank_share(config, bank)
    leakage_lists(config.leave_out, [shard_set.manifest.domain for shard_set in tests])
