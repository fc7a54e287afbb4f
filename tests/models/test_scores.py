"""Pooled and maximum scores: plain torch, interpreted Triton kernels and compiled ones, and which of them is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.errors import UserError
from glscl.models.scores import kernels, maxima, pooling, tiles
from glscl.models.scores.kernels import describe_kernels, kernels_for
from tests.models import score_cases


@pytest.mark.parametrize("tile", [2**18, 500, 1])
@pytest.mark.parametrize("kind", score_cases.TYPES)
@pytest.mark.parametrize("seed", score_cases.SEEDS)
def test_plain_torch_computes_the_equations(
    seed: int, kind: torch.dtype, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    score_cases.check_pooled(pooling, seed, kind)
    score_cases.check_maximum(maxima, seed, kind)


def test_interpreted_triton_kernels_compute_the_equations(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, score_cases.__file__],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 2 * len(score_cases.TYPES) * len(score_cases.SEEDS)


def _signature(kernel: Any, constants: dict[str, Any], kind: torch.dtype) -> dict[str, str]:
    """Triton's names of the types of a kernel's arguments."""
    features = "*fp32" if kind == torch.float32 else "*bf16"
    typed = {"tau": "fp32", "least": "fp32", "hidden": "fp32"}
    typed |= dict.fromkeys(("texts", "videos", "length", "count"), "i32")
    typed |= dict.fromkeys(("word_mask", "frame_mask"), "*u8")
    typed |= dict.fromkeys(("queries", "words", "frames", "to_products"), features)
    return {name: "constexpr" if name in constants else typed.get(name, "*fp32") for name in kernel.arg_names}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "kind", "shared_memory"),
    [(80, torch.float32, 163 * 1024), (90, torch.bfloat16, 227 * 1024), (90, torch.float32, 227 * 1024)],
)
@pytest.mark.parametrize("name", ["pooling", "maxima"])
@pytest.mark.parametrize("kernel", ["scores_kernel", "gradients_kernel"])
def test_kernels_compile_for_gpus_that_are_not_here(
    name: str, kernel: str, capability: int, kind: torch.dtype, shared_memory: int, tmp_path: Path
) -> None:
    """To machine code of an A100 and an H100 or H200, within the shared memory that a block has there."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = pytest.importorskip(f"glscl.models.scores.triton_{name}")
    lengths = (12,) if name == "pooling" else (32, 12)
    constants = dict(module.kernel_sizes(*lengths, 512, kind))
    warps = constants.pop("num_warps")
    function = getattr(module, kernel)
    source = ASTSource(fn=function, signature=_signature(function, constants, kind), constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert len(compiled.asm["cubin"]) > 0
    assert "mma" in compiled.asm["ptx"], "tensor cores"
    assert compiled.metadata.shared <= shared_memory


def test_which_kernels_are_used_is_a_matter_of_the_device_and_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert kernels_for(cpu) == "torch"
    assert describe_kernels(cpu) == "scores: plain torch in tiles on cpu"
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    for capability, expected in (((7, 5), "torch"), ((8, 0), "triton"), ((9, 0), "triton")):
        kernels._runs_triton.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert kernels_for(gpu) == expected
    assert "Triton kernels" in describe_kernels(gpu)
    monkeypatch.setenv(kernels.VARIABLE, "torch")
    assert kernels_for(gpu) == "torch"
    monkeypatch.setenv(kernels.VARIABLE, "Triton")
    with pytest.raises(UserError, match="GLSCL_SCORES is 'Triton': set it to triton or torch"):
        kernels_for(gpu)
    kernels._runs_triton.cache_clear()
