"""The machines of a soak: hosts with separate networks, a storage server, a disk that fills, a clock that jumps."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.e2e.hosts import Hosts

HEAD, WORKERS, STORAGE = 0, (1, 2), 3
"""Hosts: the head and driver, one for each of two training workers, the storage server with what watches the soak."""
DISK_MB = 400
BUCKET = "s3://soak"


class SoakError(Exception):
    """A promise was broken."""


class World:
    """Hosts, storage server, disk and clock of one lane; use `world`.

    Args:
        scratch: folder of this lane.
        hosts: entered, none of them started.
    """

    def __init__(self, scratch: Path, hosts: Hosts) -> None:
        self.scratch, self.hosts = scratch, hosts
        self.disk = scratch / "disk"
        self.drivers: list[subprocess.Popen[bytes]] = []
        self._clock = scratch / "clock"
        self.set_clock(0)
        library = scratch / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
        hosts.enter(STORAGE)
        self._serve()
        hosts.environment |= {
            "AWS_ENDPOINT_URL": f"http://{hosts.address(STORAGE)}:{self._port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "OMP_NUM_THREADS": "1",
            "RAY_DEDUP_LOGS": "0",
            "RAY_worker_niceness": "0",  # else whatever else the machine does comes first
            "RAY_memory_monitor_refresh_ms": "0",  # else what else fills the machine's memory ends the runs
            "LD_PRELOAD": str(library),
            "GLSCL_CLOCK": str(self._clock),
        }
        os.environ |= {key: value for key, value in hosts.environment.items() if key.startswith("AWS_")}
        hosts.start(HEAD, cpus=0)
        for host in WORKERS:
            hosts.start(host, cpus=1)

    def _serve(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request otherwise
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self._upstream = f"http://{host}:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self._upstream,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.client.create_bucket(Bucket=BUCKET.removeprefix("s3://"))
        self._port = 0
        self.start_proxy()

    def start_proxy(self) -> None:
        """Start it, at the port that it had."""
        words = [sys.executable, "-m", "tests.fault_proxy", "--upstream", self._upstream, "--port", str(self._port)]
        words += ["--fail", "0", "--host", self.hosts.address(STORAGE)]
        self._proxy = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert self._proxy.stdout is not None
        address = re.search(r"http://[\d.]+:(\d+)", self._proxy.stdout.readline())
        if not address:
            raise SoakError("the proxy did not start")
        self._port = int(address[1])

    def kill_proxy(self) -> None:
        """End it without warning."""
        self._proxy.kill()
        self._proxy.wait()

    def stop(self) -> None:
        """End what is not the hosts'."""
        for driver in self.drivers:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
        self.kill_proxy()
        self._server.stop()

    def set_clock(self, seconds: int) -> None:
        """Let the wall clock of every Python process of the hosts be this far from the real one, from now on."""
        if not self._clock.exists():
            self._clock.write_bytes(struct.pack("q", seconds))
        with self._clock.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("q", seconds))

    def fill_disk(self) -> None:
        """Leave no byte free."""
        with (self.disk / "ballast").open("ab") as file, suppress(OSError):
            while True:
                file.write(b"\0" * (1 << 16))
                file.flush()

    def empty_disk(self) -> None:
        """Remove what `fill_disk` wrote."""
        (self.disk / "ballast").unlink(missing_ok=True)

    def mend_nodes(self) -> None:
        """Start the nodes that have ended, because Ray had given them up or they were killed."""
        for host in WORKERS:
            if not self.hosts.processes(host):
                self.hosts.stop(host)
                self.hosts.start(host, cpus=1)

    def training_workers(self) -> list[psutil.Process]:
        """Processes that train."""
        workers = []
        for host in WORKERS:
            for process in self.hosts.processes(host):
                with suppress(psutil.NoSuchProcess):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        workers.append(process)
        return workers

    def read(self, uri: str) -> bytes | None:
        """A file on the disk, or an object seen past the proxy; None if there is none."""
        if not uri.startswith(BUCKET):
            with suppress(FileNotFoundError):
                return Path(uri).read_bytes()
            return None
        try:
            answer = self.client.get_object(Bucket=BUCKET.removeprefix("s3://"), Key=uri.removeprefix(f"{BUCKET}/"))
        except self.client.exceptions.NoSuchKey:
            return None
        return answer["Body"].read()  # type: ignore[no-any-return]

    def sizes(self, uri: str) -> dict[str, int]:
        """Bytes of what lies under a run directory, by relative name."""
        if not uri.startswith(BUCKET):
            sizes = {}
            for folder, _, names in os.walk(uri):  # unlike Path.rglob, minds no folder that goes meanwhile
                for path in (Path(folder, name) for name in names):
                    with suppress(FileNotFoundError):
                        sizes[str(path.relative_to(uri))] = path.stat().st_size
            return sizes
        prefix = uri.removeprefix(f"{BUCKET}/") + "/"
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET.removeprefix("s3://"), Prefix=prefix
        )
        return {item["Key"].removeprefix(prefix): item["Size"] for page in pages for item in page.get("Contents", [])}

    def checkpoints(self, run: str) -> tuple[int, bool]:
        """``(step of the newest complete checkpoint, whether a newer one is half written)``.

        Complete means here: ``checkpoints.json`` lists it, and every file of every rank's list exists
        with its size.
        """
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        for name, size in self.sizes(run).items():
            if name.startswith("step_"):
                folder, _, rest = name.partition("/")
                sizes[folder][rest] = size
        register = self.read(f"{run}/checkpoints.json") or b"{}"
        newest, partial = 0, False
        for folder in sorted(sizes):
            step, ranks = map(int, re.match(r"step_(\d+)-w(\d+)", folder).groups())  # type: ignore[union-attr]
            lists = [self.read(f"{run}/{folder}/files-{rank:05d}.json") for rank in range(ranks)]
            if not all(
                text is not None
                and all(sizes[folder].get(name) == entry["bytes"] for name, entry in json.loads(text).items())
                for text in lists
            ):
                partial = True
            elif folder.encode() in register:
                newest, partial = max(newest, step), False
        return newest, partial


@contextmanager
def world(name: str) -> Iterator[World]:
    """A world, ended with the block; its folder stays where something went wrong."""
    scratch = Path(tempfile.mkdtemp(prefix=f"glscl-soak-{name}-"))
    disk = scratch / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)], check=True)
    kept = True
    try:
        with Hosts(4, dashboard=True) as hosts:
            place = World(scratch, hosts)
            try:
                yield place
            finally:
                place.stop()
    except BaseException as error:
        print(f"{type(error).__name__}: logs of all runs are in {scratch}", flush=True)
        raise
    else:
        kept = False
    finally:
        deadline = time.monotonic() + 30
        while subprocess.run(["umount", str(disk)], check=False, capture_output=True).returncode:
            if time.monotonic() > deadline:
                subprocess.run(["umount", "--lazy", str(disk)], check=True)
                break
            time.sleep(0.5)
        if not kept:
            shutil.rmtree(scratch)
