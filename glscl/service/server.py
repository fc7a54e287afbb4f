"""`glscl serve` in one process: opens the indexes, listens, and ends when a signal asks it to."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver

import uvicorn
from starlette.types import ASGIApp

from glscl.errors import BrokenRunError, UserError
from glscl.service.app import create_app
from glscl.service.decoding import ClipLimits
from glscl.service.guard import names_of
from glscl.service.library import Library, LocalPartition
from glscl.service.metrics import Meters
from glscl.service.options import Limits, Serve
from glscl.service.partition import Partition
from glscl.system.stopping import deferred

KEEP_ALIVE_S = 15
END_S = 10
"""Seconds that requests may take on when the server ends."""


def name_libraries(words: Sequence[str]) -> dict[str, list[str]]:
    """The folders of every library, by the name that it is given: ``NAME=FOLDER,FOLDER``, or the first folder's.

    Raises `UserError`: none, or two of one name.
    """
    libraries: dict[str, list[str]] = {}
    for word in words:
        name, _, rest = word.rpartition("=") if "=" in word.split("/")[0] else ("", "", word)
        folders = [folder for folder in rest.split(",") if folder]
        if not folders:
            raise UserError(f"'{word}' names no index; give FOLDER or NAME=FOLDER")
        name = name or os.path.basename(os.path.normpath(folders[0])).removesuffix(".index")
        if name in libraries:
            raise UserError(f"two indexes are called '{name}'; name one of them: other-name={word}")
        libraries[name] = folders
    if not libraries:
        raise UserError("`glscl serve` takes one index or more: folders that `glscl index build` wrote")
    return libraries


def open_partition(folder: str, name: str, device: str, limits: Limits) -> Partition:
    """Open an index for the service. Raises `UserError`: there is none, or it is damaged."""
    from glscl.index import open_index

    return Partition(open_index(folder, device=device), name, ClipLimits(limits.decode_s, limits.upload_seconds))


def serve(options: Serve) -> str:
    """Serve until a signal; returns the verdict. Raises `UserError`: an index, or the address cannot be listened at."""
    libraries = name_libraries(options.indexes)
    meters, limits = Meters(), options.limits
    listening = listen(options.host, options.port)
    forkserver.ensure_running()  # while this process has no threads yet
    opened: list[Library] = []
    for name, folders in libraries.items():
        partitions = [open_partition(folder, name, options.device, limits) for folder in folders]
        opened.append(Library(name, [LocalPartition(one, limits.clips) for one in partitions], limits, meters))
    app = create_app(opened, limits, meters, names_of(options.host, options.allowed_hosts), write_line)
    with deferred() as asked, running(app, listening) as server:
        print(f"{', '.join(libraries)} at {address_of(listening)} (Ctrl-C ends it)", flush=True)
        while not asked() and server.thread.is_alive():
            server.thread.join(0.1)
        if not asked():
            raise BrokenRunError("the server has ended by itself; its messages above say why")
        ended_by = signal.Signals(asked()).name
    count = server.requests
    return f"{count} request{'' if count == 1 else 's'} answered; ended by {ended_by}"


class Server:
    """A running server: its thread, and how many requests it has answered."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,  # its warnings and errors go to standard error
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=END_S,
            h11_max_incomplete_event_size=32 << 10,
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._server.run, args=([listening],), name="server", daemon=True)

    @property
    def started(self) -> bool:
        """Whether it answers."""
        return self._server.started

    @property
    def requests(self) -> int:
        """Answered since its start."""
        return self._server.server_state.total_requests

    def end(self) -> None:
        """Take no more connections, answer what has begun, and return when that is done."""
        self._server.should_exit = True
        self.thread.join(END_S + 5)


@contextmanager
def running(app: ASGIApp, listening: socket.socket) -> Iterator[Server]:
    """Serve in this block, in a thread: signals belong to the main one. Raises `BrokenRunError`: it does not start."""
    server = Server(app, listening)
    server.thread.start()
    try:
        while not server.started:
            server.thread.join(0.02)
            if not server.thread.is_alive():
                raise BrokenRunError("the server did not start; its messages above say why")
        yield server
    finally:
        server.end()


def address_of(listening: socket.socket) -> str:
    """The address of the page."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def write_line(line: str) -> None:
    """Print a line of the log."""
    print(line, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `UserError`: the address is taken, or none of this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be listened at ({error.strerror or error}); choose another --port"
        ) from None
