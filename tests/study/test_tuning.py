"""Tuned variants: a sweep's winner in place of the plan's settings, with equal budgets, counted apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from glscl.errors import UserError
from glscl.study.comparisons import write_claims
from glscl.study.options import StudyConfig
from glscl.study.preregistration import check_registration, register
from glscl.study.results import Comparison
from glscl.study.tuning import describe_tunings, read_tunings, with_tuned_settings
from tests.study.fake import study

HEADS = {"glscl": "consistency", "xpool": "attention"}


def sweep(folder: Path, head: str, lr: float, **changes: Any) -> None:
    """What `glscl sweep` leaves, as far as a study reads it."""
    trials = [
        {"name": "a", "values": {"training.lr_head": 9.0, f"model.heads.{head}.tau": 1.0}},
        {"name": "b", "values": {"training.lr_head": lr, "training.lr_towers": 0.125}},
    ]
    results = {"planned": 2, "steps": 50, "metric": "text_to_video_R@1", "objective": "mean", "domains": ["one", "two"]}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(
        json.dumps(results | {"best": "b", "trials": trials, "budget": {"ended": 2, "failed": 0}} | changes)
    )
    (folder / "best.yaml").write_text(f"# Winner\n{yaml.safe_dump({'name': 'best', 'model': {'head': head}})}")


def tuned_study(tmp_path: Path, **changes: Any) -> StudyConfig:
    variants = {}
    for head, group in HEADS.items():
        run = {"model": {"head": head}, "training": {"lr_head": 1.0, "weight_decay": 0.5}}
        variants[head] = {"group": group, "what": head, "run": run}
        variants[f"{head}_tuned"] = variants[head] | {"tuned": f"sweep-{head}"}
    return study(storage=str(tmp_path), variants=variants, **{"comparisons": []} | changes)


def test_the_winners_settings_replace_those_of_the_variant_and_nothing_else(tmp_path: Path) -> None:
    sweep(tmp_path / "sweep-glscl", "glscl", 0.5)
    sweep(tmp_path / "sweep-xpool", "xpool", 0.25)
    config = with_tuned_settings(tuned_study(tmp_path))
    run = config.variants["xpool_tuned"].run
    assert run["training"] == {"lr_head": 0.25, "weight_decay": 0.5, "lr_towers": 0.125}
    assert run["model"] == {"head": "xpool"}
    assert config.variants["xpool"].run["training"] == {"lr_head": 1.0, "weight_decay": 0.5}
    said = describe_tunings(read_tunings(config))["Tuning"]
    assert said.startswith(
        "2 trials of 50 steps for mean of text_to_video_R@1 held out of one, two, the same for every"
    )
    assert "glscl_tuned: training.lr_head 0.5, training.lr_towers 0.125; xpool_tuned: training.lr_head 0.25" in said
    assert describe_tunings(read_tunings(study())) == {}


def test_tuned_heads_are_compared_with_tuned_ones(tmp_path: Path) -> None:
    assert tuned_study(tmp_path).pairs == (("glscl", "xpool"), ("glscl_tuned", "xpool_tuned"))
    assert tuned_study(tmp_path, comparisons=[["xpool_tuned", "xpool"]]).pairs == (("xpool_tuned", "xpool"),)
    with pytest.raises(ValueError, match="comparisons: glscl_tuned is tuned and xpool is not: compare tuned heads"):
        tuned_study(tmp_path, comparisons=[["xpool", "glscl_tuned"]])


def test_claims_count_tuned_heads_apart(tmp_path: Path) -> None:
    config = tuned_study(tmp_path)
    figures = {"estimate": 1.0, "low": 0.5, "high": 1.5, "p_value": 0.001, "adjusted_p": 0.001}
    rows = [
        Comparison(
            condition=next(iter(config.conditions)), first=first, second=second, scope="cross-domain mean",
            relation="cross-domain", direction="text_to_video", metric="R@1", shown=first == "glscl_tuned",
            sentence="", **figures,
        )
        for first, second in config.pairs
    ]  # fmt: skip
    plain, tuned, *_ = write_claims(config, rows)
    assert plain.startswith("Across domains, global-local consistency against attention: no difference shown in 1 comp")
    assert tuned.startswith("Across domains, every head tuned with the same budget, global-local consistency against")
    assert "1 shown better" in tuned


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"planned": 3, "budget": {"ended": 3}},
            r"equal budgets.*glscl_tuned: 2 trials of 50 .*xpool_tuned: 3 trials of",
        ),
        ({"objective": "worst"}, r"equal budgets.*xpool_tuned: 2 trials of 50 steps for worst of"),
        ({"budget": {"ended": 1}}, r"variants\.xpool_tuned\.tuned: .*sweep-xpool: 1 of 2 trials have ended"),
        ({"trials": 3}, r"variants\.xpool_tuned\.tuned: .*results\.json: not the results of a sweep"),
        ({"head": "wti"}, r"variants\.xpool_tuned\.tuned: .* has tuned the head wti, and this variant has xpool"),
        (None, r"variants\.xpool_tuned\.tuned: .*results\.json: no such file; finish the sweep first"),
    ],
)
def test_what_is_not_an_equal_finished_sweep_is_refused(
    tmp_path: Path, changes: dict[str, Any] | None, reason: str
) -> None:
    sweep(tmp_path / "sweep-glscl", "glscl", 0.5)
    if changes is not None:
        changes = dict(changes)
        sweep(tmp_path / "sweep-xpool", changes.pop("head", "xpool"), 0.25, **changes)
    with pytest.raises(UserError, match=reason):
        with_tuned_settings(tuned_study(tmp_path))


def test_a_winner_that_changed_after_the_start_is_no_longer_what_was_registered(tmp_path: Path) -> None:
    for head in HEADS:
        sweep(tmp_path / f"sweep-{head}", head, 0.5)
    config = tuned_study(tmp_path)
    assert register(with_tuned_settings(config), []) is not None
    registered = check_registration(with_tuned_settings(config))
    assert registered is not None
    assert registered.differences == []
    results = tmp_path / "sweep-xpool" / "results.json"
    results.write_text(results.read_text().replace('"best": "b"', '"best": "a"'))
    registered = check_registration(with_tuned_settings(config))
    assert registered is not None
    assert any(line.startswith("plan.variants.xpool_tuned.run.") for line in registered.differences)
