"""Agreement with the authors' own code, through the script that anyone can run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file

_FILES = (
    "glscl_small.safetensors",
    "glscl_paper_shape.safetensors",
    "glscl_masked.safetensors",
    "heads/mean_pool.safetensors",
    "heads/seq_transformer.safetensors",
    "heads/tight_transformer.safetensors",
    "heads/xpool.safetensors",
    "heads/wti.safetensors",
    "heads/xclip.safetensors",
    "heads/dicosa.safetensors",
    "heads/glccl.safetensors",
    "heads/gare.safetensors",
    "heads/gare_rectangular.safetensors",
    "heads/tmass_training.safetensors",
    "heads/tmass_inference.safetensors",
    "heads/tmass_inference_rectangular.safetensors",
    "heads/uatvr.safetensors",
    "heads/agc.safetensors",
    "heads/agc_select_only.safetensors",
    "heads/tcmgc.safetensors",
)


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", Path(__file__).parents[1] / "parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", _FILES)
def test_agrees_with_recorded_outputs(parity: ModuleType, shared: Path, name: str) -> None:
    differences = parity.compare(shared / "parity" / name)
    assert differences
    assert [difference for difference in differences if not difference.ok] == []


def test_tmass_scores_no_video_for_its_own_caption(
    parity: ModuleType, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The leaking score of the authors' evaluation is the head's for matching pairs alone, and is told as left out."""
    path = shared / "parity" / "heads" / "tmass_inference.safetensors"
    case = parity.load(path)
    difference = (parity.compute(case)["similarity"] - case.expected["evaluation_similarity"]).abs()
    assert difference.diagonal().max() < 1e-5
    assert difference.fill_diagonal_(0).max() > 0.1
    assert parity.main([str(path)]) == 0
    assert "left out: evaluation_similarity" in capsys.readouterr().out


def test_says_which_tensor_differs(
    parity: ModuleType, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared / "parity" / "glscl_small.safetensors"
    tensors = load_file(source)
    tensors["expected.grad.frames"] *= 1.001
    tensors["expected.unheard_of"] = tensors["expected.similarity"].clone()
    save_file(tensors, tmp_path / "case.safetensors", parity.load(source).metadata)
    assert parity.main([str(tmp_path / "case.safetensors")]) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert len(failures) == 2
    assert "grad.frames" in failures[0]
    assert "unheard_of" in failures[1]
    assert "not compared" in failures[1]


def test_refuses_a_head_the_project_does_not_have(
    parity: ModuleType, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared / "parity" / "heads" / "mean_pool.safetensors"
    save_file(load_file(source), tmp_path / "case.safetensors", parity.load(source).metadata | {"head": "meanpool"})
    assert parity.main([str(tmp_path / "case.safetensors")]) == 1
    assert "unknown head 'meanpool', did you mean 'mean_pool'?" in capsys.readouterr().out
