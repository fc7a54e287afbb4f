"""The faults of a soak: each waits for its moment, does damage and mends it; `watch` checks that the run goes on."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from stress.trainings import STILL_S, Run
from stress.world import HEAD, STORAGE, WORKERS, SoakError, World

SHORT_S, LONG_S = (2.0, 8.0), (50.0, 60.0)
"""Lengths of a partition or a freeze: one that nothing has to notice, and one after which Ray gives the node up (about
30 s) and the watchdog the group (45 s here)."""
LONG = 0.25
"""Share of the long ones."""
TAKEN_S = 150.0
"""Longest time until a driver on another host has taken over: 60 s without a heartbeat, and its start."""


@dataclass(slots=True)
class Fault:
    """One fault and what followed.

    Attributes:
        run: name of the run.
        kind: one of `KINDS`.
        detail: which variant of it, where there are several.
        moment: "upload" if a checkpoint was half on the storage, "start" if the run was starting again after another
            fault, else "steps".
        step: last step the log had shown.
        complete: step of the newest complete checkpoint at that moment; 0 if there was none.
        resumed: step from which the run went on; None where nothing had to restart.
        lost: steps done again because of the fault.
        seconds: from the end of the fault until the run went on with a step of its own.
    """

    run: str
    kind: str
    detail: str = ""
    moment: str = "steps"
    step: int = 0
    complete: int = 0
    resumed: int | None = None
    lost: int = 0
    seconds: float = 0.0


def kill_worker(run: Run, chance: random.Random, fault: Fault) -> None:
    """SIGKILL for a training worker."""
    if workers := run.world.training_workers():
        with suppress(psutil.NoSuchProcess):
            chance.choice(workers).kill()


def kill_raylet(run: Run, chance: random.Random, fault: Fault) -> None:
    """SIGKILL for the raylet under a worker, which takes its host away; back after a while."""
    host = chance.choice(WORKERS)
    run.world.hosts.lose(host)
    time.sleep(chance.uniform(0.0, 3.0))
    run.world.hosts.start(host, cpus=1)


def kill_driver(run: Run, chance: random.Random, fault: Fault) -> None:
    """SIGKILL for the driver; the same command again at once."""
    run.process.kill()
    run.process.wait()
    run.start()


def kill_proxy(run: Run, chance: random.Random, fault: Fault) -> None:
    """SIGKILL for the way to the storage, back after seconds."""
    run.world.kill_proxy()
    time.sleep(chance.uniform(0.5, 4.0))
    run.world.start_proxy()


def _draw_length(chance: random.Random, fault: Fault) -> float:
    long = chance.random() < LONG
    fault.detail += " long" if long else " short"
    return chance.uniform(*(LONG_S if long else SHORT_S))


def partition(run: Run, chance: random.Random, fault: Fault) -> None:
    """A host's cable is out: of a worker, or of the storage server."""
    host = chance.choice((*WORKERS, STORAGE) if run.setup.remote else WORKERS)
    fault.detail = "storage" if host == STORAGE else "worker"
    length = _draw_length(chance, fault)
    run.world.hosts.cut(host, off=True)
    try:
        time.sleep(length)
    finally:
        run.world.hosts.cut(host, off=False)


def freeze(run: Run, chance: random.Random, fault: Fault) -> None:
    """SIGSTOP for all processes of a worker's host, and SIGCONT."""
    frozen = run.world.hosts.processes(chance.choice(WORKERS))
    fault.detail = "worker"
    _suspend(frozen, _draw_length(chance, fault))


def _suspend(processes: Sequence[psutil.Process], seconds: float) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        time.sleep(seconds)
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def jump_clock(run: Run, chance: random.Random, fault: Fault) -> None:
    """The wall clock of every host is another one from now on, hours or days away, before or after."""
    seconds = chance.choice((-1, 1)) * round(10 ** chance.uniform(1.5, 6.0))
    fault.detail = "forwards" if seconds > 0 else "backwards"
    run.world.set_clock(seconds)


def fill_disk(run: Run, chance: random.Random, fault: Fault) -> None:
    """The disk with the run directory is full for up to a minute; a run that ended for it is started again."""
    run.world.fill_disk()
    try:
        deadline = time.monotonic() + 60
        while run.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        run.world.empty_disk()
    status = run.process.poll()
    if status is None:
        fault.detail = "outlasted"
        return
    last = run.text().splitlines()[-1]
    if status != 2 or "No space left on device" not in last:
        raise SoakError(f"{run.name} met a full disk and ended with status {status}:\n{run.text()[-3000:]}")
    fault.detail = "ended in one line"
    run.start()


def second_driver(run: Run, chance: random.Random, fault: Fault) -> None:
    """The same command beside the running one, on the same host or on another: refused, and nothing happens."""
    host = chance.choice((HEAD, WORKERS[0]))
    fault.detail = "same host" if host == HEAD else "another host"
    log = run.world.scratch / f"{run.name}-second-{time.monotonic():.0f}.log"
    second = run.open(log, host)
    deadline = time.monotonic() + TAKEN_S
    while second.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    output = log.read_text(errors="replace")
    if run.process.poll() == 0:  # had ended by itself before the second one looked
        second.kill()
        second.wait()
        fault.detail = "too late"
    elif second.poll() != 2 or not re.search(r"is in use: glscl train on host host0, pid \d+, last heartbeat", output):
        second.kill()
        raise SoakError(f"a second driver of {run.name} ended with status {second.poll()}:\n{output[-3000:]}")


def take_over(run: Run, chance: random.Random, fault: Fault) -> None:
    """The driver is frozen, another host takes over, and the first one wakes up: it has to end by itself."""
    first = run.process
    frozen = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in frozen:
        process.suspend()
    since = len(run.text())
    try:
        run.start(host=WORKERS[0])
        deadline = time.monotonic() + TAKEN_S
        while "taken over from glscl train on host host0" not in run.text()[since:]:
            if time.monotonic() > deadline or run.process.poll() is not None:
                raise SoakError(f"{run.name} was not taken over:\n{run.text()[-3000:]}")
            time.sleep(0.2)
    finally:
        time.sleep(chance.uniform(0.0, 20.0))
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
    try:
        status = first.wait(TAKEN_S)
    except TimeoutError:
        status = None
    output = run.logs[-2].read_text(errors="replace")
    if status != 2 or "was taken over by glscl train on host host1" not in output:
        raise SoakError(f"the first driver of {run.name} ended with status {status}:\n{output[-3000:]}")
    # Back to the head, as a person would bring it: stopped in order, and started again.
    run.wait_for(lambda: bool(run.steps(since)), "a step of the new driver")
    if run.process.poll() is None:
        run.process.send_signal(signal.SIGTERM)
        status = run.process.wait(TAKEN_S)
        if status not in (0, 128 + signal.SIGTERM):
            raise SoakError(f"{run.name} ended with status {status} when stopped:\n{run.text()[-3000:]}")
        if status:
            run.start()


Disturb = Callable[[Run, random.Random, Fault], None]
KINDS: dict[str, tuple[Disturb, int]] = {
    "worker": (kill_worker, 4),
    "raylet": (kill_raylet, 2),
    "driver": (kill_driver, 3),
    "storage": (kill_proxy, 2),
    "partition": (partition, 3),
    "freeze": (freeze, 3),
    "clock": (jump_clock, 3),
    "full disk": (fill_disk, 3),
    "second driver": (second_driver, 2),
    "taken over": (take_over, 1),
}
"""By name: the function that disturbs, and how often it is in a deck."""
RESTARTS = ("worker", "raylet", "driver", "taken over")
"""After these the run has to start again from a checkpoint."""


def is_possible(kind: str, run: Run) -> bool:
    """Whether a kind means something to a run: S3 has no disk here, and a disk no storage server."""
    return not (kind == "storage" and not run.setup.remote) and not (kind == "full disk" and run.setup.remote)


def disturb(run: Run, kind: str, moment: str, chance: random.Random) -> Fault:
    """Wait for the moment, and do the damage."""
    world: World = run.world
    if moment == "upload":
        deadline = time.monotonic() + 20
        while not world.checkpoints(run.directory)[1] and run.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        time.sleep(chance.uniform(2.0, 15.0) if moment == "start" else chance.uniform(0.0, 2.0))
    complete, partial = world.checkpoints(run.directory)
    fault = Fault(run.name, kind, step=run.step(), complete=complete)
    fault.moment = "upload" if partial and moment != "start" else "start" if moment == "start" else "steps"
    KINDS[kind][0](run, chance, fault)
    fault.detail = fault.detail.strip()
    return fault


def watch(run: Run, faults: Sequence[Fault], since: int) -> None:
    """Wait until a run has gone on after these faults, and note from which step.

    Args:
        run: that was disturbed.
        faults: one, or two of which the second hit the restart after the first.
        since: length of the run's output before the first of them.

    Raises:
        SoakError: it stood still, or went back further than it had to.
    """
    started = time.monotonic()
    healed = len(run.text())
    run.world.mend_nodes()
    deadline = started + STILL_S
    while _must_restart(run, faults) and not _resumed(run, since) and run.process.poll() is None:
        run.world.mend_nodes()
        if time.monotonic() > deadline:
            raise SoakError(f"{run.name} did not resume within {STILL_S:.0f} s:\n{run.text()[-3000:]}")
        time.sleep(0.2)

    def went_on() -> bool:
        run.world.mend_nodes()
        last = max((at for at, _ in run.resumes(since)), default=0)
        return bool(run.steps(max(last, healed)))

    run.wait_for(went_on, "a step")
    resumed = _resumed(run, since)
    for fault in faults:
        fault.seconds = round(time.monotonic() - started, 1)
        if resumed:
            fault.resumed = resumed[-1]
            fault.lost = max(0, fault.step - resumed[-1])
        if resumed and min(resumed) < fault.complete:
            raise SoakError(f"{run.name} resumed at step {min(resumed)} where step {fault.complete} was complete")


def _must_restart(run: Run, faults: Sequence[Fault]) -> bool:
    """Whether the faults end the worker group for certain."""
    if faults[-1].kind in ("worker", "raylet") and run.setup.workers != (2,):
        return False  # a worker that died, or whose host is gone, may have been none of this run's
    return any(fault.kind in RESTARTS or fault.detail == "ended in one line" for fault in faults)


def _resumed(run: Run, since: int) -> list[int]:
    return [step for _, step in run.resumes(since)]
