"""The process that talks to one tracker: it reads a run's rows from its standard input and hands them to the library.

Run as a script, so that it imports nothing of this project, neither torch nor Ray. ``trackers`` starts it, and may end
it at any time: nothing that a library or a server does reaches the training. Input is JSON lines: first what the run
is, then ``{"step": 7, "values": {...}}``, at the end ``{"end": "finished"}`` or ``failed``. The only output is one line
for the first thing that does not work; it is tried again until it does.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TextIO, TypeVar

T = TypeVar("T")
_LONGEST_S = 60.0
"""Seconds between two attempts, at most."""
_PARAMETERS_AT_ONCE = 100  # MLflow's limit


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a tracker is told of a run.

    Attributes:
        id: the same in every attempt, by which a resumed run continues the tracker's.
        name: for people.
        project: MLflow's experiment.
        group: of runs that belong together; may be empty.
        directory: local folder for files; empty is the library's own choice.
        config: the whole configuration.
    """

    id: str
    name: str
    project: str
    group: str
    directory: str
    config: Mapping[str, object] = field(default_factory=dict)


class TrackerClient(Protocol):
    """A tracker's run, open for writing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add figures of a step."""

    def finish(self, failed: bool) -> None:
        """Mark the run as ended, and wait until all is sent."""


class _Wandb:
    def __init__(self, run: RunFacts) -> None:
        import wandb

        settings = wandb.Settings(console="off", disable_git=True, disable_code=True, silent=True, finish_timeout=25)
        self._run = wandb.init(
            project=run.project,
            group=run.group or None,
            id=run.id,
            name=run.name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or run.directory or None,
            config=dict(run.config),
            settings=settings,
        )
        self._run.define_metric(
            "*", step_metric="step"
        )  # wandb's own counter drops the rows that a resumed run repeats

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, run: RunFacts) -> None:
        for name, value in {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        }.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient()
        known = self._client.get_experiment_by_name(run.project)
        experiment = known.experiment_id if known else self._client.create_experiment(run.project)
        found = self._client.search_runs([experiment], f"tags.`glscl.id` = '{run.id}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"glscl.id": run.id} | ({"group": run.group} if run.group else {})
        self._run = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        self._log_parameters(flatten(run.config))

    def _log_parameters(self, values: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        parameters = [Param(mlflow_name(key), str(value)[:5000]) for key, value in values.items()]
        for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run, params=parameters[first : first + _PARAMETERS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(mlflow_name(key), float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class _Trackio:
    def __init__(self, run: RunFacts) -> None:
        import trackio

        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",  # it knows runs by their names alone
            group=run.group or None,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish()


CLIENTS: dict[str, Callable[[RunFacts], TrackerClient]] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested values by dotted keys."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def mlflow_name(name: str) -> str:
    """A metric's name with the characters that MLflow takes: ``R@1`` is ``R_1``."""
    return re.sub(r"[^A-Za-z0-9_./ -]", "_", name)


class _Patience:
    """Tries again until something works, and says once that it does not."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._said, self._parent = out, False, os.getppid()

    def do(self, action: Callable[[], T]) -> T:
        wait = 1.0
        while True:
            try:
                return action()
            except Exception as error:  # whatever a library raises, the run goes on
                self._say(error)
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_S)
                if os.getppid() != self._parent:  # whoever started this is gone
                    os._exit(1)

    def _say(self, error: Exception) -> None:
        if not self._said:
            text = " ".join(str(error).split())[:300]
            self._out.write(f"{type(error).__name__}: {text}\n")
            self._out.flush()
            self._said = True


def serve(name: str, lines: TextIO, out: TextIO) -> None:
    """Hand rows on until the input ends; a run whose end is not said is marked as failed."""
    patience = _Patience(out)
    facts = RunFacts(**json.loads(lines.readline()))
    client = patience.do(lambda: CLIENTS[name](facts))
    failed = True
    for line in lines:
        row = json.loads(line)
        if "end" in row:
            failed = row["end"] != "finished"
            break
        patience.do(lambda row=row: client.log(row["step"], row["values"]))  # type: ignore[misc]
    patience.do(lambda: client.finish(failed))


def _main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    serve(sys.argv[1], sys.stdin, out)


if __name__ == "__main__":
    _main()
