"""The contrastive loss in tiles gives the step of the whole matrix, at one rank and at two, whole and in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.losses import LossConfig
from glscl.models.scores import tiles
from glscl.training.global_batch import step_loss
from tests.training.ranks import CASES, TOLERANCE, Result, build_model, check, start, step, write_clip

NAMES = (
    *("mean_pool", "glscl-official", "wti", "xclip-double", "xpool", "dicosa", "plug-in", "tmass", "tcmgc-double"),
    "mean_pool-sigmoid",
)
OFF = {name: {"weight": 0.0} for name in ("support_text", "similarity_decorrelation")}  # they read what is whole


def _tiled(name: str) -> dict[str, Any]:
    case, tiled = CASES[name], {"tiled_above": 0}
    terms = {term: case["loss"].get(term, {}) | tiled for term in ("contrastive", "sigmoid")}
    return case | {"loss": case["loss"] | terms | OFF}


def _whole(name: str) -> dict[str, Any]:
    return CASES[name] | {"loss": CASES[name]["loss"] | OFF}


def _worker(rank: int, clip: str) -> dict[tuple[str, int], Result]:
    tiles.CPU_TILE = 9  # three pairs by three
    return {(name, chunks): step(_tiled(name), clip, rank, chunks) for name in NAMES for chunks in (1, 2)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_two_ranks_and_chunks(clip: str, tmp_path: Path) -> None:
    whole = {name: step(_whole(name), clip, 0, 1) for name in NAMES}
    for (name, _), result in start(_worker, 2, tmp_path, clip)[0].items():
        check(result, whole[name], CASES[name].get("tolerance", TOLERANCE))


@pytest.mark.parametrize("name", NAMES)
def test_one_process(name: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step(_whole(name), clip, 0, 1)
    monkeypatch.setattr(tiles, "CPU_TILE", 9)
    check(step(_tiled(name), clip, 0, 2), whole, CASES[name].get("tolerance", TOLERANCE))


@pytest.mark.parametrize(("above", "calls"), [(8, {"score"}), (7, {"scored"})])
def test_only_batches_above_the_option_are_tiled(above: int, calls: set[str], clip: str) -> None:
    model = build_model(CASES["mean_pool"], clip)
    called = set()

    def call(mode: str, *arguments: Any) -> Any:
        called.add(mode)
        return model(mode, *arguments)

    config = LossConfig.model_validate(
        {"contrastive": {"tiled_above": above}, "contrastive_score_consistency": {"weight": 0}}
    )
    unit = torch.eye(8, 16)
    step_loss(call, config, {"sentence": unit}, {"pooled": unit}, torch.arange(8))
    assert called == {"match", "provides", "scale"} | calls
