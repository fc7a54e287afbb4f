"""Scoring a trained model with the frames of its test sets corrupted, in as many passes as there are shifts."""

from __future__ import annotations

from collections.abc import Sequence

from glscl.data.apart import distinct_names
from glscl.data.quarantine import Quarantine, describe_incomplete, find_incomplete
from glscl.data.shards import ShardSet
from glscl.data.shifts import KINDS, STRENGTHS, Shift
from glscl.errors import UserError
from glscl.evaluation.actors import Evaluators
from glscl.evaluation.alone import start_evaluators
from glscl.evaluation.embed import Embeddings, measure
from glscl.evaluation.evaluate import embed_set, open_sets
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, METRICS, Direction
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import ModelCard, read_card
from glscl.evaluation.scoring import ScoringResult
from glscl.shifts.results import ShiftedTest, ShiftResults, Strength
from glscl.study.panels import as_estimate
from glscl.study.statistics import QueryBootstrap, System, per_query
from glscl.system.nodes import Share
from glscl.system.progress import Progress
from glscl.training.driver.outputs import describe_run

RESAMPLES = 10_000  # of the queries, as many as a study takes


def check_pixels(tests: Sequence[ShardSet]) -> None:
    """Refuse sets of features, in which there are no frames to corrupt, and those without a second video."""
    for shard_set in tests:
        if shard_set.manifest.features is not None:
            raise UserError(
                f"--shifts: {shard_set.uri} holds features, and shifts corrupt pictures: name the set of videos under "
                f"--test, or leave out --shifts"
            )
        if shard_set.manifest.videos < 2:
            raise UserError(
                f"--shifts: {shard_set.uri} holds one video, of which there is no interval: name another --test"
            )


def describe_cost(shifts: Sequence[Shift], tests: Sequence[ShardSet]) -> str:
    """Say how much there is to do."""
    kinds, videos = len({shift.kind for shift in shifts}), sum(shard_set.manifest.videos for shard_set in tests)
    passes = len(shifts) + 1
    return (
        f"shifts: {kinds} kinds x {len(STRENGTHS)} strengths, and the frames as they are: {passes} passes over "
        f"{videos:,} videos, each decoded, embedded and scored {passes} times; captions are embedded once"
    )


def shift_model(
    model_uri: str,
    tests: Sequence[str],
    shifts: Sequence[Shift],
    config: EvaluationConfig,
    share: Share,
    quarantine: Quarantine | None = None,
) -> ShiftResults:
    """Score a model on every test set as it is and under every shift, with evaluators, on whose number nothing depends.

    Raises `UserError`: as `evaluate_model`, or a set holds features.
    """
    folder, card = read_card(model_uri)
    shard_sets = open_sets(tests, card)
    check_pixels(shard_sets)
    quarantine = quarantine or Quarantine(None, 1.0, "")
    results: list[ShiftedTest] = []
    problems: dict[str, None] = {}
    with start_evaluators(folder, config, share) as evaluators:
        for shard_set, name in zip(shard_sets, distinct_names(shard_sets), strict=True):
            plain = embed_set(evaluators, shard_set, name, quarantine)
            if isinstance(plain, str):
                problems[plain] = None
            else:
                results.append(_test(evaluators, shard_set, name, card, plain, shifts, quarantine))
    if problems:
        raise UserError("; ".join(problems))
    found = [find_incomplete("test", one, quarantine.of("test", one)) for one in shard_sets]
    incomplete = [entry for entry in found if entry]
    missing = f"; incomplete: {describe_incomplete(incomplete)}" if incomplete else ""
    return ShiftResults(
        **dict(describe_run(card, _verdict(card, results) + missing)),
        resamples=RESAMPLES,
        kinds={kind: KINDS[kind].what for kind in dict.fromkeys(shift.kind for shift in shifts)},
        tests=results,
        incomplete=incomplete,
    )


def _test(
    evaluators: Evaluators,
    shard_set: ShardSet,
    name: str,
    card: ModelCard,
    plain: Embeddings,
    shifts: Sequence[Shift],
    quarantine: Quarantine,
) -> ShiftedTest:
    """Score one set, whose unchanged frames and texts are embedded."""
    scored: dict[Shift | None, ScoringResult] = {None: _score(evaluators, plain, name)}
    for shift in shifts:
        named = f"{name}, {shift.label}"
        embeddings = embed_set(evaluators, shard_set, named, quarantine, shift, plain)
        if isinstance(embeddings, str):  # it was usable a moment ago
            raise UserError(embeddings)
        scored[shift] = _score(evaluators, embeddings, named)
    passes = list(describe_passes(scored, plain.caches.text_to_video.tolist()))
    manifest = shard_set.manifest
    return ShiftedTest(
        name=name,
        domain=manifest.domain,
        split=manifest.split,
        relation="in-domain" if manifest.domain in card.train_domains else "cross-domain",
        shards=shard_set.uri,
        fingerprint=manifest.fingerprint(),
        videos=len(plain.video_ids),
        texts=len(plain.captions),
        quarantine=plain.quarantined,
        rejected=len(manifest.rejected),
        plain=passes[0],
        shifted=passes[1:],
    )


def _score(evaluators: Evaluators, embeddings: Embeddings, name: str) -> ScoringResult:
    with Progress(f"scoring {name}", len(embeddings.captions) * len(embeddings.video_ids), "pairs") as progress:
        return evaluators.score(embeddings.caches, progress=progress)


def describe_passes(
    scored: dict[Shift | None, ScoringResult], owners: Sequence[int], resamples: int = RESAMPLES
) -> list[Strength]:
    """Figures with intervals of every pass; None is the frames as they are. ``owners`` (A,) are the texts' videos.

    Queries are resampled as in a study, the captions of a video together, the same ones in every pass.
    """
    bootstraps: dict[Direction, QueryBootstrap] = {}
    systems: dict[Direction, dict[Shift | None, System]] = {}
    for number, direction in enumerate(DIRECTIONS):
        ranks = {shift: getattr(result, direction) for shift, result in scored.items()}
        groups = list(owners) if direction == "text_to_video" else len(ranks[None])
        bootstraps[direction] = QueryBootstrap(groups, resamples, number)
        values = {shift: (per_query(own)[MAIN_METRIC], True) for shift, own in ranks.items()}
        systems[direction] = bootstraps[direction].systems(values)
    bounds = METRICS[MAIN_METRIC].bounds
    return [
        Strength(
            shift=shift.kind if shift else "",
            strength=shift.strength if shift else 0,
            value=shift.value if shift else None,
            recall={d: as_estimate(bootstraps[d].mean(systems[d][shift], bounds)) for d in DIRECTIONS},
            change={d: as_estimate(bootstraps[d].difference(systems[d][shift], systems[d][None])) for d in DIRECTIONS},
            metrics=measure(result),
            hubness_skewness=result.hubness_skewness(),
        )
        for shift, result in scored.items()
    ]


def _verdict(card: ModelCard, tests: Sequence[ShiftedTest]) -> str:
    """One line: per test set R@1, and the least that a shift leaves of it."""

    def recall(one: Strength) -> float:
        return one.recall["text_to_video"].estimate

    scores = []
    for test in tests:
        worst = min(test.shifted, key=recall)
        left = f"{recall(worst):.1f} ({worst.shift} {worst.strength})"
        scores.append(f"{test.name} ({test.relation}) {MAIN_METRIC}={recall(test.plain):.1f}, at worst {left}")
    return f"run={card.run} step={card.step} " + "; ".join(scores)
