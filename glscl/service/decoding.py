"""Strangers' clips are decoded in a process of their own, which a hostile file may take down.

`ClipDecoder` is what a model takes for a video: a decoder that gives the frames shown at some seconds. Each clip has a
new process, forked from one that has imported the decoder. It gives the very frames that the model would take of the
file, so an answer is the same as if the file had been read in the server's process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from glscl.data.loader import start_loader_worker
from glscl.data.video import VideoError
from glscl.data.video.budget import Budget, decoding
from glscl.data.video.decode import PictureReader, lay_down
from glscl.data.video.index import read_index
from glscl.data.video.source import open_video
from glscl.errors import UserError

WALL = 4.0
"""Times the CPU seconds, and ten more: how long the process may take on a busy machine before it is ended."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


@dataclass(frozen=True, slots=True)
class ClipLimits:
    """What one clip may cost: its CPU seconds, and the seconds that it may last."""

    cpu_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """When a video begins and ends, under the names by which decoders say so."""

    begin_stream_seconds: float
    end_stream_seconds: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """Frames, uint8 (N, 3, S, S)."""

    data: Tensor


class ClipDecoder:
    """Frames of a video file, decoded in a process of its own; a context manager.

    Args:
        data: the file.
        size: side S of the square frames, the model's.
        limits: of the clip.

    Raises:
        VideoError: it cannot be decoded, is longer or costs more than it may, or took its process down.
    """

    def __init__(self, data: bytes, size: int, limits: ClipLimits) -> None:
        self._data, self._size, self._limits = data, size, limits
        self.metadata = Span(0.0, 0.0)

    def __enter__(self) -> Self:
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_decode, args=(theirs, self._size, self._limits), daemon=True)
        self._process.start()
        theirs.close()
        try:
            with contextlib.suppress(BrokenPipeError):  # its answer says what happened
                self._connection.send_bytes(self._data)
            span = self._receive()
            assert isinstance(span, Span)
            self.metadata = span
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()
        self._process.close()

    def get_frames_played_at(self, seconds: list[float]) -> Decoded:
        """The frames that a player shows at some seconds. Raises `VideoError`, as the class does."""
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(list(seconds))
        frames = self._receive()
        assert isinstance(frames, np.ndarray)
        return Decoded(torch.from_numpy(frames))

    def _receive(self) -> object:
        try:
            if not self._connection.poll(WALL * self._limits.cpu_s + 10):
                raise VideoError("took too long to decode")
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(timeout=10)
            raise VideoError(f"took its decoder down (exit {self._process.exitcode})") from None
        if isinstance(answer, VideoError):
            raise answer
        return answer


def _decode(connection: Connection, size: int, limits: ClipLimits) -> None:
    """What the process does: say how long the clip is, then give frames until nobody asks any more."""
    start_loader_worker(0)
    seconds = int(2 * limits.cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # native code that asks no budget
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = connection.recv_bytes()
    budget = Budget(limits.cpu_s)
    try:
        with decoding(), open_video(data, budget) as container:
            index = read_index(container, budget)
            begin, end = index.window(None, None)
            if end - begin > limits.duration_s:
                raise VideoError(f"{end - begin:.1f} s long; at most {limits.duration_s:g} s are taken")
            with PictureReader(data, container, index, budget) as reader:
                connection.send(Span(begin, end))
                while (times := _next_times(connection)) is not None:
                    slots = index.select(times)
                    pictures = reader.read(slots, lambda display, frame: display.square(frame, size))
                    connection.send(lay_down([pictures[slot][1] for slot in slots], None).numpy())
    except VideoError as error:
        connection.send(error)


def _next_times(connection: Connection) -> Sequence[float] | None:
    try:
        times: Sequence[float] = connection.recv()
    except EOFError:
        return None
    return times


def explain(error: VideoError | UserError) -> str:
    """What a client is told of a clip that cannot be used."""
    return f"the clip cannot be used: {str(error).rpartition(': ')[2] if isinstance(error, UserError) else error}"
