"""Scoring a trained model on several shard sets over the cluster, and what the report shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.evaluation.embed import Embeddings, concatenate, embed
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.oracles import attribute_accuracy, attribute_pair_oracles, single_attribute_oracles
from glscl.evaluation.retrieval import Part, metrics_of, score_part
from glscl.evaluation.saved import ModelCard, check_weights, load_model, read_card
from glscl.evaluation.scoring import ScoringResult, merge, split_rows
from glscl.models.tokenizer import tokenize


class Evaluator:
    """One Ray actor: holds the model, embeds and scores its share."""

    def __init__(self, model_uri: str, config: EvaluationConfig, use_gpu: bool, loader_workers: int) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        model, self.card = load_model(model_uri)
        self.model = model.to(self.device)
        self.config = config
        self.loader_workers = loader_workers

    def embed(self, uri: str, part: Part) -> Embeddings:
        """Embed this part's videos and their captions."""
        shard_set = open_shard_set(uri)
        rows = split_rows(shard_set.manifest.videos, part.index, part.count)
        sampling = self.card.sampling(self.model.frame_size)
        gallery = Gallery(shard_set, rows.start, rows.stop, sampling, self._tokenize, self.config.batch_size)
        return embed(self.model, gallery, self.loader_workers, self.device, thumbnails=self.config.examples > 0)

    def _tokenize(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return tokenize(captions, self.card.model.max_words)

    @torch.no_grad()
    def score(self, embeddings: Embeddings, part: Part) -> ScoringResult:
        """Score this part's rows in both directions."""
        return score_part(self.model.score, embeddings, self.config, part, self.device)


def evaluate_model(
    model_uri: str,
    tests: Sequence[str],
    config: EvaluationConfig,
    *,
    workers: int,
    use_gpu: bool = False,
    cpus_per_worker: float = 1.0,
    loader_workers: int = 0,
) -> list[dict[str, Any]]:
    """Score a model on every test set with ``workers`` Ray actors.

    The numbers do not depend on the number of workers.

    Args:
        model_uri: folder of a saved model, or a run directory.
        tests: shard sets.
        config: block sizes and number of examples.
        workers: actors.
        use_gpu: one GPU per actor.
        cpus_per_worker: CPUs that Ray reserves per actor.
        loader_workers: decoding processes per actor.

    Returns:
        one entry per test set, as `glscl.reporting` lays it out.

    Raises:
        UserError: model or test set missing, or nothing decodable.
    """
    import ray

    if not tests:
        return []
    folder, card = read_card(model_uri)
    sets = [open_shard_set(uri) for uri in tests]
    actor = ray.remote(num_cpus=cpus_per_worker, num_gpus=int(use_gpu))(Evaluator)
    actors = [actor.remote(folder, config, use_gpu, loader_workers) for _ in range(workers)]
    parts = [Part(index, workers) for index in range(workers)]
    entries = []
    try:
        for shard_set in sets:
            pieces = [a.embed.remote(shard_set.uri, part) for a, part in zip(actors, parts, strict=True)]
            embeddings = concatenate(ray.get(pieces))
            shared = ray.put(embeddings)
            scores = ray.get([a.score.remote(shared, part) for a, part in zip(actors, parts, strict=True)])
            entries.append(_entry(shard_set, card, embeddings, merge(scores), config.examples))
            del shared
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None  # Ray's own carries the actor's traceback in its text
        raise
    finally:
        for a in actors:
            ray.kill(a)
    return entries


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
        "quarantine": embeddings.quarantined,
        **metrics_of(result),
        "hubness_skewness": result.hubness_skewness(videos),
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


def check_tests(model_uri: str, tests: Sequence[str]) -> None:
    """Fail early on what would fail in an actor: the model's card and weights, and every manifest.

    Raises:
        UserError: naming what is missing or does not fit.
    """
    check_weights(model_uri)
    for uri in tests:
        open_shard_set(uri)
