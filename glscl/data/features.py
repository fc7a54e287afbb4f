"""Read the features of a sample: all frames, and the texts that a pair or an evaluation needs.

A sample of a feature shard has ``<key>.safetensors`` with three tensors: ``frames`` (N, D), the features of its N
frames; ``texts`` (C, 1 + W, D), of each caption the sentence feature and then those of W tokens; ``token_mask`` (C, W),
true where a token is real. Rows are read where they lie, so a pair costs its own caption only. An array of frame
features alone (``<key>.npy``) is what others published; `glscl encode` adds the texts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glscl.data.feature_facts import FeatureFacts, FeatureNote
from glscl.data.limits import VideoError
from glscl.data.shards import Shard
from glscl.data.video import Clip
from glscl.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NAMES = {"float32": "F32", "bfloat16": "BF16"}  # in safetensors
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "BOOL": torch.bool}
_ARRAY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LENGTH = 8  # bytes before the header of a safetensors file, with its length
_MOST_HEADER = 4096
MOST_ARRAY = 1 << 30  # bytes of an array of frame features


@dataclass(frozen=True, slots=True)
class FeatureSampling:
    """What is taken of a sample that holds features: its frames, and texts of so many words."""

    max_frames: int  # frames at most (F)
    words: int  # W; 0 where only frames are stored
    width: int  # D
    dtype: torch.dtype = torch.float32  # of the memory that they are read into
    padding: Tensor = field(default_factory=lambda: torch.zeros(()))  # (D,), the feature of padding

    @classmethod
    def of(cls, facts: Sequence[FeatureFacts]) -> Self:
        """What is taken of sets that agree in everything but the type of numbers, of which the wider one is taken."""
        first = facts[0]
        wide = any(one.dtype == "float32" for one in facts)
        padding = torch.tensor(first.padding or (0.0,))
        dtype = torch.float32 if wide else torch.bfloat16
        return cls(first.frames, first.words, first.width, dtype, padding)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a frame in a batch."""
        return (self.width,)

    @property
    def text_shape(self) -> tuple[int, ...]:
        """Shape of a caption's features in a batch."""
        return (1 + self.words, self.width) if self.words else (0,)


def read_frames(shard: Shard, position: int, sampling: FeatureSampling, into: Tensor | None = None) -> Clip:
    """Read the frame features of a sample, (N, D), the first of ``into``, if given.

    Raises:
        VideoError: it has none, or they are not what the manifest says.
        UserError: it holds no features, or the tar has become shorter.
    """
    if shard.media[position].is_array:
        frames = _read_array(shard, position, sampling)
        return Clip(frames if into is None else into[: len(frames)].copy_(frames), 0)
    note = _note(shard, position)
    if not 1 <= note.frames <= sampling.max_frames:
        raise VideoError(f"{note.frames} frames where there may be {sampling.max_frames}")
    begin, dtype = _find(shard, position, "frames", (note.frames, sampling.width))
    frames = torch.empty(note.frames, sampling.width, dtype=sampling.dtype) if into is None else into[: note.frames]
    return Clip(_read(shard, position, begin, dtype, frames), note.replaced)


def read_texts(
    shard: Shard, position: int, captions: range, sampling: FeatureSampling, into: Tensor
) -> tuple[Tensor, int]:
    """Read the features of consecutive captions into (C, 1 + W, D).

    Returns their token mask (C, W), and how many of them were cut to W tokens. Raises what `read_frames` does.
    """
    cut = sum(number in captions for number in _note(shard, position).truncated)
    stored, words = len(shard.samples[position].captions), sampling.words
    begin, dtype = _find(shard, position, "texts", (stored, *sampling.text_shape))
    _read(shard, position, begin + captions.start * dtype.itemsize * (1 + words) * sampling.width, dtype, into)
    begin, _ = _find(shard, position, "token_mask", (stored, words))
    mask = shard.read_range(position, begin + captions.start * words, len(captions) * words)
    return torch.from_numpy(np.frombuffer(mask, np.uint8).reshape(len(captions), words) != 0), cut


def describe_arrays(uri: str) -> str:
    """Say what to do with a set that holds arrays of frame features and no texts."""
    return f"{uri}: holds features of frames without those of captions; run `glscl encode --shards` on the set first"


def _note(shard: Shard, position: int) -> FeatureNote:
    """What the annotation says of a sample's features; a `VideoError` that it has none, and why."""
    media = shard.media[position]
    if media.is_array:
        raise UserError(describe_arrays(shard.uri))
    if media.features is None or shard.features is None:
        raise UserError(f"{shard.uri}: samples and manifest do not agree whether they are features; encode them again")
    if media.features.problem:
        raise VideoError(media.features.problem)
    return media.features


def _read(shard: Shard, position: int, begin: int, dtype: torch.dtype, into: Tensor) -> Tensor:
    """Fill a contiguous tensor with numbers of a type; a `VideoError` if some are none."""
    rows = into if into.dtype == dtype else torch.empty(into.shape, dtype=dtype)
    data = shard.read_range(position, begin, rows.nbytes)
    np.copyto(rows.view(torch.uint8).numpy().reshape(-1), np.frombuffer(data, np.uint8))
    _check_finite(rows)
    return rows if rows is into else into.copy_(rows)


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise VideoError("features that are not finite")


def _find(shard: Shard, position: int, name: str, shape: tuple[int, ...]) -> tuple[int, torch.dtype]:
    """First byte of a tensor in its member, and its type; a `VideoError` if it is of another shape or type."""
    length = int.from_bytes(shard.read_range(position, 0, _LENGTH), "little")
    try:
        if not 2 <= length <= _MOST_HEADER:
            raise ValueError
        header: Any = json.loads(shard.read_range(position, _LENGTH, length))
        entry = header[name]
        kind, found, first = str(entry["dtype"]), tuple(entry["shape"]), int(entry["data_offsets"][0])
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        raise VideoError("no safetensors file of features") from None
    if found != shape or first < 0:
        raise VideoError(f"features of another shape ({name} {list(found)[:4]} where {list(shape)} is expected)")
    assert shard.features is not None
    expected = "BOOL" if name == "token_mask" else _NAMES[shard.features.dtype]
    if kind != expected:
        shown = kind if kind.isalnum() and len(kind) <= 8 else "none"
        raise VideoError(f"features of another type ({name} {shown} where {expected} is expected)")
    return _LENGTH + length + first, _TYPES[kind]


def _read_array(shard: Shard, position: int, sampling: FeatureSampling) -> Tensor:
    """At most so many rows of an array of frame features (N, D), those in the middle of equal parts."""
    size = shard.media[position].parts[0][1]
    if size > MOST_ARRAY:
        raise VideoError(f"an array of {size:,} bytes")
    return take_rows(load_array(shard.read(position)), sampling)


def take_rows(frames: npt.NDArray[np.float32], sampling: FeatureSampling) -> Tensor:
    """At most ``max_frames`` of frame features (N, D), those in the middle of equal parts; a `VideoError` if unfit."""
    if frames.shape[1] != sampling.width:
        raise VideoError(f"features of width {frames.shape[1]} where the towers' is {sampling.width}")
    count = min(len(frames), sampling.max_frames)
    rows = torch.from_numpy(frames[[(2 * n + 1) * len(frames) // (2 * count) for n in range(count)]])
    _check_finite(rows)
    return rows


def load_array(data: bytes) -> npt.NDArray[np.float32]:
    """Frame features (N, D) of a ``.npy`` file of strangers; a `VideoError` if they are none."""
    file = io.BytesIO(data)
    try:
        header = _ARRAY_HEADERS[np.lib.format.read_magic(file)]
        shape, by_columns, dtype = header(file)
        array = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")
    except (ValueError, KeyError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError) as error:
        raise VideoError(f"no .npy array ({type(error).__name__})") from None
    return check_array(array)


def check_array(array: object) -> npt.NDArray[np.float32]:
    """An array as frame features (N, D), one feature being one frame; a `VideoError` if it cannot be."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise VideoError(f"an array of {str(kind)[:40]}, not of floating-point numbers")
    frames = array[None] if array.ndim == 1 else array
    if frames.ndim != 2 or not frames.size:
        raise VideoError(f"an array of shape {list(array.shape)[:4]} where frames x width is expected")
    return frames.astype(np.float32)
