"""Measure what it costs to start: CPU seconds and processes of whole commands, by what they were spent on.

    python benchmarks/startup.py [--only NAME ...] [--json FILE]

Makes toy shards in a temporary folder, then runs commands there: the usage, a mistake, a run of two steps with a test,
and an evaluation of 25 videos. Each is started from here as a user would, with a Ray cluster of its own. CPU seconds
are those of all its processes, user and system, which other work on the machine hardly changes; they are looked up
every 20 ms, so what a process does in its last 20 ms is not seen. ``x torch`` divides them by those of ``python -c
"import torch"`` in the same run. Linux; three minutes on two free cores.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

CLOCK = os.sysconf("SC_CLK_TCK")
LOOK_S = 0.02
SET_CHILD_SUBREAPER = 36
GLSCL = [sys.executable, "-m", "glscl"]
TRAIN = {
    "config": "tiny",
    "name": "run",
    "data.train": "{}/train",
    "data.validation": "{}/validation",
    "data.test": "{}/test",
    "data.captions": "one",
    "training.epochs": "1",
}
KINDS = [
    ("driver", r"-m glscl"),
    (r"\1", r"ray::([A-Z_a-z.]*\w)"),
    ("raylet", r"raylet/raylet"),
    ("GCS", r"gcs_server"),
    ("worker process, starting", r"(default|setup)_worker\.py"),
    ("dashboard", r"dashboard/dashboard\.py|ray-dashboard"),
    ("agent of the dashboard", r"dashboard/agent\.py|idle_agent"),
    ("agent of runtime environments", r"runtime_env/agent"),
    ("log monitor", r"log_monitor"),
    ("autoscaler", r"monitor\.py"),
    ("start of processes (forkserver)", r"multiprocessing"),
]


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        wall_s: seconds from its start until its last process was gone.
        answer_s: seconds until it returned.
        cpu_s: user and system seconds of all its processes.
        processes: how many there were.
        cpu_of: CPU seconds by kind of process.
        count_of: processes by kind.
    """

    wall_s: float
    answer_s: float
    cpu_s: float
    processes: int
    cpu_of: dict[str, float]
    count_of: dict[str, int]


@dataclass
class _Seen:
    kind: str = "other"
    cpu_s: float = 0.0


def measure(words: list[str], folder: str, status: int = 0) -> Cost:
    """Run a command to the end of its last process.

    Raises:
        SystemExit: it ended with another status.
    """
    seen: dict[tuple[int, int], _Seen] = {}
    environment = os.environ | {"RAY_ADDRESS": "local", "TMPDIR": folder}
    output = Path(folder, "output.txt")
    with output.open("wb") as file:
        begun = time.monotonic()
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
        answer = None
        while _look(seen):
            if answer is None and process.poll() is not None:
                answer = time.monotonic()
            _reap(process.pid)
            time.sleep(LOOK_S)
    wall = time.monotonic() - begun
    if process.wait() != status:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}: {output.read_text()[-3000:]}")
    cpu_of: Counter[str] = Counter()
    for entry in seen.values():
        cpu_of[entry.kind] += entry.cpu_s  # type: ignore[assignment]
    count_of = Counter(entry.kind for entry in seen.values())
    answered = wall if answer is None else answer - begun
    return Cost(wall, answered, sum(cpu_of.values()), len(seen), dict(cpu_of), dict(count_of))


def _look(seen: dict[tuple[int, int], _Seen]) -> bool:
    """Note the CPU time of every descendant of this process; False if there is none."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        stats[int(path.parent.name)] = (int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12]), fields[0])
    family = {os.getpid()}
    found = False
    while more := {pid for pid, (parent, *_) in stats.items() if parent in family and pid not in family}:
        family |= more
    for pid in family - {os.getpid()}:
        _, start, ticks, state = stats[pid]
        found |= state != "Z"
        entry = seen.setdefault((pid, start), _Seen())
        entry.cpu_s = max(entry.cpu_s, ticks / CLOCK)
        if state != "Z":
            entry.kind = _kind(pid, entry.kind)
    return found


def _kind(pid: int, before: str) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return before
    for kind, pattern in KINDS:
        if match := re.search(pattern, command):
            name = match.expand(kind)
            return before if name == "IDLE" and before != "other" else name
    return command[:60] or before


def _reap(but: int) -> None:
    """Take away ended processes whose parents have ended before them."""
    for path in Path("/proc/self/task").glob("*/children"):
        for word in path.read_text().split():
            if int(word) != but:
                os.waitpid(int(word), os.WNOHANG)


def main() -> None:
    """Run the commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="rows to measure")
    parser.add_argument("--data", default="", help="folder with the toy sets of an earlier call, or for them")
    parser.add_argument("--json", default="", help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="su-", dir="/tmp") as folder:
        data = os.path.abspath(arguments.data or folder)
        for name, count in (("train", 64), ("validation", 9), ("test", 25)):
            if not os.path.isdir(f"{data}/{name}"):
                _make_set(data, name, count)
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become ours, so that none is lost
        train = [word for key, value in TRAIN.items() for word in (f"--{key}", value.format(data))]
        commands: dict[str, tuple[list[str], int]] = {
            "import torch": ([sys.executable, "-c", "import torch"], 0),
            "glscl --help": ([*GLSCL, "--help"], 0),
            "a misspelt option": ([*GLSCL, "train", "--traning.epochs", "1"], 2),
            "a bad value": ([*GLSCL, "train", "--config", "tiny", "--training.warmup", "2"], 2),
            "a missing shard set": ([*GLSCL, "train", "--config", "tiny"], 2),
            "glscl train, two steps": ([*GLSCL, "train", *train, "--model.heads.glscl.queries", "2"], 0),
            "glscl eval, 25 videos": ([*GLSCL, "eval", "--run", "runs/run", "--test", f"{data}/test"], 0),
        }
        costs: dict[str, Cost] = {}
        for name, (words, status) in commands.items():
            if not arguments.only or name in arguments.only or name == "import torch":
                costs[name] = measure(words, folder, status)
                _print(name, costs)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}, indent=1))


def _make_set(folder: str, name: str, count: int) -> None:
    toy = f"{folder}/{name}-toy"
    build = {
        "benchmark": "jsonl",
        "annotations": f"{toy}/annotations.jsonl",
        "split": "train",
        "videos": f"{toy}/videos",
        "output": f"{folder}/{name}",
        "domain": name,
        "samples-per-shard": "8",
    }
    for words in (
        [
            "toy",
            "--domain",
            "toy_clips",
            "--split",
            "train",
            "--count",
            str(count),
            "--seed",
            str(count),
            "--output",
            toy,
        ],
        ["shards", "build", *(word for key, value in build.items() for word in (f"--{key}", value))],
    ):
        subprocess.run([*GLSCL, *words], check=True, stdout=subprocess.DEVNULL)


def _print(name: str, costs: dict[str, Cost]) -> None:
    cost, torch = costs[name], costs["import torch"]
    if len(costs) == 1:
        print(f"{'':<42}{'answer, s':>10}{'wall, s':>9}{'CPU, s':>8}{'x torch':>9}{'processes':>11}")
    ratio = cost.cpu_s / torch.cpu_s
    print(f"{name:<42}{cost.answer_s:>10.2f}{cost.wall_s:>9.2f}{cost.cpu_s:>8.2f}{ratio:>9.1f}{cost.processes:>11}")
    if cost.processes > 1:
        for kind, cpu in sorted(cost.cpu_of.items(), key=lambda item: -item[1]):
            print(f"  {kind:<60}{cpu:>8.2f}{cpu / torch.cpu_s:>9.1f}{cost.count_of[kind]:>11}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
