"""Scoring a trained model on several shard sets with Ray actors."""

from __future__ import annotations

from collections.abc import Sequence

from glscl.data.names import distinct_names
from glscl.data.quarantine import Quarantine
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.evaluation.actors import Evaluators
from glscl.evaluation.alone import start_evaluators
from glscl.evaluation.describe import Scores, describe_test, describe_without_leaked
from glscl.evaluation.embed import Embeddings, concatenate
from glscl.evaluation.leakage import LeakageList, leakage_lists, leave_out
from glscl.evaluation.normalise import measure_normalised
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.query_bank import QueryBank, embed_bank, videos_per_set
from glscl.evaluation.results import NormalisedColumn, Test, WithoutLeaked
from glscl.evaluation.saved import check_weights, read_card
from glscl.evaluation.scoring import ScoringResult, rank_matrix
from glscl.system.progress import Progress


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
) -> list[Test]:
    """Score a model on every test set with ``workers`` Ray actors; see `start_evaluators` for where one is none.

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
        keep_ranks: add every query's ranks, for paired statistics.
        quarantine: lists the videos that cannot be used and bounds them set by set; without, any number is left out.

    Raises:
        UserError: model, test set or list of videos missing, nothing decodable, or too many videos of a set that cannot
            be used; those of all sets are listed by then.
    """
    if not tests:
        return []
    folder, card = read_card(model_uri)
    test_sets = [open_shard_set(uri) for uri in tests]
    bank_sets = [open_shard_set(uri) for uri in bank]
    per_set = videos_per_set(config, bank_sets)
    leaked = leakage_lists(config.leave_out, [shard_set.manifest.domain for shard_set in test_sets])
    quarantine = quarantine or Quarantine(None, 1.0, "")
    results: list[Test] = []
    problems: list[str] = []
    with start_evaluators(
        folder, config, workers, use_gpu=use_gpu, cpus=cpus_per_worker, loader_workers=loader_workers
    ) as evaluators:
        query_bank = embed_bank(evaluators, bank_sets, per_set, quarantine) if per_set else None
        for shard_set, name in zip(test_sets, distinct_names(test_sets), strict=True):
            pieces = _embed(evaluators, shard_set, name, thumbnails=config.examples > 0)
            quarantine.take("test", [shard_set], [entry for piece in pieces for entry in piece.quarantined])
            if problem := quarantine.problem("test", [shard_set]):
                problems.append(problem)
                continue
            embeddings = concatenate(pieces)
            domain = shard_set.manifest.domain
            result, normalised = _score(evaluators, embeddings, name, domain, config, query_bank)
            without_leaked = _score_without_leaked(evaluators, embeddings, leaked.get(domain))
            scores = Scores(result, normalised, without_leaked)
            results.append(
                describe_test(
                    name, shard_set, card, embeddings, scores, examples=config.examples, keep_ranks=keep_ranks
                )
            )
    if problems:
        raise UserError("; ".join(problems))
    return results


def _embed(evaluators: Evaluators, shard_set: ShardSet, name: str, *, thumbnails: bool) -> list[Embeddings]:
    videos = shard_set.manifest.videos
    with Progress(f"embedding {name}", videos, "videos") as progress:
        return evaluators.embed(shard_set.uri, range(videos), thumbnails=thumbnails, progress=progress)


def _score(
    evaluators: Evaluators,
    embeddings: Embeddings,
    name: str,
    domain: str,
    config: EvaluationConfig,
    query_bank: QueryBank | None,
) -> tuple[ScoringResult, list[NormalisedColumn]]:
    """Rank a test set; with normalisations from its whole similarity matrix, which is then held here."""
    shared = evaluators.share(embeddings)
    pairs = len(embeddings.captions) * len(embeddings.video_ids)
    if not config.normalisations:  # every pair is scored twice, once in each direction
        with Progress(f"scoring {name}", 2 * pairs, "pairs") as progress:
            return evaluators.score(shared, progress=progress), []
    with Progress(f"scoring {name}", pairs, "pairs") as progress:
        similarity = evaluators.similarity(shared, shared, progress=progress)
    result = rank_matrix(similarity, embeddings.text_to_video)
    banks = query_bank.similarities(evaluators, shared, domain) if query_bank else None
    return result, measure_normalised(similarity, embeddings.text_to_video, banks)


def _score_without_leaked(
    evaluators: Evaluators, embeddings: Embeddings, leaked: LeakageList | None
) -> WithoutLeaked | None:
    """Score a test set without the videos of its leakage list."""
    if leaked is None:
        return None
    smaller, report = leave_out(embeddings, leaked.names)
    return describe_without_leaked(leaked.uri, report, smaller, evaluators.score(evaluators.share(smaller)))


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
    videos_per_set(config, bank)
    leakage_lists(config.leave_out, [shard_set.manifest.domain for shard_set in tests])
