"""Identity of a process: its number and its start, which neither a reused number nor a clock that jumps can confuse."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil


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
    with suppress(OSError):  # not Linux: the host's name has to do
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}"
