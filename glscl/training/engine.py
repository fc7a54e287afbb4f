"""The DeepSpeed engine: precision, sharding of state, reduction and clipping of gradients, on CPU and GPU alike."""

from __future__ import annotations

import ctypes
import math
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from glscl.models.retriever import Retriever
from glscl.training.global_batch import backward_calls
from glscl.training.options import TrainingConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

REDUCED_AT_ONCE = 50_000_000
"""Gradients that are reduced over the ranks at a time, while the backward pass goes on. DeepSpeed's default, ten times
this, is more than CLIP has parameters: nothing would overlap, and its two buffers would take 4 GB."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_* of malloc.h


def build_engine(
    model: Retriever,
    config: TrainingConfig,
    device: torch.device,
    world_size: int,
    *,
    overlap: bool = True,
) -> DeepSpeedEngine:
    """Wrap a model in a DeepSpeed engine with AdamW over the towers' and the head's parameter groups.

    The process group must exist already (Ray Train makes it). ``config.accumulate`` has to be that of this number of
    ranks. ``overlap`` (reduce gradients while the backward pass goes on) does not change numbers. No setting depends on
    the device, so that tests without a GPU are tests of what runs on one.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        keep_freed_memory()
    import deepspeed
    import deepspeed.ops

    # Else DeepSpeed tries a compiler on all its operations, to compile a shared-memory collective (no gain measured).
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    groups: list[dict[str, Any]] = [
        group | {"peak": config.lr_towers if group["name"] == "towers" else config.lr_head}
        for group in model.parameter_groups(config.weight_decay)
    ]
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    # torch's own AdamW: DeepSpeed's fused one would be compiled on the user's machine. Rates: `set_learning_rates`.
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
    backwards = backward_calls(config.accumulate)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        dist_init_required=False,
        config={
            # DeepSpeed counts backward calls, not pairs: its batch size only has to add up.
            "train_batch_size": backwards * world_size,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": backwards,
            "gradient_clipping": config.clip_grad,
            "zero_optimization": {
                "stage": config.zero_stage,
                "overlap_comm": overlap,
                "reduce_bucket_size": min(REDUCED_AT_ONCE, trained),
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            # A look for infinities is a dozen kernels per parameter and a wait for the device; `NonFiniteSteps` looks.
            "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": False},
            "steps_per_print": 2**31 - 1,
            "timers": {"throughput": {"enabled": False}},  # it waits for the device in every forward call
        },
    )
    if config.zero_stage in (1, 2):
        spare_launches(engine.optimizer)
    return engine


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the system, as a GPU's allocator does.

    DeepSpeed makes its buffers anew in each step, and every page that the system has to give costs a fault: of a small
    model, a sixth of the step. Nothing happens where the C library is not glibc.
    """
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        library.mallopt(_TRIM_THRESHOLD, 1 << 30)


def compile_parts(model: Retriever, backend: str = "inductor") -> None:
    """Let the towers, the frame context and the head compile in their first calls; names of parameters stay."""
    for part in (model.towers.visual, model.towers.text, model.frame_context, model.head):
        if part is not None:
            part.compile(backend=backend, dynamic=False)


def spare_launches(optimizer: Any) -> None:
    """Let DeepSpeed's optimiser of ZeRO 1 or 2 clip with a few kernels for all parameters and no wait for the device.

    Its own way is three kernels and an all-reduce per parameter or group, and a look at the norm on the host. The norm
    is the same number: of the same norms of parameters, in float64.
    """
    from deepspeed.runtime.zero import stage_1_and_2
    from deepspeed.runtime.zero.utils import get_norm_dtype

    def global_norm() -> Tensor:
        squares = torch.zeros(len(optimizer.bit16_groups), device=optimizer.device)
        for index in range(len(squares)):
            grads = [grad for grad in optimizer.averaged_gradients[index] if not getattr(grad, "_zero_padding", False)]
            if grads := grads[: len(optimizer.params_in_partition[index])]:
                norms = torch._foreach_norm(grads, 2, dtype=get_norm_dtype())
                squares[index] = torch.stack(norms).pow(2).sum()
        distributed.all_reduce(squares, group=optimizer.dp_process_group)
        norm: Tensor = torch.linalg.vector_norm(squares.sqrt())
        return norm

    def clip(grads: list[Tensor], norm: Tensor) -> None:
        if optimizer.clip_grad > 0:
            torch._foreach_mul_(grads, 1.0 / torch.clamp((norm + 1e-6) / optimizer.clip_grad, min=1.0))

    optimizer.scaled_global_norm = global_norm
    optimizer.unscale_and_clip_grads = clip
    stage_1_and_2.is_invalid_grad_norm = lambda norm: False  # `NonFiniteSteps` finds out, at the next row of the log


def set_learning_rates(engine: DeepSpeedEngine, config: TrainingConfig, step: int, total_steps: int) -> float:
    """Set each group's rate for a step (warm-up, cosine to zero; no state to save); returns the factor of the peak.

    In the first steps of ``training.head_first`` the model trains its head alone, and no other group has a rate. Adam's
    step numbers go on meanwhile, so the towers' first updates after that are without bias correction, as in BertAdam.
    """
    first = config.head_only_steps(total_steps)
    engine.module.head_only = head_only = step < first
    begun, steps = (0, first) if head_only else (first, total_steps - first)
    factor = schedule(step - begun, steps, config.warmup)
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0 if head_only and group["name"] != "head" else group["peak"] * factor
    return factor


def schedule(step: int, total_steps: int, warmup: float) -> float:
    """Factor of the peak learning rate at a step counted from 0."""
    rising = math.ceil(total_steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total_steps - rising)))


def backward(engine: DeepSpeedEngine, loss: Tensor, *, last: bool) -> None:
    """Accumulate a piece's gradients, unscaled; reduce them over the ranks with the last piece."""
    if engine.zero_optimization_stage() == 3 and engine.optimizer.micro_step_id == 0:
        # The first piece replaces, in DeepSpeed's buffer, the gradients of what it touches, and the others are added:
        # what it does not touch, which is both towers, would keep its gradient of the step before.
        engine.optimizer.grad_partitions_flat_buffer.zero_()
    engine.set_gradient_accumulation_boundary(last)
    if last and engine.zero_optimization_stage() == 1 and engine.gradient_accumulation_steps() > 1:
        # Where communication overlaps, this stage reduces what gets a gradient from the last piece and leaves the rest,
        # which is every parameter that scoring alone uses, to each rank: the last piece takes in all of them, as zero.
        touched = [parameter.sum().float() for parameter in engine.module.parameters() if parameter.requires_grad]
        loss = loss + 0.0 * torch.stack(touched).sum()
    engine.backward(loss, scale_wrt_gas=False)


def evaluation_model(engine: DeepSpeedEngine) -> Retriever:
    """The model with whole parameters, in evaluation mode.

    Under ZeRO-3 that is a copy gathered from all ranks (collective): ranks score unequal numbers of blocks, which a
    partitioned model cannot follow.
    """
    model: Retriever = engine.module
    if engine.zero_optimization_stage() < 3:
        return model.eval()
    import deepspeed

    with torch.random.fork_rng():  # a copy's random weights must not move the run's generators
        copy = Retriever(model.config, load_weights=False, towers=not model.towers.dropped)
    copy.to(engine.device, next(model.parameters()).dtype)
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        copy.load_state_dict(model.state_dict())
    return copy.eval()
