"""Does a run that is killed again and again end with the very weights of one that never was?

    python stress/soak.py --kills 60 --output soak.jsonl

Starts a storage server (moto) behind the tests' fault proxy and a Ray cluster of two nodes (a head without CPUs and one
node for the training workers), trains a tiny run once undisturbed, and then again and again while it kills, with
SIGKILL, at seeded random moments and in the middle of checkpoint uploads: a training worker, the raylet under the
workers, the driver, or the storage proxy. What was killed is started again (a new raylet, the same command, a proxy at
the same port). Every run has to end with the undisturbed run's weights, bit by bit; every resume has to start from the
newest checkpoint that was complete at the moment of the kill, or a later one; none may stand still. Any of these
failing ends the soak with exit status 1. Needs the ``dev`` extra; about half a minute a kill on two free cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

KINDS = ("worker", "raylet", "driver", "proxy")
STEPS = 240
SAVE_EVERY = 6
KILLS_PER_RUN = 10
MOMENTS = ("upload", "steps")
STILL_S = 180.0
"""Longest time without a new step; a killed raylet is noticed after its missed heartbeats, about 30 s."""


@dataclass(slots=True)
class Kill:
    """One kill and what followed.

    Attributes:
        run: name of the run.
        kind: what was killed.
        moment: "upload" if a checkpoint was half on the storage, "start" if the run was starting again after another
            kill, else "steps".
        step: last step the log had shown.
        complete: step of the newest complete checkpoint at that moment; 0 if there was none.
        resumed: step from which the run went on; None where nothing had to restart.
        lost: steps done again because of the kill.
        seconds: until the run went on with a step of its own.
    """

    run: str
    kind: str
    moment: str
    step: int
    complete: int
    resumed: int | None = None
    lost: int = 0
    seconds: float = 0.0


class SoakError(Exception):
    """A promise was broken."""


class Storage:
    """The storage server, the proxy in front of it, and what lies on it, seen past the proxy."""

    def __init__(self, scratch: Path) -> None:
        import logging

        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request otherwise
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.upstream = f"http://{host}:{port}"
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=self.upstream)
        self._client.create_bucket(Bucket="soak")
        self._proxy: subprocess.Popen[str] | None = None
        self._port = 0
        self._log = scratch / "proxy.log"
        self.start_proxy()
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self._port}"

    def start_proxy(self) -> None:
        """Start it, at the port that it had."""
        words = [sys.executable, "-m", "tests.fault_proxy", "--upstream", self.upstream, "--port", str(self._port)]
        words += ["--fail", "0"]
        self._proxy = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, stderr=self._log.open("a"))
        assert self._proxy.stdout is not None
        line = self._proxy.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise SoakError(f"the proxy did not start: {line or self._log.read_text()}")
        self._port = int(found[1])

    def kill_proxy(self) -> None:
        """End it without warning."""
        assert self._proxy is not None
        self._proxy.kill()
        self._proxy.wait()

    def stop(self) -> None:
        """End both."""
        self.kill_proxy()
        self._server.stop()

    def read(self, key: str) -> bytes | None:
        """An object's bytes; None if it is not there."""
        try:
            return self._client.get_object(Bucket="soak", Key=key)["Body"].read()  # type: ignore[no-any-return]
        except self._client.exceptions.NoSuchKey:
            return None

    def checkpoints(self, run: str) -> tuple[int, bool]:
        """``(step of the newest complete checkpoint, whether a newer one is half there)``.

        Complete means here: the run has said so in ``checkpoints.json``, and every file of every rank's list is there
        with its size.
        """
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket="soak", Prefix=f"runs/{run}/step_")
        for page in pages:
            for item in page.get("Contents", []):
                _, _, folder, name = item["Key"].split("/", 3)
                sizes[folder][name] = item["Size"]
        register = self.read(f"runs/{run}/checkpoints.json") or b"{}"
        newest, partial = 0, False
        for folder in sorted(sizes):
            step, ranks = map(int, re.match(r"step_(\d+)-w(\d+)", folder).groups())  # type: ignore[union-attr]
            lists = [self.read(f"runs/{run}/{folder}/files-{rank:05d}.json") for rank in range(ranks)]
            whole = all(
                text is not None
                and all(sizes[folder].get(name) == entry["bytes"] for name, entry in json.loads(text).items())
                for text in lists
            )
            if not whole:
                partial = True
            elif folder.encode() in register:
                newest, partial = max(newest, step), False
        return newest, partial


class Machines:
    """A Ray cluster of two nodes on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
        )
        os.environ["RAY_ADDRESS"] = self._cluster.address
        self.add()

    def add(self) -> None:
        """Start the node that the workers run on."""
        self._node = self._cluster.add_node(num_cpus=2)

    @property
    def raylet(self) -> int:
        """Process of that node's raylet."""
        return int(self._node.all_processes["raylet"][0].process.pid)

    def workers(self) -> list[psutil.Process]:
        """Training workers of that node."""
        found = []
        for process in psutil.Process(self.raylet).children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill_raylet(self) -> None:
        """End the raylet without warning, and take away what is left of its node."""
        os.kill(self.raylet, signal.SIGKILL)
        time.sleep(1.0)
        self._cluster.remove_node(self._node, allow_graceful=False)

    def stop(self) -> None:
        """End every process of the cluster."""
        self._cluster.shutdown()


class Run:
    """A training run from the command line."""

    def __init__(self, name: str, shards: str, clip: str, scratch: Path) -> None:
        self.name = name
        self.log = scratch / f"{name}.log"
        self._words = command(name, shards, clip)
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start it, or start it again with the very same command."""
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self._words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def text(self) -> str:
        """Everything it has said."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def step(self, since: int = 0) -> int:
        """The last step that it has said it has done, in what it said after ``since`` characters."""
        return max((int(number) for number in re.findall(r"step=(\d+)/", self.text()[since:])), default=0)

    def wait_beyond(self, step: int, since: int = 0) -> None:
        """Wait for a step after ``step``, or the end.

        Raises:
            SoakError: it ended badly, or nothing came for `STILL_S` seconds.
        """
        deadline = time.monotonic() + STILL_S
        seen = 0
        while (now := self.step(since)) <= step and not self.ended():
            if now > seen:
                seen, deadline = now, time.monotonic() + STILL_S
            if time.monotonic() > deadline:
                raise SoakError(f"{self.name} stood still for {STILL_S:.0f} s:\n{self.text()[-3000:]}")
            time.sleep(0.1)

    def ended(self) -> bool:
        """Whether it is done.

        Raises:
            SoakError: it ended badly.
        """
        status = self.process.poll()
        if status not in (None, 0):
            raise SoakError(f"{self.name} ended with status {status}:\n{self.text()[-3000:]}")
        return status == 0


def command(name: str, shards: str, clip: str) -> list[str]:
    """Two workers, ZeRO 2, fp32, dropout on: everything that a resume has to bring back."""
    options = {
        "name": name,
        "storage": "s3://soak/runs",
        "data.train": shards,
        "data.loader-workers": 0,
        "data.virtual-streams": 4,
        "model.clip": clip,
        "model.max-frames": 2,
        "training.global-batch": 8,
        "training.epochs": 1000,
        "training.max-steps": STEPS,
        "training.num-workers": 2,
        "training.zero-stage": 2,
        "training.precision": "fp32",
        "training.log-every": 1,
        "training.max-failures": -1,
        "training.wait-for-nodes-s": 120,
        "checkpoint.every-steps": SAVE_EVERY,
    }
    return [sys.executable, "-m", "glscl", "train", *(f"--{key}={value}" for key, value in options.items())]


def write_inputs(scratch: Path) -> tuple[str, str]:
    """A small shard set and a small architecture; returns their addresses."""
    from glscl.data.build import Encoding
    from glscl.data.prepare import build_from_annotations
    from glscl.data.toy.render import write_toy

    write_toy("toy_clips", "train", 40, 0, str(scratch / "raw"), processes=2)
    shards = str(scratch / "shards")
    build_from_annotations(
        "jsonl",
        str(scratch / "raw" / "annotations.jsonl"),
        "train",
        str(scratch / "raw" / "videos"),
        shards,
        domain="toy_clips",
        samples_per_shard=10,
        encoding=Encoding(),
        workers=0,
    )
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = scratch / "soak-clip.json"
    clip.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    return shards, str(clip)


def disturb(run: Run, kind: str, moment: str, chance: random.Random, place: Storage, machines: Machines) -> Kill:
    """Wait for the moment, kill, and start again what was killed."""
    if moment == "upload":
        deadline = time.monotonic() + STILL_S
        while not place.checkpoints(run.name)[1] and not run.ended() and time.monotonic() < deadline:
            time.sleep(0.02)
    else:
        time.sleep(chance.uniform(2.0, 15.0) if moment == "start" else chance.uniform(0.0, 4.0))
    step = run.step()
    if kind == "worker":
        if workers := machines.workers():
            chance.choice(workers).kill()
    elif kind == "raylet":
        machines.kill_raylet()
    elif kind == "driver":
        run.process.kill()
        run.process.wait()
    else:
        place.kill_proxy()
    complete, partial = place.checkpoints(run.name)
    kill = Kill(run.name, kind, "upload" if partial and moment != "start" else moment, step, complete)
    if kind == "raylet":
        time.sleep(chance.uniform(0.0, 3.0))
        machines.add()
    elif kind == "driver":
        run.start()
    elif kind == "proxy":
        time.sleep(chance.uniform(0.5, 4.0))
        place.start_proxy()
    return kill


def watch(run: Run, kills: Sequence[Kill], since: int) -> None:
    """Wait until the run has gone on after these kills, and note where from.

    Args:
        run: the run.
        kills: one, or two of which the second hit the restart after the first.
        since: characters that it had said before.

    Raises:
        SoakError: it stood still, or went back further than it had to.
    """
    started = time.monotonic()
    restarts = any(kill.kind != "proxy" for kill in kills)
    deadline = started + STILL_S
    while restarts and "resumed step=" not in run.text()[since:] and not run.ended():
        if time.monotonic() > deadline:
            raise SoakError(f"{run.name} did not resume within {STILL_S:.0f} s:\n{run.text()[-3000:]}")
        time.sleep(0.1)
    found = [int(step) for step in re.findall(r"resumed step=(\d+)", run.text()[since:])]
    if found:
        since = run.text().rindex("resumed step=")
    run.wait_beyond(found[-1] if found else kills[-1].step, since)
    for kill in kills:
        kill.seconds = round(time.monotonic() - started, 1)
        if found and kill.kind != "proxy":
            kill.resumed = found[-1]
            kill.lost = max(0, kill.step - found[-1])
        if found and min(found) < kill.complete:
            raise SoakError(f"{run.name} resumed at step {min(found)} where step {kill.complete} was complete")


@contextmanager
def running() -> Iterator[tuple[Path, Storage, Machines]]:
    """Storage and cluster, ended with the block."""
    scratch = Path(tempfile.mkdtemp(prefix="glscl-soak-"))
    place = Storage(scratch)
    try:
        machines = Machines()
        try:
            yield scratch, place, machines
        finally:
            machines.stop()
    except SoakError:
        print(f"soak: logs of all runs are in {scratch}")
        raise
    finally:
        place.stop()
    shutil.rmtree(scratch)


def soak(kills: int, seed: int, output: Path) -> tuple[list[Kill], int]:
    """Run it; returns the kills and how many runs were compared.

    Raises:
        SoakError: a promise was broken.
    """
    chance = random.Random(seed)
    done: list[Kill] = []
    runs = 0
    with running() as (scratch, place, machines), output.open("w", encoding="utf-8") as file:
        shards, clip = write_inputs(scratch)
        reference = Run("undisturbed", shards, clip, scratch)
        while not reference.ended():
            reference.wait_beyond(reference.step())
        expected = weights(place, reference.name)
        while len(done) < kills:
            run = Run(f"disturbed-{runs:02d}", shards, clip, scratch)
            while not place.checkpoints(run.name)[0]:
                run.wait_beyond(run.step())
            plan = [kind for kind in KINDS for _ in range(-(-KILLS_PER_RUN // len(KINDS)))]
            chance.shuffle(plan)
            number = 0
            while number < KILLS_PER_RUN and len(done) < kills and run.step() < STEPS - 2 * SAVE_EVERY:
                said = len(run.text())
                group = [disturb(run, plan[number], MOMENTS[number % len(MOMENTS)], chance, place, machines)]
                if group[0].kind == "driver" and number + 1 < KILLS_PER_RUN:
                    group.append(disturb(run, plan[number + 1], "start", chance, place, machines))
                number += len(group)
                watch(run, group, said)
                for kill in group:
                    done.append(kill)
                    file.write(json.dumps(asdict(kill)) + "\n")
                    print(f"{len(done):3d}/{kills} {kill}", flush=True)
                file.flush()
            while not run.ended():
                run.wait_beyond(run.step())
            runs += 1
            if weights(place, run.name) != expected:
                raise SoakError(f"{run.name} ended with other weights than the undisturbed run")
            print(f"{run.name}: weights as undisturbed", flush=True)
    return done, runs


def weights(place: Storage, run: str) -> str:
    """SHA-256 of the model that a finished run has saved."""
    data = place.read(f"runs/{run}/model/weights.safetensors")
    if data is None:
        raise SoakError(f"{run} saved no model")
    return hashlib.sha256(data).hexdigest()


def table(done: list[Kill]) -> str:
    """What is committed: one row per kind of kill."""
    lines = [
        "| killed | times | in mid-upload | in mid-restart | steps done again: mean, most "
        "| seconds until it went on: median, most |",
        "|---|---|---|---|---|---|",
    ]
    for kind in (*KINDS, "all"):
        rows = [kill for kill in done if kind in (kill.kind, "all")]
        if not rows:
            continue
        lost = [kill.lost for kill in rows if kill.resumed is not None]
        seconds = sorted(kill.seconds for kill in rows)
        cells: list[Any] = [
            kind,
            len(rows),
            sum(kill.moment == "upload" for kill in rows),
            sum(kill.moment == "start" for kill in rows),
            f"{sum(lost) / len(lost):.1f}, {max(lost)}" if lost else "none",
            f"{seconds[len(seconds) // 2]:.0f}, {seconds[-1]:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Soak, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("soak.jsonl"), help="one line per kill")
    options = parser.parse_args()
    try:
        done, runs = soak(options.kills, options.seed, options.output)
    except SoakError as error:
        print(f"soak: FAILED {error}")
        return 1
    print(table(done))
    print(f"soak: OK {len(done)} kills, {runs} runs ended with the undisturbed run's weights, none stood still")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
