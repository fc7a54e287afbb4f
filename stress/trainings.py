"""Runs of a soak: configurations drawn at random, their commands, undisturbed references, and the comparison."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stress.world import BUCKET, HEAD, SoakError, World

STEPS = 200
SAVE_EVERY = 5
STILL_S = 300.0
"""Longest time without a new step: a lost node takes Ray half a minute, another command's room four."""
HEADS = ("glscl", "mean_pool", "wti", "xpool", "tight_transformer")
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Relative, of the loss of every step, where the number of workers has changed on the way. Sums over the ranks are then
taken in another order: fp32 gives another last bit, bf16, whose numbers have 8 bits (0.4 %), another rounding of every
activation and gradient, which later steps build on."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A drawn configuration.

    Attributes:
        workers: a number, or the fewest and the most.
        remote: shards and run directory on S3; else on the disk that can fill.
    """

    zero_stage: int
    accumulate: int
    workers: tuple[int, ...]
    head: str
    remote: bool
    precision: str
    domains: tuple[str, ...]
    held_out: bool
    loader_workers: int

    @classmethod
    def draw(cls, chance: random.Random) -> Setup:
        """Any combination that a run can have."""
        return cls(
            zero_stage=chance.choice((0, 1, 2, 3)),
            accumulate=chance.choice((1, 1, 2)),
            workers=chance.choice(((2,), (2,), (1,), (1, 2))),
            head=chance.choice(HEADS),
            remote=chance.random() < 0.6,
            precision=chance.choice(("fp32", "fp32", "bf16")),
            domains=chance.choice((("toy_clips",), ("toy_clips", "toy_stories"))),
            held_out=chance.random() < 0.3,
            loader_workers=chance.choice((0, 0, 1)),
        )

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return len(self.workers) > 1

    def __str__(self) -> str:
        workers = "-".join(map(str, self.workers))
        words = [f"ZeRO {self.zero_stage}", f"{workers} workers", f"accumulate {self.accumulate}", self.head]
        words += [self.precision, "s3" if self.remote else "disk", "+".join(self.domains)]
        words += ["held-out"] * self.held_out + [f"{self.loader_workers} loader workers"]
        return ", ".join(words)

    def options(self, world: World, name: str) -> dict[str, object]:
        """Of ``glscl train``."""
        root = BUCKET if self.remote else str(world.disk)
        shards = f"{BUCKET}/shards" if self.remote else str(world.scratch / "shards")
        options: dict[str, object] = {
            "name": name,
            "storage": f"{root}/runs",
            "data.train": tuple(f"{shards}/{domain}" for domain in self.domains),
            "data.loader-workers": self.loader_workers,
            "data.virtual-streams": 4,
            "data.stall-timeout-s": 60,
            "model.clip": world.scratch / "clip.json",
            "model.max-frames": 2,
            "model.head": self.head,
            "training.global-batch": 8,
            "training.epochs": 1000,
            "training.max-steps": STEPS,
            "training.num-workers": self.workers,
            "training.lr-towers": 1e-4,
            "training.lr-head": 1e-3,
            "training.zero-stage": self.zero_stage,
            "training.accumulate": self.accumulate,
            "training.precision": self.precision,
            "training.log-every": 1,
            "training.max-failures": -1,
            "training.wait-for-nodes-s": 240,
            "training.restart-cost-s": 0,
            "training.hang-timeout-s": 45,
            "checkpoint.every-steps": SAVE_EVERY,
        }
        if self.held_out:
            options["data.validation"] = (f"{shards}/held_out",)
        if self.is_elastic:
            # Rounding grows with the rates; masks of dropout are drawn anew by another number of workers.
            options |= {"training.lr-towers": 3e-5, "training.lr-head": 3e-5}
            if self.head in ("glscl", "xpool", "tight_transformer"):
                options[f"model.heads.{self.head.replace('_', '-')}.dropout"] = 0
        return options

    def directory(self, world: World, name: str) -> str:
        """Where its run lies."""
        return f"{BUCKET if self.remote else world.disk}/runs/{name}"


class Run:
    """A training run from the command line."""

    def __init__(self, world: World, setup: Setup, name: str) -> None:
        self.world, self.setup, self.name = world, setup, name
        self.directory = setup.directory(world, name)
        self.logs: list[Path] = []
        self.process: subprocess.Popen[bytes]
        self.start()

    def command(self, host: int = HEAD) -> list[str]:
        """Words, on a host."""
        words: list[str] = []
        for key, value in self.setup.options(self.world, self.name).items():
            words += [f"--{key}", *map(str, value if isinstance(value, tuple) else (value,))]
        return [*self.world.hosts.inside(host), sys.executable, "-m", "glscl", "train", *words]

    def open(self, log: Path, host: int = HEAD) -> subprocess.Popen[bytes]:
        """Start a driver."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command(host),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.world.hosts.environment,
                cwd=self.world.scratch,
                start_new_session=True,
            )
        self.world.drivers.append(process)
        return process

    def start(self, host: int = HEAD) -> None:
        """Start it, or start it again with the very same command."""
        self.logs.append(self.world.scratch / f"{self.name}-{len(self.logs):02d}.log")
        self.process = self.open(self.logs[-1], host)

    def text(self) -> str:
        """Output of all its drivers."""
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in self.logs)

    def _events(self, word: str, since: int) -> list[tuple[int, int]]:
        """Position and step of what workers printed for the first time after ``since`` characters.

        All nodes' logs lie in one folder here, and every node's monitor sends all of it: a node that is started anew
        repeats earlier lines.
        """
        first: dict[tuple[str, str], int] = {}
        for match in re.finditer(rf"pid=(\d+)[^)\n]*\) {word}step=(\d+)[ /]", self.text()):
            first.setdefault((match[1], match[2]), match.start())
        return [(at, int(step)) for (_, step), at in first.items() if at >= since]

    def steps(self, since: int = 0) -> list[int]:
        """Steps that it has done."""
        return [step for _, step in self._events("", since)]

    def resumes(self, since: int = 0) -> list[tuple[int, int]]:
        """Position and step of every line that says where the run resumed."""
        return self._events("resumed ", since)

    def step(self) -> int:
        """The last of them."""
        return self.steps()[-1] if self.steps() else 0

    def ended(self) -> bool:
        """Whether it is done.

        Raises:
            SoakError: it ended badly.
        """
        status = self.process.poll()
        if status not in (None, 0):
            raise SoakError(f"{self.name} ended with status {status}:\n{self.text()[-3000:]}")
        return status == 0

    def wait_for(self, reached: Callable[[], bool], what: str) -> None:
        """Wait until ``reached()`` holds, or the end.

        Raises:
            SoakError: it ended badly, or printed nothing new for `STILL_S` seconds.
        """
        deadline, seen = time.monotonic() + STILL_S, -1
        while not reached() and not self.ended():
            if (now := len(self.steps())) > seen:
                seen, deadline = now, time.monotonic() + STILL_S
            if time.monotonic() > deadline:
                raise SoakError(f"{self.name}: {what} did not come in {STILL_S:.0f} s:\n{self.text()[-3000:]}")
            time.sleep(0.1)

    def finish(self) -> None:
        """Wait for the end."""
        self.wait_for(self.ended, "the end")

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of every row of the log."""
        lines = (self.world.read(f"{self.directory}/metrics.jsonl") or b"").splitlines()
        return [(row["step"], row["loss"]) for row in map(json.loads, lines) if "loss" in row]

    def weights(self) -> str:
        """SHA-256 of the model that it has saved."""
        data = self.world.read(f"{self.directory}/model/weights.safetensors")
        if data is None:
            raise SoakError(f"{self.name} saved no model")
        return hashlib.sha256(data).hexdigest()

    def sizes(self) -> set[int]:
        """Numbers of workers that it has had."""
        return {int(number) for number in re.findall(r"pairs = (\d+) workers?\b", self.text())}


@dataclass(frozen=True, slots=True)
class Reference:
    """What the undisturbed run of a configuration ended with."""

    weights: str
    losses: tuple[tuple[int, float], ...]
    workers: int


def refer(world: World, setup: Setup, name: str) -> Reference:
    """Train a configuration undisturbed."""
    run = Run(world, setup, name)
    run.finish()
    (workers,) = run.sizes()
    reference = Reference(run.weights(), tuple(run.losses()), workers)
    check_rows(run)
    remove(run)
    return reference


def compare(run: Run, reference: Reference) -> str:
    """See that a disturbed run ended as its reference; returns how that was seen.

    Raises:
        SoakError: it did not.
    """
    check_rows(run)
    if run.sizes() == {reference.workers}:
        if run.weights() != reference.weights:
            raise SoakError(f"{run.name} ({run.setup}) ended with other weights than the undisturbed run")
        return "weights bit by bit"
    worst = max(
        abs(mine - other) / abs(other) for (_, mine), (_, other) in zip(run.losses(), reference.losses, strict=True)
    )
    if worst > TOLERANCE[run.setup.precision]:
        raise SoakError(f"{run.name} ({run.setup}): losses differ by {worst:.1e} of the undisturbed run's")
    return f"losses within {worst:.0e} ({run.setup.precision})"


def check_rows(run: Run) -> None:
    """See that the log reads as if nothing had happened.

    Raises:
        SoakError: a row is missing or doubled.
    """
    steps = [step for step, _ in run.losses()]
    if steps != list(range(1, STEPS + 1)):
        wrong = sorted(set(range(1, STEPS + 1)) ^ set(steps)) or [s for s in set(steps) if steps.count(s) > 1]
        raise SoakError(f"{run.name}: metrics.jsonl has {len(steps)} rows; missing or double: {wrong[:10]}")
    left = [name for name in run.world.sizes(run.directory) if name.startswith("step_")]
    if len({name.partition("/")[0] for name in left}) > 3:  # the two best and the newest
        raise SoakError(f"{run.name} left checkpoints behind: {sorted({name.partition('/')[0] for name in left})}")


def remove(run: Run) -> None:
    """Make room for the next one."""
    if run.setup.remote:
        for name in run.world.sizes(run.directory):
            run.world.client.delete_object(
                Bucket=BUCKET.removeprefix("s3://"), Key=f"{run.directory.removeprefix(f'{BUCKET}/')}/{name}"
            )
    else:
        subprocess.run(["rm", "-rf", run.directory], check=True)


def write_inputs(world: World) -> None:
    """Small shard sets of two domains and a held-out one, on disk and in the bucket, and a small architecture."""
    from glscl.data.build import BuildOptions
    from glscl.data.prepare import Source, prepare
    from glscl.data.toy.render import write_toy

    for name, domain, count in (
        ("toy_clips", "toy_clips", 32),
        ("toy_stories", "toy_stories", 32),
        ("held_out", "toy_clips", 8),
    ):
        split, raw = ("dev" if name == "held_out" else "train"), world.scratch / "raw" / name
        write_toy(domain, split, count, 0, str(raw), processes=1)
        source = Source(
            benchmark="jsonl",
            annotations=str(raw / "annotations.jsonl"),
            split=split,
            videos=str(raw / "videos"),
            domain=domain,
        )
        prepare(source, str(world.scratch / "shards" / name), BuildOptions(samples_per_shard=4, workers=0))
    for path in (world.scratch / "shards").rglob("*"):
        if path.is_file():
            key = str(path.relative_to(world.scratch))
            world.client.upload_file(str(path), BUCKET.removeprefix("s3://"), key)
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    clip = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (world.scratch / "clip.json").write_text(json.dumps(clip))
