"""What may be given as a video, and how it is read: files, bytes, arrays, decoders, features of frames."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glscl.data.features import FeatureSampling, check_array, load_array, take_rows
from glscl.data.limits import VideoError
from glscl.data.loader import explain_dead_loaders, start_loader_worker
from glscl.data.video import Clip, FrameSampling, load_clip
from glscl.data.video.arrays import FrameDecoder, Frames, take_decoded, take_frames
from glscl.errors import StorageError, UserError
from glscl.system import storage

ARRAY, SAFETENSORS = ".npy", ".safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """A part of a video: what is between two seconds of it.

    Attributes:
        source: the whole video.
        start: first second; None is the beginning.
        end: last second; None is the end.

    Raises:
        UserError: features, which have no seconds, or seconds that are none.
    """

    source: str | os.PathLike[str] | bytes | Frames | FrameDecoder
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        edges = [edge for edge in (self.start, self.end) if edge is not None]
        if not all(math.isfinite(edge) and edge >= 0 for edge in edges) or edges != sorted(edges):
            raise UserError(f"a moment from {self.start} to {self.end}: seconds, the first not after the last")


VideoSource: TypeAlias = (
    str | os.PathLike[str] | bytes | Frames | FrameDecoder | Moment | npt.NDArray[np.floating] | Tensor
)
"""A video: the path or s3:// address of its file, the file's bytes, decoded `Frames`, a decoder, a `Moment` of one of
these; or features of its frames (N, D) by the model's own towers, as an array, a ``.npy`` file, or a ``.safetensors``
file with a tensor ``frames``."""


@dataclass(frozen=True, slots=True)
class Samplings:
    """What is taken of a video, and of features of its frames."""

    frames: FrameSampling
    features: FeatureSampling


def name_of(source: VideoSource, number: int) -> str:
    """A video's path as it was given, or its number where it has none."""
    inner = source.source if isinstance(source, Moment) else source
    return os.fspath(inner) if isinstance(inner, str | os.PathLike) else str(number)


def holds_features(source: VideoSource) -> bool:
    """Whether a source is features of frames."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source).lower().endswith((ARRAY, SAFETENSORS))
    return isinstance(source, np.ndarray | Tensor)


def read_video(source: VideoSource, samplings: Samplings) -> Clip:
    """Read what a model is given of a video. Raises `UserError` or `VideoError`: what is wrong with it."""
    if isinstance(source, np.ndarray | Tensor):
        return _take_features(source, samplings.features)
    if holds_features(source):
        return _read_features(os.fspath(source), samplings.features)  # type: ignore[arg-type]
    start, end = (source.start, source.end) if isinstance(source, Moment) else (None, None)
    inner = source.source if isinstance(source, Moment) else source
    if isinstance(inner, Frames):
        return take_frames(inner, samplings.frames, start, end)
    if isinstance(inner, str | os.PathLike):
        return load_clip(read_file(os.fspath(inner)), samplings.frames, start, end)
    if isinstance(inner, bytes | bytearray | memoryview):
        return load_clip(bytes(inner), samplings.frames, start, end)
    if isinstance(inner, FrameDecoder):
        return take_decoded(inner, samplings.frames, start, end)
    raise UserError(
        f"a {type(inner).__name__} is no video: give a path, bytes, glscl.Frames(array, fps=...), a decoder, or "
        f"features of frames"
    )


def read_file(path: str) -> bytes:
    """Bytes of a file, local or s3://. Raises `UserError`: it is not there, or cannot be read."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise UserError("no such file") from None
    except StorageError:
        raise
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or type(error).__name__})") from None


def _take_features(array: npt.NDArray[np.floating] | Tensor, sampling: FeatureSampling) -> Clip:
    values = array.detach().float().cpu().numpy() if isinstance(array, Tensor) and array.is_floating_point() else array
    if str(values.dtype).removeprefix("torch.") == "uint8" and values.ndim == 4:
        raise UserError("an array of pictures needs their times: glscl.Frames(array, fps=...) or times=...")
    return Clip(take_rows(check_array(np.asarray(values)), sampling), 0)


def _read_features(path: str, sampling: FeatureSampling) -> Clip:
    """Features of frames in a file, as others publish them or as a sample of a feature shard holds them."""
    data = read_file(path)
    if path.lower().endswith(ARRAY):
        return Clip(take_rows(load_array(data), sampling), 0)
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise VideoError(f"no safetensors file ({str(error)[:60]})") from None
    if "frames" not in tensors:
        raise VideoError("a safetensors file without a tensor named frames")
    return _take_features(tensors["frames"], sampling)


class _Reader(Dataset["Clip | UserError"]):
    """The clips of videos, or what is wrong with one, and with which."""

    def __init__(self, sources: Sequence[VideoSource], samplings: Samplings) -> None:
        self.sources, self.samplings = sources, samplings

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, number: int) -> Clip | UserError:
        source = self.sources[number]
        which = name_of(source, number)
        place = f"video {number}" + ("" if which == str(number) else f" ({which})")
        try:
            return read_video(source, self.samplings)
        except VideoError as error:
            what = "cannot be used" if holds_features(source) else "cannot be decoded"
            return UserError(f"{place} {what}: {error}")
        except UserError as error:
            return UserError(f"{place}: {error}")


def read_videos(sources: Sequence[VideoSource], samplings: Samplings, loader_workers: int = 0) -> Iterator[Clip]:
    """Read videos in order, with so many processes; 0 reads them in this one, where a broken codec may take it down.

    Raises `UserError`: which video cannot be used, and why; `BrokenRunError`: a decoding process died.
    """
    reader = _Reader(sources, samplings)
    if not loader_workers or len(sources) < 2:
        items: Iterator[Clip | UserError] = (reader[number] for number in range(len(sources)))
    else:
        loader: DataLoader[Clip | UserError] = DataLoader(
            reader,
            batch_size=None,
            num_workers=min(loader_workers, len(sources)),
            worker_init_fn=start_loader_worker,
            generator=torch.Generator(),
        )
        items = explain_dead_loaders(loader, None)
    for item in items:
        if isinstance(item, UserError):
            raise item
        yield item
