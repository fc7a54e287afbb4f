"""Cluster resources of a sweep: how many trials run at once, and waiting for what stopped trials held."""

from __future__ import annotations

import time
from collections.abc import Mapping

from glscl.errors import UserError
from glscl.runs.pool import concurrent_runs
from glscl.system.nodes import alive_nodes, check_resources
from glscl.training.config import RunConfig
from glscl.training.driver.machines import with_machines
from tune.objective import training_folds
from tune.options import SweepConfig

_PATIENCE_S = 120.0


def concurrent_trials(sweep: SweepConfig, default: RunConfig) -> int:
    """Trials that fit on the cluster at once; Ray must be running.

    Args:
        sweep: the sweep.
        default: a trial's training without the searched values.

    Raises:
        UserError: not even one fits.
    """
    training, trainings = with_machines(default, alive_nodes, alone=False).training, len(training_folds(sweep))
    check_resources(training.most_workers * trainings, training.cpus, training.on_gpu, training.wait_for_nodes_s)
    groups = concurrent_runs(training)
    fitting = groups // trainings
    if not fitting:
        raise UserError(
            f"a trial needs {trainings} x {training.most_workers} workers of {training.cpus:g} CPUs"
            f"{' and a GPU' if training.on_gpu else ''} at once, and the nodes hold {groups} such "
            f"groups of {training.most_workers}: lower training.num_workers or training.cpus_per_worker, or add nodes"
        )
    return min(fitting, max(1, sweep.concurrent or fitting))


def wait_for_resources(before: Mapping[str, float]) -> None:
    """Wait until what stopped trials held is back, and print so, or that it is not.

    Args:
        before: what was available before the search.
    """
    import ray
    from ray.util import placement_group_table

    deadline = time.monotonic() + _PATIENCE_S
    while True:
        groups = sum(group["state"] not in ("REMOVED",) for group in placement_group_table().values())
        now = ray.available_resources()
        missing = {k: v for k in ("CPU", "GPU") if (v := before.get(k, 0.0) - now.get(k, 0.0)) > 1e-6}
        if not missing and not groups:
            print(f"sweep: resources are back: {now.get('CPU', 0):g} CPUs free, no placement group left", flush=True)
            return
        if time.monotonic() > deadline:
            print(
                f"sweep: after {_PATIENCE_S:.0f} s resources are not back: {missing}, {groups} placement groups left",
                flush=True,
            )
            return
        time.sleep(0.5)
