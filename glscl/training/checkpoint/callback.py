"""What Ray Train's controller does for the retention of checkpoints."""

from __future__ import annotations

from typing import Any

from ray.train import Checkpoint, UserCallback

from glscl.errors import UserError
from glscl.system.ownership import Fence
from glscl.training.checkpoint.retention import Retention, cause_in


class RetentionCallback(UserCallback):  # type: ignore[misc]
    """Applies the rules while a run goes on, in Ray Train's controller, and ends a run that cannot go on.

    Args:
        run_directory: path or URI.
        keep: see `Retention`.
        fence: see `Retention`.
    """

    def __init__(self, run_directory: str, keep: int, fence: Fence | None = None) -> None:
        self._retention = Retention(run_directory, keep, fence)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Every rank's files of a checkpoint have been uploaded."""
        if checkpoint is not None:
            self._retention.register(str(checkpoint.path).rpartition("/")[2])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray Train would restart the workers, and what a user has to mend would only be found again."""
        if error := cause_in(worker_exceptions.values(), (UserError,)):
            raise error
