"""Configuration of training, checkpoints and the worker group."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from glscl.options import Options
from glscl.system.nodes import Auto


def _workers(value: Any) -> Any:
    if value == "auto":
        return value
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 1 for number in numbers):
        raise ValueError("give a number of workers, the fewest and the most, or auto")
    if isinstance(value, list | tuple) and (len(value) != 2 or value[0] > value[1]):
        raise ValueError("a range is two numbers, the fewest and the most")
    return value


Workers = Annotated[int | tuple[int, int] | Auto, BeforeValidator(_workers)]
"""A number of workers, the fewest and the most, or "auto"."""


def fewest_and_most(workers: int | tuple[int, int] | Auto) -> tuple[int, int]:
    """The ends of a range of workers, or one number twice; 1 for an `auto` that has not been replaced."""
    if isinstance(workers, tuple):
        return workers
    return (1, 1) if workers == "auto" else (workers, workers)


class TrainingConfig(Options):
    """Optimisation and the worker group."""

    global_batch: int = Field(default=128, ge=2)
    """Pairs contrasted at once, over all workers."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which a worker encodes its share of the global batch (two-pass gradient cache): less memory, the same
    gradient. Of a range of workers, those of the most: fewer take more parts, so that none is larger."""
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
    head_first: float | None = Field(default=None, gt=0, lt=1)
    """Share of the steps in which the head alone is trained, on towers as they are, before everything is; each part has
    its own warm-up and cosine (LP-FT, Kumar et al. 2022). none trains everything from the first step."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the towers and heads; losses and the optimiser state are fp32 either way."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 0 nothing sharded, 1 optimiser state, 2 and gradients, 3 and parameters."""
    tf32: bool = False
    """Whether a GPU may round the factors of fp32 products to ten bits (TF32), which is several times faster."""
    compile: bool | Auto = "auto"
    """Whether torch compiles the towers and the head, in the first step (a minute or a few). auto: on GPUs, not under
    ZeRO 3."""
    num_workers: Workers = "auto"
    """Training workers of the Ray worker group (one GPU each when use_gpu): a number, or a range (the fewest and the
    most) within which the run shrinks and grows with the nodes that there are. auto: one per GPU of the cluster, or per
    node without GPUs; one in each run of a study or sweep."""
    use_gpu: bool | Auto = "auto"
    """One GPU and NCCL per worker; otherwise CPU and gloo. auto: GPUs where the cluster has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Auto = "auto"
    """CPUs that Ray reserves per worker; loader workers run inside this share. auto: a node's CPUs divided among its
    workers."""
    wait_for_nodes_s: float = Field(default=0.0, ge=0)
    """Seconds that the cluster is given to bring the nodes these workers (or the fewest) need, at the start and after
    the loss of a node; 0 gives up at once."""
    restart_cost_s: float = Field(default=60.0, ge=0)
    """Seconds that a restart of all workers is reckoned to cost: a run grows onto new nodes where that saves more."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two log lines."""
    max_failures: int = Field(default=3, ge=-1)
    """Times that the worker group is restarted from the last checkpoint after a failure of its own; -1 has no limit.
    The loss of a node does not count."""
    hang_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds that a worker may spend in one step, or not be heard of, before the worker group is restarted."""

    def head_only_steps(self, total_steps: int) -> int:
        """How many of a run's steps train the head alone: at least one, and not all, where `head_first` is set."""
        if self.head_first is None or total_steps < 2:
            return 0
        return min(max(1, round(total_steps * self.head_first)), total_steps - 1)

    @property
    def on_gpu(self) -> bool:
        """Whether workers have GPUs; false for an `auto` that `glscl.training.driver.machines` has not replaced."""
        return self.use_gpu is True

    @property
    def compiles(self) -> bool:
        """Whether the towers and the head are compiled."""
        return self.on_gpu and self.zero_stage < 3 if self.compile == "auto" else self.compile

    @property
    def cpus(self) -> float:
        """CPUs of each worker; 1 for an `auto` that has not been replaced."""
        return 1.0 if self.cpus_per_worker == "auto" else self.cpus_per_worker

    @property
    def fewest_workers(self) -> int:
        """See `fewest_and_most`."""
        return fewest_and_most(self.num_workers)[0]

    @property
    def most_workers(self) -> int:
        """See `fewest_and_most`."""
        return fewest_and_most(self.num_workers)[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers is a range."""
        return isinstance(self.num_workers, tuple)


class CheckpointConfig(Options):
    """When to save and what to keep."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; None saves at the end of each epoch."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept: the best by held-out R@1, and always the latest."""


class TrackingConfig(Options):
    """Trackers that get a run's figures, too. `metrics.jsonl` and TensorBoard are always written."""

    to: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """wandb, mlflow, trackio, or several. Each is an extra (`pip install 'glscl[wandb]'`); keys and addresses are its
    own variables (WANDB_API_KEY, MLFLOW_TRACKING_URI, ...), set where the workers run."""
    project: str = Field(default="glscl", pattern=r"^[A-Za-z0-9._-]+$")
    """The tracker's project (MLflow: experiment)."""
    group: str = ""
    """Name under which a tracker groups runs; empty is none, and in a study or sweep its own name."""

    @field_validator("to")
    @classmethod
    def _each_once(cls, to: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(to)) < len(to):
            raise ValueError("a tracker is named twice")
        return to
