"""What can be searched, and what is refused before any trial."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from glscl.errors import UserError
from glscl.options.packaged import yaml_names
from glscl.training.config import RunConfig, validate
from tune.space import SPACES, Draw, check_space, nest, ready_made


def test_every_ready_made_space_can_be_searched_with_its_head() -> None:
    assert "glscl" in yaml_names(SPACES)
    for name in yaml_names(SPACES):
        head, space = ready_made(name)
        check_space(space, validate({"model": {"head": head}}, name))


def test_glscls_space_holds_its_weights_margins_scale_and_rates() -> None:
    _, space = ready_made("glscl")
    assert {key.rpartition(".")[2] for key in space} == {
        "tau",
        "local_weight",
        "weight",
        "margin_weight",
        "target",
        "margin",
        "logit_scale",
        "lr_towers",
        "lr_head",
    }


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        ({"uniform": (2.0, 1.0)}, "not below"),
        ({"uniform": (1.0, 1.0)}, "not below"),
        ({"loguniform": (0.0, 1.0)}, "above 0"),
        ({"lograndint": (0, 3)}, "above 0"),
        ({"uniform": (0.0, 1.0), "choice": (1,)}, "exactly one"),
        ({}, "exactly one"),
        ({"choice": ()}, "at least 1"),
        ({"choice": (1, 1)}, "twice"),
        ({"choice": ([1],)}, "choice"),
        ({"uniform": ("a", "b")}, "number"),
        ({"normal": (0, 1)}, "normal"),
    ],
)
def test_a_draw_that_is_none_is_refused(draw: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Draw.model_validate(draw)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "nothing to search"),
        ({"model.heads.glscl.taus": Draw(uniform=(1, 2))}, "did you mean 'model.heads.glscl.tau'"),
        ({"data.sample_fps": Draw(uniform=(1, 2))}, "learn from the same data"),
        ({"training.num_workers": Draw(randint=(1, 2))}, "the machines are the same"),
        ({"training.epochs": Draw(randint=(1, 2))}, "same budget"),
        ({"seed": Draw(randint=(1, 2))}, "differ in nothing"),
        ({"model.heads.wti.nothing": Draw(uniform=(1, 2))}, "unknown key"),
        ({"model.heads.xpool.dropout": Draw(uniform=(0, 0.5))}, "does nothing, the head is glscl"),
        ({"model.heads.glscl.tau": Draw(uniform=(-1, 2))}, "model.heads.glscl.tau"),
        ({"model.heads.glscl.queries": Draw(uniform=(2, 8))}, "model.heads.glscl.queries"),
        ({"model.head": Draw(choice=("glscl", "glsl"))}, "did you mean 'glscl'"),
        ({"training.precision": Draw(choice=("fp32", "fp8"))}, "training.precision"),
        ({"loss.inter_consistency.form": Draw(choice=("corrected", 1))}, "loss.inter_consistency.form"),
        ({"model.heads.glscl.use_local": Draw(choice=(0, 1))}, "not of the key's type"),
    ],
)
def test_a_space_that_makes_no_trials_is_refused(space: dict[str, Draw], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_space(space, RunConfig())


def test_another_heads_keys_are_searched_where_the_head_is() -> None:
    check_space(
        {"model.head": Draw(choice=("glscl", "xpool")), "model.heads.xpool.dropout": Draw(uniform=(0, 0.5))},
        RunConfig(),
    )


def test_what_is_trained_of_the_towers_is_searched_like_any_key() -> None:
    check_space(
        {
            "model.adapters.lora_rank": Draw(choice=(None, 2, 16)),
            "model.adapters.lora_targets": Draw(choice=("query,value", "query,key,value,output,mlp")),
            "model.adapters.bottleneck": Draw(choice=(None, 64)),
            "model.unfreeze_blocks": Draw(randint=(1, 4)),
            "model.freeze": Draw(choice=("towers", "image", "text")),
            "training.head_first": Draw(uniform=(0.1, 0.5)),
        },
        validate({"model": {"freeze": "towers"}}, "base"),
    )


def test_both_searchers_draw_from_the_same_values() -> None:
    whole = Draw(randint=(2, 4))
    assert {whole.domain().sample() for _ in range(100)} == {2, 3, 4}
    assert (whole.distribution().low, whole.distribution().high) == (2, 4)
    log = Draw(loguniform=(0.1, 10.0))
    assert log.distribution().log
    assert sum(log.domain().sample() < 1.0 for _ in range(400)) > 140


def test_dotted_keys_become_a_tree() -> None:
    assert nest({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_a_logit_scale_is_where_training_starts() -> None:
    from glscl.models.retriever import Retriever

    config = validate({"model": {"clip": "glscl-tiny", "logit_scale": 20.0}}, "test").model
    assert Retriever(config).scale().item() == pytest.approx(20.0)
