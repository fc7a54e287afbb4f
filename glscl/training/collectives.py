"""Collectives of tensors, with gradients, and of Python objects. Without a process group each is the identity."""

from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors along dimension 0, in rank order, on every rank.

    The gradient of a rank's tensor is the sum over all ranks of their gradients with respect to it. Every rank must
    pass the same shape and type; integers and booleans pass without gradient.
    """
    if world_size() == 1:
        return tensor
    return cast(Tensor, _Gather.apply(tensor)) if tensor.is_floating_point() else _all_gather(tensor)


def gather_features(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """`gather` of every tensor."""
    return {name: gather(tensor) for name, tensor in features.items()}


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of the ranks' tensors, on every rank; the gradient is that of `gather`."""
    return gather(tensor.unsqueeze(0)).mean(0)


def mean_gradient(tensor: Tensor) -> Tensor:
    """The tensor itself; its gradient is the average of the ranks' gradients."""
    return tensor if world_size() == 1 else cast(Tensor, _MeanGradient.apply(tensor))


def _all_gather(tensor: Tensor) -> Tensor:
    sent = tensor.contiguous()
    if sent.dtype == torch.bool:  # not every backend sends booleans
        return _all_gather(sent.to(torch.uint8)).bool()
    received = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(received, sent)
    return torch.cat(received)


def gather_objects(value: T) -> list[T]:
    """Every rank's object, in rank order, on every rank."""
    gathered = [value] * world_size()
    if len(gathered) > 1:
        dist.all_gather_object(gathered, value)
    return gathered


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of the ranks' tensors of one shape and type, on every rank, without gradient; the tensor is overwritten."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def max_over_ranks(tensor: Tensor) -> Tensor:
    """The same with the greatest entries."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(tensor, operation)
    return tensor


def broadcast_object(value: T) -> T:
    """The object of rank 0, on every rank."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def print_once(line: str) -> None:
    """Print a line on rank 0; nothing on other ranks."""
    if rank() == 0:
        print(line, flush=True)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        rows = len(grad) // world_size()
        if dist.get_backend() == "nccl":
            scattered = grad.new_empty(rows, *grad.shape[1:])
            dist.reduce_scatter_tensor(scattered, grad)
            return scattered
        grad = grad.clone()  # autograd's buffer must not change
        dist.all_reduce(grad)
        return grad[dist.get_rank() * rows : (dist.get_rank() + 1) * rows]


class _MeanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad / world_size()
