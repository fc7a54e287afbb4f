"""Ray clusters of several nodes on this machine: plain raylets, or hosts with addresses of their own."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from glscl.system.session import PATIENCE

TOKEN = "token-of-the-end-to-end-test"


class Hosts:
    """A cluster with a head that trains nothing. Everything that was started or made ends with the ``with`` block.

    Args:
        count: network namespaces to make, each with an interface of its own on one switch; 0 leaves everything on the
            machine's loopback. They need root and iproute2.
        dashboard: start one on the head. Ray Train needs it to give back what a killed driver held.
    """

    def __init__(self, count: int = 0, *, dashboard: bool = False) -> None:
        self._folder = tempfile.mkdtemp(prefix="glscl-ray-")  # short: sockets lie in it
        self._count, self._dashboard = count, dashboard
        self._stack = ExitStack()
        self._nodes: dict[int, psutil.Process] = {}
        self._gcs = _free_port() if not count else 6379
        self._name = f"glscl-{os.getpid()}"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": self._folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            **PATIENCE,
            "RAY_ADDRESS": f"{self.address(0)}:{self._gcs}",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }

    def __enter__(self) -> Hosts:
        self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        try:
            if self._count:
                self._connect()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for number in list(self._nodes):
                self.stop(number)

    def address(self, host: int) -> str:
        """Of a host on the switch; of the machine itself without namespaces."""
        return f"10.99.0.{host + 1}" if self._count else "127.0.0.1"

    def inside(self, host: int) -> list[str]:
        """Words before a command that make it run on a host, under its name."""
        if not self._count:
            return []
        return ["ip", "netns", "exec", f"{self._name}-{host}", "unshare", "--uts", "sh", "-c", NAMED, f"host{host}"]

    def start(self, number: int, cpus: int, *, host: int | None = None) -> None:
        """Start a node: number 0 is the head, which has to come first."""
        host = number if host is None else host
        words = ["ray", "start", "--block", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
        words += [f"--node-ip-address={self.address(host)}"]
        if number == 0:
            words += [
                "--head",
                f"--port={self._gcs}",
                f"--include-dashboard={self._dashboard}",
                f"--temp-dir={self._folder}/ray",
                f"--ray-client-server-port={_free_port()}",  # it has no word for none
                "--disable-usage-stats",
            ]
        else:
            words += [f"--address={self.environment['RAY_ADDRESS']}"]
        log = Path(self._folder, f"node-{number}.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.inside(host), *words],
                cwd=self._folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._nodes[number] = psutil.Process(process.pid)
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)

    def lose(self, number: int) -> None:
        """Kill a node's raylet; what the node ran goes with it."""
        family = self._family(number)
        next(process for process in family if process.name() == "raylet").kill()
        _end(family, wait_s=20)

    def stop(self, number: int) -> None:
        """End a node in the ordinary way."""
        family = self._family(number)
        if family:
            family[0].send_signal(signal.SIGTERM)
        _end(family, wait_s=20)

    def cut(self, host: int, *, off: bool) -> None:
        """Take a host's cable out of the switch, or put it back."""
        _ip("-n", f"{self._name}-switch", "link", "set", f"port{host}", "down" if off else "up")

    def enter(self, host: int) -> None:
        """Move this process, and all that it starts from now on, to a host's network. Before it has threads."""
        with open(f"/var/run/netns/{self._name}-{host}", "rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(file.fileno(), NETWORK) == 0, os.strerror(ctypes.get_errno())

    def processes(self, number: int) -> list[psutil.Process]:
        """A node's processes, itself first; none if it has ended by itself."""
        node = self._nodes[number]
        try:
            return [node, *node.children(recursive=True)] if node.status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            return []

    def _family(self, number: int) -> list[psutil.Process]:
        """A node's processes; none if it has ended by itself."""
        try:
            return self.processes(number)
        finally:
            del self._nodes[number]

    def _connect(self) -> None:
        """Namespaces and cables: one for the switch, so that the machine's own network is left alone."""
        switch = f"{self._name}-switch"
        self._namespace(switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for host in range(self._count):
            name = f"{self._name}-{host}"
            self._namespace(name)
            _ip("-n", switch, "link", "add", f"port{host}", "type", "veth", "peer", "name", "wire0", "netns", name)
            _ip("-n", switch, "link", "set", f"port{host}", "master", "switch", "up")
            _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "wire0")
            _ip("-n", name, "link", "set", "wire0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def _namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._stack.callback(_ip, "netns", "delete", name)  # interfaces go with it


NETWORK = 0x40000000  # CLONE_NEWNET
NAMED = 'hostname "$0" && exec "$@"'


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _end(family: list[psutil.Process], wait_s: float) -> None:
    _, alive = psutil.wait_procs(family, timeout=wait_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)
