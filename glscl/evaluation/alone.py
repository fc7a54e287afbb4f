"""An evaluation by one worker on this machine: by the process that asks for it, which has imported all it needs."""

from __future__ import annotations

import os
from typing import Any

import torch

from glscl.evaluation.actors import Evaluator, Evaluators
from glscl.evaluation.caches import Cache, LocalPiece, Piece
from glscl.evaluation.embed import RowShard
from glscl.evaluation.options import EvaluationConfig
from glscl.system.nodes import Share
from glscl.system.progress import Progress
from glscl.system.session import is_own


def start_evaluators(folder: str, config: EvaluationConfig, share: Share, *, here: bool = False) -> Evaluators:
    """The actors of an evaluation (see `Evaluators`), or this process where it may do the work of one.

    It may if there is no cluster, or if it has started the cluster itself: no node but this one is there, and nothing
    else uses it. A GPU that training workers have just held is left to an actor, which waits until it is free. ``here``
    says that this process has the worker's resources.
    """
    import ray

    here = here or not ray.is_initialized() or (is_own() and not share.use_gpu)
    return (Alone if here and share.workers == 1 else Evaluators)(folder, config, share)


class Alone(Evaluators):
    """One evaluator in this process; loader processes decode, because a decoder may take its process down."""

    def __init__(self, folder: str, config: EvaluationConfig, share: Share) -> None:
        self._evaluator = _Counting(folder, config, share.use_gpu, share.loaders)
        self._shard = RowShard(0, 1)
        self._threads = torch.get_num_threads()
        if "OMP_NUM_THREADS" not in os.environ:  # as Ray sets it for an actor
            torch.set_num_threads(max(1, int(share.cpus)))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        torch.set_num_threads(self._threads)

    def _each(self, method: str, *arguments: object, progress: Progress | None) -> list[Any]:
        self._evaluator.progress_shown = progress
        done = getattr(self._evaluator, method)(*arguments, self._shard)
        if progress is not None:
            progress.reach(progress.total)
        return [done]


class _Counting(Evaluator):
    """Keeps its caches, and shows how far it is by itself; an actor is asked."""

    progress_shown: Progress | None = None

    def _keep(self, cache: Cache) -> Piece:
        return LocalPiece(cache)

    def _note(self, count: int) -> None:
        super()._note(count)
        if self.progress_shown is not None:
            self.progress_shown.reach(self.done)
