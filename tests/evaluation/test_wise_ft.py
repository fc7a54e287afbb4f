"""Weights between initial and trained ones: a straight line, towers and head told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.errors import UserError
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import initial_model, load_model
from glscl.evaluation.wise_ft import Interpolation, Mix, configured_mix, listed_mixes
from glscl.models import Retriever
from glscl.models.adapters import merge_lora
from glscl.system import storage
from tests.evaluation.test_saved import _save_trained, _trained
from tests.training.test_resharding import Evil

FROZEN: dict[str, Any] = {"freeze": "towers", "adapters": {"lora_rank": 2}}
PLAIN: dict[str, Any] = {"freeze": "none", "adapters": {}}


def _is_tower(name: str) -> bool:
    return name.startswith(("towers.", "logit_scale"))


@pytest.mark.parametrize("model", [PLAIN, FROZEN], ids=["all trained", "lora"])
def test_weights_are_on_the_line_between(tmp_path: Path, model: dict[str, Any]) -> None:
    _save_trained(tmp_path, _trained(tmp_path, **model))
    first, last = initial_model(str(tmp_path)), load_model(str(tmp_path))[0]
    for one in (first, last):
        merge_lora(one)
    start, end = first.state_dict(), last.state_dict()
    assert start.keys() == end.keys()
    assert sum(not torch.equal(start[name], end[name]) for name in end) > 5
    loaded, _ = load_model(str(tmp_path))
    interpolation = Interpolation(loaded, str(tmp_path))
    for mix in (Mix(0.25, 0.75), Mix(0.0, 1.0), Mix(1.0, 0.0), Mix(1.0, 1.0), Mix(0.5, 0.5)):
        interpolation.set(mix)
        for name, tensor in loaded.state_dict().items():
            alpha = mix.towers if _is_tower(name) else mix.head
            torch.testing.assert_close(tensor, (1 - alpha) * start[name] + alpha * end[name], rtol=1e-6, atol=1e-7)


def test_the_initial_model_is_the_one_that_training_begins_with(tmp_path: Path) -> None:
    trained = _trained(tmp_path, **FROZEN)
    _save_trained(tmp_path, trained)
    state = torch.get_rng_state()
    initial = initial_model(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    expected = Retriever(trained.config)
    assert all(torch.equal(a, b) for a, b in zip(initial.parameters(), expected.parameters(), strict=True))


def test_a_card_cannot_make_its_reader_trust_a_pickle(tmp_path: Path) -> None:
    model = _trained(tmp_path, **PLAIN)
    card = _save_trained(tmp_path, model)
    harm = tmp_path / "harm"
    torch.save({"a": Evil(harm)}, tmp_path / "evil.pt")
    evil = card.model.model_copy(update={"pretrained": str(tmp_path / "evil.pt"), "trust_pickle": True})
    values = card.model_copy(update={"model": evil}).model_dump(mode="json")
    storage.write_json(str(tmp_path / "model" / "model.json"), values)
    with pytest.raises(UserError, match="holds more than tensors, so loading it may run code"):
        initial_model(str(tmp_path))
    values["model"]["freeze"], values["frozen"] = "towers", "a"
    storage.write_json(str(tmp_path / "model" / "model.json"), values)
    with pytest.raises(UserError, match="must not have to trust a pickle"):
        load_model(str(tmp_path))
    assert not harm.exists()


def test_lists_of_numbers_are_every_combination() -> None:
    assert listed_mixes((), ()) == ()
    found = listed_mixes((0.0, 0.5), (1.0, 0.25))
    assert [(mix.towers, mix.head) for mix in found] == [(0.0, 1.0), (0.0, 0.25), (0.5, 1.0), (0.5, 0.25)]
    assert [mix.label for mix in found[2:]] == [", towers α=0.5", ", towers α=0.5, head α=0.25"]
    assert [mix.label for mix in listed_mixes((), (0.5,))] == [", towers α=1, head α=0.5"]


def test_a_run_names_one_mix() -> None:
    trained = configured_mix(EvaluationConfig())
    assert (trained.is_trained, trained.label, trained.alphas) == (True, "", {})
    mix = configured_mix(EvaluationConfig(towers_alpha=0.5))
    assert (mix.is_trained, mix.label, mix.alphas) == (False, "", {"towers_alpha": 0.5, "head_alpha": 1.0})
    assert configured_mix(EvaluationConfig(head_alpha=0.0)).alphas == {"towers_alpha": 1.0, "head_alpha": 0.0}
    assert not listed_mixes((1.0,), ())[0].is_trained, "one of several: the weights are set anew"


@pytest.mark.parametrize(
    ("alphas", "heads", "says"),
    [
        ((0.5, 1.5), (), r"--alphas = 1\.5: give numbers from 0 \(as training began\) to 1"),
        ((), (-0.1,), r"--head-alphas = -0\.1: give numbers from 0"),
        ((0.5, float("nan")), (), r"--alphas = nan"),
        ((0.5, 0.5), (), "--alphas: a number is given twice"),
    ],
)
def test_numbers_that_are_no_shares_are_refused(alphas: tuple[float, ...], heads: tuple[float, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        listed_mixes(alphas, heads)
