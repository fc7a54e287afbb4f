"""Ownership of a directory: one command at a time writes into it, and its heartbeat shows that it lives.

Rules:

1. A claim is a file ``owner/NNNNNNNN.json``, which `exclusive.create` gives to one process only. The highest number is
   the owner. Claims are never deleted: a number that was used once is never free again.
2. The owner renews its claim every `PERIOD_S` seconds, from a thread, and marks it as released at its end.
3. A second command is refused while the owner lives. On the same machine the process table decides; a process number
   that another process has got since counts as gone. From another machine the claim is watched: an owner whose claim
   changes is alive, one whose claim has not changed for `LIMIT_S` seconds is gone. The age of the claim by the
   storage's clock shortens the wait, but never below three heartbeats, because clocks jump.
4. An owner that was taken over (it was frozen, or cut off) finds a number higher than that of its claim. It looks with
   every heartbeat, and `Fence.check` looks before anything is deleted, replaced or registered, in every process. Only a
   process that is frozen between that look and the write after it is not stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from glscl.errors import UserError
from glscl.system import exclusive, storage
from glscl.system.exclusive import Seen

FOLDER = "owner"
PERIOD_S = 5.0
LIMIT_S = 60.0  # seconds without a heartbeat after which an owner on another machine counts as gone
LEAST_WATCH_S = 3 * PERIOD_S
RELEASE_S = 10.0
ANOTHER_NAME = "choose another --name"
_POLL_S = 1.0


def start_of(pid: int) -> str | None:
    """When a process began, counted from the start of the machine; None for a process that is gone or a zombie.

    psutil's ``create_time`` moves when the wall clock is set; this does not.
    """
    try:
        # after the last bracket, because a process may have brackets and spaces in its name
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if os.path.isdir("/proc/self"):
            return None
    try:  # no /proc on this system
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def machine_id() -> str:
    """Name of the place where a process number means one process: host, boot and process namespace (a container's)."""
    boot = namespace = ""
    with contextlib.suppress(OSError):  # not Linux: the host's name has to do
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}"


class TakenOverError(UserError):
    """Another command owns the directory now."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of a claim's file."""

    token: str  # unique to this claim
    command: str  # in words, for people; so is ``host``
    host: str
    machine: str  # where ``pid`` means a process (`machine_id`)
    pid: int
    started: str  # when that process began (`start_of`)
    beat: int = 0  # number of heartbeats, where they are counted in the file
    released: bool = False  # whether the owner has ended in order

    @classmethod
    def parse(cls, data: bytes) -> Claim | None:
        """Read a claim's file; None if it is incomplete, because it is being written."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def to_bytes(self) -> bytes:
        """The claim as JSON."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def __str__(self) -> str:
        return f"{self.command} on host {self.host}, pid {self.pid}"


@dataclass(frozen=True, slots=True)
class Fence:
    """Checks in any process of a command whether its claim (``number``, ``token``) on a directory still holds."""

    directory: str
    number: int
    token: str

    def check(self) -> None:
        """Read the claim from the storage; a `TakenOverError` says that the directory belongs to another command."""
        newer = exclusive.read(_address(self.directory, self.number + 1))
        mine = exclusive.read(_address(self.directory, self.number)) if newer is None else None
        claim = Claim.parse((newer or mine or Seen(b"")).data)
        if mine is not None and claim is not None and claim.token == self.token:
            return
        whom = f"was taken over by {claim}" if claim else "is no longer this command's (its owner/ folder is gone)"
        raise TakenOverError(
            f"{self.directory} {whom}, while this command was not heard of; this command ends and changes nothing there"
        )


class Owner:
    """An owned directory, with the thread that renews its claim. Other processes are given its ``fence``."""

    def __init__(self, fence: Fence, claim: Claim) -> None:
        self.fence = fence
        self._claim = claim
        self._where = _address(fence.directory, fence.number)
        self._lost: TakenOverError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="glscl-owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the last heartbeat's `TakenOverError`, if there was one; costs nothing."""
        if self._lost is not None:
            raise self._lost

    def _renew(self) -> None:
        beat, failing = 0, False
        while not self._ended.wait(PERIOD_S):
            beat += 1
            try:
                self.fence.check()
                exclusive.renew(self._where, replace(self._claim, beat=beat).to_bytes())
                failing = False
            except TakenOverError as error:
                self._lost = error
                return
            except Exception as error:  # the storage is away: what has to be written there says so itself
                if not failing:
                    print(
                        f"{self.fence.directory}: no heartbeat can be written ({_one_line(error)}); after "
                        f"{LIMIT_S:g} s another machine may take over",
                        flush=True,
                    )
                failing = True
        try:
            self.fence.check()
            storage.write_bytes(self._where, replace(self._claim, released=True).to_bytes())
        except TakenOverError as error:
            self._lost = error
        except Exception as error:
            print(f"{self._where}: not released ({_one_line(error)})", flush=True)

    def release(self) -> None:
        """End the heartbeat and free the directory, unless storage does not answer: this process will be gone."""
        self._ended.set()
        self._thread.join(RELEASE_S)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def owned(directory: str, advice: str, *, patience_s: float = 0.0) -> Iterator[Owner]:
    """Own a directory, made if it does not exist, in this block; a `UserError` says that another command owns it.

    A living owner that is expected to end is waited for. The ``advice`` says what else a user can do, as in "choose
    another --name".
    """
    owner = _claim(storage.resolve(directory), advice, patience_s)
    try:
        yield owner
    finally:
        owner.release()


def _command() -> str:
    """This process's command line without its options, which may hold secrets."""
    program = os.path.basename(sys.argv[0])
    if program == "default_worker.py":  # Ray's
        return "a run of a study or sweep"
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:3]))
    return " ".join(["glscl" if program == "__main__.py" else program, *words])


def _claim(directory: str, advice: str, patience_s: float) -> Owner:
    pid = os.getpid()
    mine = Claim(uuid.uuid4().hex, _command(), socket.gethostname(), machine_id(), pid, start_of(pid) or "")
    deadline = time.monotonic() + patience_s
    probe = _OwnerProbe(directory)
    while True:
        number = _newest(directory)
        if number and (reason := probe.find_owner(number)):
            if time.monotonic() >= deadline:
                raise UserError(f"{directory} is in use: {reason}. Wait for its end, end it, or {advice}")
            probe.say(f"waiting for its owner to end: {reason}")
            time.sleep(_POLL_S)
            continue
        if exclusive.create(_address(directory, number + 1), mine.to_bytes()):
            if exclusive.read(_address(directory, number + 2)) is None:
                return Owner(Fence(directory, number + 1, mine.token), mine)
            storage.remove(_address(directory, number + 1))  # of a listing out of date


class _OwnerProbe:
    """Finds out whether the owner of a directory lives."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._printed: set[str] = set()

    def say(self, text: str) -> None:
        """Print it once."""
        if text.partition(",")[0] not in self._printed:
            self._printed.add(text.partition(",")[0])
            print(f"{self._directory}: {text}", flush=True)

    def find_owner(self, number: int) -> str:
        """The owner by this claim and the age of its heartbeat, in words; empty if the directory is free."""
        where = _address(self._directory, number)
        began = time.monotonic()
        first: Seen | None = None
        needed = LIMIT_S
        while True:
            now = time.monotonic()  # before the look: this process too may be frozen
            seen = exclusive.read(where)
            if seen is None:
                return ""  # the directory was deleted
            claim = Claim.parse(seen.data)
            if claim is not None and claim.released:
                return ""
            who = claim or "a command that has just begun"
            if claim is not None and claim.machine == machine_id():
                if start_of(claim.pid) == claim.started:
                    break
                self.say(f"taken over from {who}, whose process is gone")
                return ""
            if first is None:
                first, needed = seen, max(LIMIT_S - max(0.0, exclusive.age_s(where)), LEAST_WATCH_S)
                self.say(f"owned by {who}; up to {needed:.0f} s for a sign of life from there")
            elif seen != first:
                break
            elif now - began >= needed:
                self.say(f"taken over from {who}, which was not heard of for {LIMIT_S:g} s")
                return ""
            time.sleep(_POLL_S)
        return f"{who}, last heartbeat {max(0.0, exclusive.age_s(where)):.0f} s ago"


def _newest(directory: str) -> int:
    """The number of the newest claim, 0 if there is none; also right if a listing is out of date."""
    names = (name.removesuffix(".json") for name in storage.list_names(storage.join(directory, FOLDER)))
    number = max((int(name) for name in names if name.isdecimal()), default=0)
    while exclusive.read(_address(directory, number + 1)) is not None:
        number += 1
    return number


def _address(directory: str, number: int) -> str:
    return storage.join(directory, FOLDER, f"{number:08d}.json")
