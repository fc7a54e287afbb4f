"""Compute the typed results of a study from its cells' ranks: figures, comparisons, claims, and what was held equal."""

from collections.abc import Mapping, Sequence

from glscl.data.quarantine import merge_incomplete
from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.evaluation.metrics import MAIN_METRIC
from glscl.evaluation.results import Test
from glscl.runs.cell import Cell
from glscl.runs.options import UNION, ZERO_SHOT
from glscl.runs.summary import summarise
from glscl.study.comparisons import compare_relevant, compare_variants, write_claims
from glscl.study.galleries import gallery_size, join_galleries, measure_galleries
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, build_panels, build_result, select_comparable
from glscl.study.results import Comparison, EqualGalleries, Result, StudyResults, TestSet, Training, Variant
from glscl.study.tuning import describe_tunings, read_tunings


def analyse(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> StudyResults:
    """Compute everything of `StudyResults` that follows from the cells' results; costs and examples are not in it.

    While the study is unfinished, the seeds that are: see `select_comparable`. Raises `UserError`: nothing is finished,
    or cells were tested on different queries.
    """
    comparable = select_comparable(cells, finished)
    if not comparable:
        raise UserError(f"{study.directory}: no cell is finished; there is nothing to report")
    domains = {cell.training: list(cell.domains) for cell in cells}
    results: list[Result] = []
    comparisons: list[Comparison] = []
    relevant_comparisons: list[Comparison] = []
    tested: dict[str, dict[str, Test]] = {}
    size = gallery_size(study, comparable)
    galleries: list[EqualGalleries | None] = []
    for condition in study.conditions:  # one after the other: the resamples of a large study fill memory
        panels = build_panels(study, [(cell, result) for cell, result in comparable if cell.condition == condition])
        results += [
            build_result(condition, panel, variant, training, domains)
            for panel in panels.values()
            for variant, training in panel.seeds
        ]
        comparisons += compare_variants(study, condition, panels, domains)
        relevant_comparisons += compare_relevant(study, condition, panels, domains)
        galleries.append(measure_galleries(condition, panels, domains, size))
        for name, panel in panels.items():
            tested.setdefault(name, {})[condition] = panel.first
    summary = summarise(
        study,
        f"cells={len(finished)}/{len(cells)}",
        write_claims(study, comparisons),
        merge_incomplete(result.incomplete for _, result in comparable),
        use_gpu=comparable[0][0].config.training.use_gpu is not False,
    )
    # The trainings: zero-shot first and the union last.
    trainings = sorted(domains.items(), key=lambda item: (item[0] != ZERO_SHOT, item[0] == UNION))
    return StudyResults(
        **dict(summary),
        finished_cells=len(finished),
        cells=len(cells),
        seeds=list(study.seeds),
        conditions=list(study.conditions),
        protocol=describe_protocol(study, cells) | describe_tunings(read_tunings(study)),
        variants=_list_variants(study),
        trainings=[Training(name=name, domains=of_training) for name, of_training in trainings],
        tests=[_describe_test_set(name, tested[name]) for name in study.domains if name in tested],
        results=results,
        comparisons=comparisons,
        relevant_comparisons=relevant_comparisons,
        galleries=join_galleries(galleries),
        equivalence_margin=study.equivalence_margin,
    )


def describe_protocol(study: StudyConfig, cells: Sequence[Cell]) -> dict[str, str]:
    """Describe what was held equal."""
    config = cells[-1].config
    training = config.training
    trained = [cell.config for cell in cells if cell.domains]
    rule = f"best held-out {MAIN_METRIC} of the training domain" if trained[0].data.validation else "last step"
    by_condition = {cell.condition: cell.config.model for cell in cells}
    context = f"{config.model.frame_context}, the same for all heads"
    if len({run.model.frame_context for run in trained}) > 1:
        context = "as each variant's settings say"
    run_length = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs} epochs"
    if len({(run.training.max_steps, run.training.epochs) for run in trained}) > 1:
        run_length = "steps as each domain's settings say"
    lengths = {name: f"{model.max_words} words, {model.max_frames} frames" for name, model in by_condition.items()}
    return {
        "Towers": _describe_towers(study, cells),
        "Frame context": context,
        "Lengths": "; ".join(f"{name}: {text}, in training and in testing" for name, text in lengths.items()),
        "Training": f"{run_length}, global batch {training.global_batch}, "
        f"{training.precision}, {len(study.seeds)} seeds per cell",
        "Videos trained on": _count_training_videos(study, cells),
        "Checkpoint": f"{rule}; never chosen on a test set or on another domain",
        "Ranks": "every caption is a query; ties count by expectation; a video's best caption counts, video to text",
        "Intervals": f"95 %: paired bootstrap over queries ({study.resamples:,} resamples, captions of a video "
        "together), seeds as a random effect, Student's t; Holm's correction within means and within single cells",
        "Retention": "R@1 on a domain after training on another, over R@1 there after training there",
        "Lift": "R@1 minus that of the towers before any training",
    }


def _describe_towers(study: StudyConfig, cells: Sequence[Cell]) -> str:
    by_condition = {cell.condition: cell.config.model for cell in cells}
    clips = {name: model.clip for name, model in by_condition.items()}
    clip = cells[-1].config.model.clip
    if len(set(clips.values())) > 1:
        clip = ", ".join(f"{name}: {of_condition}" for name, of_condition in clips.items())
    weights = dict.fromkeys(str(model.weights) for model in by_condition.values())
    towers = f"pretrained here on {study.pretraining.domain}" if study.pretraining else ", ".join(weights)
    return f"{clip}, {towers}; the same for all variants"


def _count_training_videos(study: StudyConfig, cells: Sequence[Cell]) -> str:
    sets = {cell.training: cell.config.data.train for cell in cells if cell.training in study.domains}
    videos = {name: sum(open_shard_set(uri).manifest.videos for uri in uris) for name, uris in sets.items()}
    return ", ".join(f"{name} {count:,}" for name, count in videos.items())


def _list_variants(study: StudyConfig) -> list[Variant]:
    variants = [
        Variant(
            name=name, head=v.run.get("model", {}).get("head", "glscl"), group=v.group, what=v.what, tuned=bool(v.tuned)
        )
        for name, v in study.variants.items()
    ]
    if study.zero_shot:
        what = "the towers before any training, mean of the frames"
        variants.insert(0, Variant(name=ZERO_SHOT, head="mean_pool", group="pooling", what=what))
    return variants


def _describe_test_set(name: str, by_condition: Mapping[str, Test]) -> TestSet:
    test = next(iter(by_condition.values()))
    truncated = {condition: one.truncated_texts for condition, one in by_condition.items()}
    own = {"name": name, "chance": 100.0 / test.videos, "truncated": truncated}
    return TestSet.model_validate(dict(test) | own)
