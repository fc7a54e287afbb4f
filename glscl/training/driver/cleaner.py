"""What gives a run's room back when its driver is killed.

Ray Train starts a detached actor for that, which asks the dashboard whether the run's controller lives, at an address
that it guesses: where the machine has another cluster, at that one's. It then stays for ever, or dies with a traceback
beside a run that is sound. Here it asks the head of its own cluster.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import ray
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.util.state.exception import RayStateApiException


def is_actor_alive(actor_id: str, timeout: float) -> bool:
    """Whether an actor of this process's own cluster lives.

    Raises:
        RayStateApiException: the head does not answer now.
    """
    try:
        state: str = ray._private.state.actors(actor_id).get("State", "DEAD")
    except Exception as error:  # as many types as there are ways for a head to be away
        raise RayStateApiException(f"{type(error).__name__}: {error}") from error
    return state != "DEAD"


class Cleaner(PlacementGroupCleaner):  # type: ignore[misc]
    """Removes a run's placement group once its controller is gone."""

    def _monitor_loop(self) -> None:
        with patch.object(placement_group_cleaner, "is_actor_alive", is_actor_alive):
            super()._monitor_loop()

    def _exit(self) -> None:
        ray._private.state.state.disconnect()  # its threads must not outlive what the process takes down
        super()._exit()


class CleanerCallback(PlacementGroupCleanerCallback):  # type: ignore[misc]
    """Starts a `Cleaner` with the controller."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start it."""
        with patch.object(placement_group_callback, "PlacementGroupCleaner", Cleaner):
            super().after_controller_start(train_run_context)
