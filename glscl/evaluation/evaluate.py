"""Scoring a trained model on several shard sets with Ray actors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glscl.data.apart import distinct_names
from glscl.data.frame_changes import FrameChange, FrameOrder, Reorder
from glscl.data.quarantine import Quarantine
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.evaluation.actors import Evaluators
from glscl.evaluation.alone import start_evaluators
from glscl.evaluation.caches import PairCaches
from glscl.evaluation.describe import describe_test
from glscl.evaluation.embed import Embeddings, concatenate, measure, with_texts_of
from glscl.evaluation.leakage import LeakageList, leakage_lists, leave_out
from glscl.evaluation.metrics import Direction
from glscl.evaluation.normalise import Bank, measure_normalised
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.relevance import Judged, match_qrels, read_qrels_lists
from glscl.evaluation.results import NormalisedColumn, Test, WithoutLeaked
from glscl.evaluation.saved import ModelCard, check_features, read_card
from glscl.evaluation.scoring import NO_PAIRS, ScoringResult, rank_matrix
from glscl.evaluation.trec import TrecFiles
from glscl.evaluation.wise_ft import Mix, configured_mix
from glscl.system.nodes import Share
from glscl.system.progress import Progress


def evaluate_model(
    model_uri: str,
    tests: Sequence[str],
    config: EvaluationConfig,
    share: Share,
    quarantine: Quarantine | None = None,
    *,
    bank: Sequence[str] = (),
    keep_ranks: bool = False,
    mixes: Sequence[Mix] = (),
    trec: TrecFiles | None = None,
    here: bool = False,
) -> list[Test]:
    """Score a model on every test set with evaluators (`start_evaluators`), on whose number no figure depends.

    ``model_uri`` is the folder of a saved model, or a run directory; ``config.bank_videos`` are drawn from the training
    sets of ``bank``. ``keep_ranks`` adds every query's ranks, for paired statistics. ``trec`` says where runs are
    written, if any. ``here`` says that this process may do the work of one evaluator, whatever else runs. The
    ``quarantine`` lists the videos that cannot be used and bounds them set by set; without, any number is left out.
    Every set is scored with each of the ``mixes`` of initial and trained weights; without, with the one of the
    configuration, if there is one. With each, the orders of ``config.frames`` follow the frames as they are.

    Raises `UserError`: model, test set or list of videos missing, nothing decodable, or too many videos of a set that
    cannot be used; those of all sets are listed by then.
    """
    if not tests:
        return []
    folder, card = read_card(model_uri)
    test_sets, bank_sets = open_sets(tests, card), open_sets(bank, card)
    per_set = videos_per_set(config, bank_sets)
    domains = [shard_set.manifest.domain for shard_set in test_sets]
    leaked, qrels = leakage_lists(config.leave_out, domains), read_qrels_lists(config.qrels, domains)
    quarantine = quarantine or Quarantine(None, 1.0, "")
    results: list[Test] = []
    problems: dict[str, None] = {}
    with start_evaluators(folder, config, share, here=here) as evaluators:
        for mix in mixes or (configured_mix(config),):
            if not mix.is_trained:
                evaluators.mix(mix)
            query_bank = embed_bank(evaluators, bank_sets, per_set, quarantine) if per_set else None
            for shard_set, name in zip(test_sets, distinct_names(test_sets), strict=True):
                domain = shard_set.manifest.domain
                for order, named, embeddings in _embed_orders(
                    evaluators, shard_set, name + mix.label, config, quarantine
                ):
                    if isinstance(embeddings, str):
                        problems[embeddings] = None
                        continue
                    judged = match_qrels(qrels.get(domain), embeddings)
                    result, normalised = _score(evaluators, embeddings, named, domain, config, query_bank, judged, trec)
                    test = describe_test(
                        named,
                        shard_set,
                        card,
                        embeddings,
                        result,
                        normalised=normalised,
                        without_leaked=_score_without_leaked(evaluators, embeddings, leaked.get(domain)),
                        judged=judged,
                        examples=config.examples,
                        keep_ranks=keep_ranks,
                    )
                    results.append(test.model_copy(update={**mix.alphas, "frames": order}))
    if problems:
        raise UserError("; ".join(problems))
    return results


def open_sets(uris: Sequence[str], card: ModelCard) -> list[ShardSet]:
    """Open shard sets for a model. Raises `UserError`: one holds features that are not of its towers."""
    shard_sets = [open_shard_set(uri) for uri in uris]
    for shard_set in shard_sets:
        check_features(shard_set, card, card.towers)
    return shard_sets


def _embed_orders(
    evaluators: Evaluators, shard_set: ShardSet, name: str, config: EvaluationConfig, quarantine: Quarantine
) -> Iterator[tuple[FrameOrder | None, str, Embeddings | str]]:
    """Embed a test set as it is, and with its frames in the other orders of the configuration.

    Yields the order, the name of the row, and what `embed_set` returns; nothing more once that is no embeddings.
    """
    shown = config.examples > 0
    ordinary = embed_set(evaluators, shard_set, name, quarantine, thumbnails=shown)
    yield None, name, ordinary
    if isinstance(ordinary, str):
        return
    for order in config.frames or ():
        named = f"{name}, {order} frames"
        change = Reorder(order)
        yield order, named, embed_set(evaluators, shard_set, named, quarantine, change, ordinary, thumbnails=shown)


def embed_set(
    evaluators: Evaluators,
    shard_set: ShardSet,
    name: str,
    quarantine: Quarantine,
    change: FrameChange | None = None,
    unchanged: Embeddings | None = None,
    *,
    thumbnails: bool = False,
) -> Embeddings | str:
    """Embed a test set, or say what is wrong with too many of its videos; those are listed by then.

    With a ``change`` of the frames, ``unchanged`` has the texts, which are not embedded again.
    """
    videos = range(shard_set.manifest.videos)
    with Progress(f"embedding {name}", len(videos), "videos") as progress:
        pieces = evaluators.embed(
            shard_set.uri,
            videos,
            thumbnails=thumbnails,
            change=change,
            texts=unchanged is None,
            progress=progress,
        )
    quarantine.take("test", [shard_set], [entry for piece in pieces for entry in piece.quarantined])
    if problem := quarantine.problem("test", [shard_set]):
        return problem
    whole = concatenate(pieces)
    return whole if unchanged is None else with_texts_of(whole, unchanged)


def _score(
    evaluators: Evaluators,
    embeddings: Embeddings,
    name: str,
    domain: str,
    config: EvaluationConfig,
    query_bank: QueryBank | None,
    judged: Judged | None,
    trec: TrecFiles | None,
) -> tuple[ScoringResult, list[NormalisedColumn]]:
    """Rank a test set; with normalisations or runs from its whole similarity matrix, which is then held here."""
    caches = embeddings.caches
    relevant = judged.pairs if judged else NO_PAIRS
    pairs = len(embeddings.captions) * len(embeddings.video_ids)
    with Progress(f"scoring {name}", pairs, "pairs") as progress:
        if not config.normalisations and trec is None:
            return evaluators.score(caches, relevant, progress=progress), []
        similarity = evaluators.similarity(caches, caches, progress=progress)
    result = rank_matrix(similarity, caches.text_to_video, relevant=relevant)
    if trec is not None:
        trec.write(name, embeddings, similarity)
    if not config.normalisations:
        return result, []
    banks = query_bank.similarities(evaluators, caches, domain) if query_bank else None
    return result, measure_normalised(similarity, caches.text_to_video, banks)


def _score_without_leaked(
    evaluators: Evaluators, embeddings: Embeddings, leaked: LeakageList | None
) -> WithoutLeaked | None:
    if leaked is None:
        return None
    smaller, note = leave_out(embeddings, leaked.names)
    return WithoutLeaked(
        list=leaked.uri,
        note=note,
        videos=len(smaller.video_ids),
        texts=len(smaller.captions),
        **measure(evaluators.score(smaller.caches)),
    )


@dataclass(frozen=True, slots=True)
class QueryBank:
    """Training videos and captions, embedded once for all test sets."""

    caches: PairCaches
    domains: tuple[str, ...]

    def similarities(self, evaluators: Evaluators, test_set: PairCaches, domain: str) -> dict[Direction, Bank]:
        """Score the bank's queries against the candidates of a test set of ``domain``, in both directions."""
        in_domain, domains = domain in self.domains, " and ".join(self.domains)
        captions = f"{len(self.caches.text):,} training captions of {domains}"
        videos = f"{len(self.caches.video):,} training videos of {domains}"
        return {
            "text_to_video": Bank(evaluators.similarity(self.caches, test_set), captions, in_domain),
            "video_to_text": Bank(evaluators.similarity(test_set, self.caches).T, videos, in_domain),
        }


def videos_per_set(config: EvaluationConfig, bank: Sequence[ShardSet]) -> int:
    """Videos that each training set gives to the query bank, or 0 for none. Raises `UserError`: fewer than sets."""
    if not config.normalisations or not config.bank_videos or not bank:
        return 0
    if config.bank_videos < len(bank):
        raise UserError(
            f"bank_videos ({config.bank_videos}) is fewer than the {len(bank)} training sets that the query bank is "
            f"drawn from: raise it, or set it to 0 for no bank"
        )
    return config.bank_videos // len(bank)


def embed_bank(evaluators: Evaluators, bank: Sequence[ShardSet], per_set: int, quarantine: Quarantine) -> QueryBank:
    """Embed the first ``per_set`` usable videos of each set. Raises `UserError`: too many are unusable."""
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
    return QueryBank(whole.caches, tuple(domains))


def check_options(config: EvaluationConfig, tests: Sequence[ShardSet], bank: Sequence[ShardSet]) -> None:
    """Fail early, with a `UserError`, on options that do not fit the sets and lists that cannot be read."""
    videos_per_set(config, bank)
    domains = [shard_set.manifest.domain for shard_set in tests]
    leakage_lists(config.leave_out, domains)
    read_qrels_lists(config.qrels, domains)
