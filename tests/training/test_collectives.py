"""Collectives in real processes: values, gradients, types."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glscl.training import collectives
from glscl.training.collectives import gather, gather_features, mean_gradient, mean_over_ranks, world_size

WORLD = 3


def _worker(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    try:
        assert (collectives.rank(), world_size()) == (rank, WORLD)
        for dtype in (torch.float32, torch.bfloat16):
            own = torch.arange(4, dtype=dtype).view(2, 2).add(10 * rank).requires_grad_()
            whole = gather(own)
            assert whole[:, 0].tolist() == [0, 2, 10, 12, 20, 22]
            weights = torch.arange(12, dtype=dtype).view(6, 2) * (rank + 1)  # every rank has a gradient of its own
            (whole * weights).sum().backward()
            expected = torch.arange(12, dtype=dtype).view(6, 2)[2 * rank : 2 * rank + 2] * 6  # 1 + 2 + 3
            assert torch.equal(own.grad, expected), (rank, own.grad, expected)

        features = gather_features({"ids": torch.tensor([rank]), "mask": torch.tensor([[rank == 1]])})
        assert features["ids"].tolist() == [0, 1, 2]
        assert features["mask"].tolist() == [[False], [True], [False]]
        assert features["mask"].dtype == torch.bool
        every_other = torch.arange(8.0).view(4, 2).T  # not contiguous
        assert torch.equal(gather(every_other)[2 * rank : 2 * rank + 2], every_other)

        pair = torch.tensor([1.0, 4.0]).mul(rank).requires_grad_()
        mean = mean_over_ranks(pair)
        assert mean.tolist() == [1.0, 4.0]  # of 0, 1, 2 times that
        (mean * torch.tensor([3.0, 6.0]) * (rank + 1)).sum().backward()
        assert pair.grad.tolist() == [6.0, 12.0]  # a third of what all ranks ask for

        asked = []
        reduce_scatter, get_backend = dist.reduce_scatter_tensor, dist.get_backend

        def scatter(part: torch.Tensor, whole: torch.Tensor) -> None:  # as NCCL does it
            asked.append(whole.shape)
            copy = whole.clone()
            dist.all_reduce(copy)
            part.copy_(copy[len(part) * rank : len(part) * (rank + 1)])

        dist.reduce_scatter_tensor, dist.get_backend = scatter, lambda: "nccl"
        own = torch.ones(2, 3, requires_grad=True)
        (gather(own) * torch.arange(18.0).view(6, 3) * (rank + 1)).sum().backward()
        assert asked == [(6, 3)]
        assert torch.equal(own.grad, torch.arange(18.0).view(6, 3)[2 * rank : 2 * rank + 2] * 6)
        dist.reduce_scatter_tensor, dist.get_backend = reduce_scatter, get_backend

        scale = torch.ones(1, requires_grad=True)
        (mean_gradient(scale) * rank).sum().backward()
        assert scale.grad.item() == 1.0  # the mean of 0, 1, 2
    finally:
        dist.destroy_process_group()


def test_three_processes(tmp_path: Path) -> None:
    mp.start_processes(_worker, args=(str(tmp_path / "store"),), nprocs=WORLD, start_method="forkserver")


def test_identity_without_a_process_group() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert (collectives.rank(), world_size()) == (0, 1)
    assert gather(tensor) is tensor
    assert mean_gradient(tensor) is tensor
    assert gather_features({"a": tensor})["a"] is tensor
    assert torch.equal(mean_over_ranks(tensor), tensor)
