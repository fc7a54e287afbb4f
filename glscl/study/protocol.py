"""The protocol of a study: what was held equal, the variants and the test sets, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glscl.data.shards import open_shard_set
from glscl.evaluation.metrics import MAIN_METRIC
from glscl.evaluation.results import Test
from glscl.runs.cell import Cell
from glscl.runs.options import ZERO_SHOT
from glscl.study.options import StudyConfig
from glscl.study.results import TestSet, Variant
from glscl.training.config import RunConfig


def describe_protocol(study: StudyConfig, cells: Sequence[Cell]) -> dict[str, str]:
    """Describe what was held equal."""
    config = cells[-1].config
    training = config.training
    trained = [cell.config for cell in cells if cell.domains]
    towers = f"pretrained here on {study.pretraining.domain}" if study.pretraining else str(config.model.pretrained)
    rule = f"best held-out {MAIN_METRIC} of the training domain" if trained[0].data.validation else "last step"
    return {
        "Towers": f"{config.model.clip}, {towers}; the same for all",
        "Frame context": _describe_frame_context(config, trained),
        "Lengths": _describe_lengths(cells),
        "Training": f"{_describe_run_length(config, trained)}, global batch {training.global_batch}, "
        f"{training.precision}, {len(study.seeds)} seeds per cell",
        "Videos trained on": _count_training_videos(study, cells),
        "Checkpoint": f"{rule}; never chosen on a test set or on another domain",
        "Ranks": "every caption is a query; ties count by expectation; a video's best caption counts, video to text",
        "Intervals": f"95 %: paired bootstrap over queries ({study.resamples:,} resamples, captions of a video "
        "together), seeds as a random effect, Student's t; Holm's correction within means and within single cells",
        "Retention": "R@1 on a domain after training on another, over R@1 there after training there",
        "Lift": "R@1 minus that of the towers before any training",
    }


def _describe_frame_context(config: RunConfig, trained: Sequence[RunConfig]) -> str:
    if len({run.model.frame_context for run in trained}) == 1:
        return f"{config.model.frame_context}, the same for all heads"
    return "as each variant's settings say"


def _describe_lengths(cells: Sequence[Cell]) -> str:
    """Describe the lengths of text and video, by condition."""
    by_condition = {cell.condition: cell.config.model for cell in cells}
    return "; ".join(
        f"{name}: {model.max_words} words, {model.max_frames} frames, in training and in testing"
        for name, model in by_condition.items()
    )


def _describe_run_length(config: RunConfig, trained: Sequence[RunConfig]) -> str:
    if len({(run.training.max_steps, run.training.epochs) for run in trained}) > 1:
        return "steps as each domain's settings say"
    training = config.training
    return f"{training.max_steps} steps" if training.max_steps else f"{training.epochs} epochs"


def _count_training_videos(study: StudyConfig, cells: Sequence[Cell]) -> str:
    """Count the videos of every domain's training sets."""
    sets = {cell.training: cell.config.data.train for cell in cells if cell.training in study.domains}
    videos = {name: sum(open_shard_set(uri).manifest.videos for uri in uris) for name, uris in sets.items()}
    return ", ".join(f"{name} {count:,}" for name, count in videos.items())


def list_variants(study: StudyConfig) -> list[Variant]:
    """List the variants, the zero-shot towers first."""
    variants = [
        Variant(name=name, head=v.run.get("model", {}).get("head", "glscl"), group=v.group, what=v.what)
        for name, v in study.variants.items()
    ]
    if study.zero_shot:
        what = "the towers before any training, mean of the frames"
        variants.insert(0, Variant(name=ZERO_SHOT, head="mean_pool", group="pooling", what=what))
    return variants


def describe_test_set(name: str, by_condition: Mapping[str, Test]) -> TestSet:
    """Describe a test set from one result per condition."""
    test = next(iter(by_condition.values()))
    return TestSet(
        name=name,
        split=test.split,
        videos=test.videos,
        texts=test.texts,
        chance=100.0 / test.videos,
        truncated={condition: one.truncated_texts for condition, one in by_condition.items()},
        quarantined=test.quarantined,
        rejected=test.rejected,
    )
