"""What `glscl train` and `glscl quickstart` share: a run from its first worker to its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glscl.system import storage
from glscl.system.ownership import ANOTHER_NAME, owned
from glscl.system.session import ray_session

if TYPE_CHECKING:
    from glscl.training.config import RunConfig
    from glscl.training.driver.preflight import Preflight


def train_and_report(config: RunConfig, ready: Preflight) -> str:
    """Train, test, report; ``status.json`` follows what happens. Returns the verdict."""
    from glscl.evaluation.console import print_results
    from glscl.training.driver.launch import train
    from glscl.training.driver.outputs import REPORT, status_on_failure, write_results, write_status

    where = config.run_directory
    storage.check_writable(where, "--storage")
    with owned(where, ANOTHER_NAME) as owner:
        write_status(where, state="running", verdict="")
        # Also inside the session: to end a cluster takes seconds, and who sent a signal may not wait.
        with status_on_failure(owner.fence), ray_session(), status_on_failure(owner.fence):
            results = train(config, ready, owner)
            owner.fence.check()
            write_results(results, where)
        write_status(where, state="finished", verdict=results.verdict)
    print_results(results)
    return f"{results.verdict} report={storage.join(where, REPORT)}"
