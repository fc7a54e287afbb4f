"""Usable numbers of workers of a run, and how each divides the global batch: arithmetic."""

from glscl.data.plan import StreamPlan
from glscl.errors import UserError
from glscl.training.config import RunConfig
from glscl.training.options import TrainingConfig


def usable_world_sizes(config: RunConfig, plan: StreamPlan | None) -> tuple[int, ...]:
    """The numbers of workers that ``training.num_workers`` allows and the run can have, rising.

    The most of them has to suit ``training.accumulate``; fewer take more chunks, see `accumulation_steps`. Without a
    plan of the stream, only the global batch is looked at. Raises `UserError`, with the options to change: there is
    none.
    """
    training = config.training
    if training.is_elastic and training.cpus % 1:
        raise UserError(
            f"training.cpus_per_worker ({training.cpus:g}) has to be a whole number where "
            f"training.num_workers is a range: Ray does not count fractions of a node exactly"
        )
    world_sizes: list[int] = []
    refused: dict[int, str] = {}
    for workers in range(training.most_workers, training.fewest_workers - 1, -1):
        try:
            _check(config, plan, workers, accumulate=1 if world_sizes else training.accumulate)
            world_sizes.append(workers)
        except UserError as error:
            refused[workers] = str(error)
    if not world_sizes and training.is_elastic:
        raise UserError(
            f"training.num_workers: none of {training.fewest_workers} to {training.most_workers} workers can be used; "
            f"{training.most_workers}: {refused[training.most_workers]}"
        )
    if not world_sizes:
        raise UserError(refused[training.most_workers])
    return tuple(reversed(world_sizes))


def accumulation_steps(training: TrainingConfig, world_sizes: tuple[int, ...], workers: int) -> int:
    """Chunks in which each of so many workers encodes its share.

    As few as keep a chunk no larger than it is with the most workers: a run that shrinks must not outgrow its memory.
    """
    largest = training.global_batch // (world_sizes[-1] * training.accumulate)
    share = training.global_batch // workers
    return next(chunks for chunks in range(1, share + 1) if share % chunks == 0 and share // chunks <= largest)


def describe_batch(training: TrainingConfig, world_sizes: tuple[int, ...], workers: int) -> str:
    """The global batch with so many workers: how many workers x chunks x pairs."""
    chunks = accumulation_steps(training, world_sizes, workers)
    return f"{workers} workers x {chunks} parts x {training.global_batch // workers // chunks}"


def _check(config: RunConfig, plan: StreamPlan | None, workers: int, accumulate: int) -> None:
    training = config.training
    if training.global_batch % workers:
        raise UserError(
            f"training.global_batch ({training.global_batch}) is not a multiple of training.num_workers ({workers}): "
            f"change one of them"
        )
    per_worker = training.global_batch // workers
    if per_worker % accumulate:
        raise UserError(
            f"training.accumulate ({accumulate}) does not divide a worker's {per_worker} pairs "
            f"(training.global_batch / training.num_workers): change one of them"
        )
    if plan is not None:
        plan.check_world(workers, config.data.loaders)
