"""Configuration of training, checkpoints and the worker group."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from glscl.options import Options


class TrainingConfig(Options):
    """Optimisation and the worker group."""

    global_batch: int = Field(default=128, ge=2)
    """Pairs contrasted at once, over all workers."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which a worker encodes its share of the global batch (two-pass gradient cache): less memory, the same
    gradient."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training pairs."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps; None trains all epochs. The learning-rate schedule ends there too."""
    lr_towers: float = Field(default=1e-7, ge=0)
    """Peak learning rate of the clip towers."""
    lr_head: float = Field(default=1e-4, ge=0)
    """Peak learning rate of the head and the frame context."""
    weight_decay: float = Field(default=0.2, ge=0)
    """Decoupled weight decay; biases and layer norms are left out."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the moments."""
    eps: float = Field(default=1e-6, gt=0)
    """AdamW's denominator offset."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps over which the learning rate rises linearly; a cosine to zero follows."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the towers and heads; losses and the optimiser state are fp32 either way."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 0 nothing sharded, 1 optimiser state, 2 and gradients, 3 and parameters."""
    num_workers: int = Field(default=1, ge=1)
    """Training workers of the Ray worker group (one GPU each when use_gpu)."""
    use_gpu: bool = False
    """One GPU and NCCL per worker; otherwise CPU and gloo."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves per worker; loader workers run inside this share."""
    wait_for_nodes_s: float = Field(default=0.0, ge=0)
    """Seconds that an autoscaling cluster is given to bring the nodes these workers need; 0 refuses at once."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two log lines."""
    max_failures: int = Field(default=3, ge=-1)
    """Times that the worker group is restarted from the last checkpoint; -1 has no limit."""
    hang_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds that a worker may spend in one step, or not be heard of, before the worker group is restarted."""


class CheckpointConfig(Options):
    """When to save and what to keep."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; None saves at the end of each epoch."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept: the best by held-out R@1, and always the latest."""
