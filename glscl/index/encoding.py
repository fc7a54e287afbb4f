"""Encode the videos of a library, in this process or with Ray Data: decoding and encoding apart, in batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from glscl.data.clips import Sampling
from glscl.data.features import FeatureSampling
from glscl.data.limits import VideoError
from glscl.errors import UserError
from glscl.evaluation.embed import to_cpu
from glscl.index.layout import Cutting, Precision
from glscl.index.library import Item
from glscl.index.reading import Segment, describe_problem, read_segments
from glscl.index.vectors import Array, to_arrays
from glscl.retrieval.model import RetrievalModel, load
from glscl.system.nodes import Share

_NONE = -1.0
"""Second of a frame that is not there, on the way through Ray Data, whose arrays are of one shape."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is done to every video.

    Attributes:
        model: folder of the model.
        sampling: what is taken of a segment.
        cutting: how videos become segments.
        precision: in which vectors are stored.
        batch_size: segments encoded at once.
    """

    model: str
    sampling: Sampling
    cutting: Cutting
    precision: Precision
    batch_size: int


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A segment as it is stored; or, with a ``problem``, a video that cannot be used.

    Attributes:
        video: number of its video among those that are encoded.
        start: first second.
        end: last second.
        times: second of every frame.
        arrays: what the head keeps of it, without a leading dimension.
        problem: why the video cannot be used.
    """

    video: int
    start: float = 0.0
    end: float = 0.0
    times: tuple[float, ...] = ()
    arrays: dict[str, Array] | None = None
    problem: str = ""


def make_sampling(model: RetrievalModel, features: bool) -> Sampling:
    """What a model takes of a segment; ``features`` of its own towers, which stand in place of videos."""
    if features:
        towers = model.retriever.towers
        padding = towers.encode_padding().cpu()
        return FeatureSampling(model.card.model.max_frames, 0, towers.width, padding=padding)
    return model.card.sampling(model.retriever.frame_size)


def read_items(items: Iterable[tuple[int, Item]], job: Job) -> Iterator[tuple[int, Segment | str]]:
    """The segments of each video by its number, or why it cannot be used."""
    for number, item in items:
        try:
            for some in read_segments(item, job.sampling, job.cutting):
                yield from ((number, segment) for segment in some)
        except (VideoError, UserError) as error:
            yield number, describe_problem(error)


@torch.no_grad()
def encode_segments(model: RetrievalModel, frames: torch.Tensor, mask: torch.Tensor, job: Job) -> dict[str, Array]:
    """What is stored of B segments, frames (B, F, 3, S, S) or features (B, F, D), with their mask (B, F)."""
    cache = model.retriever("video", frames.to(model.device), mask.to(model.device))
    return to_arrays(to_cpu(cache), job.precision)


def encode_here(model: RetrievalModel, items: Sequence[Item], job: Job) -> Iterator[EncodedSegment]:
    """Encode in this process, where a codec that crashes takes it down."""
    waiting: list[tuple[int, Segment]] = []
    for number, segment in read_items(enumerate(items), job):
        if isinstance(segment, str):
            yield from _encode(model, waiting, job)
            waiting = []
            yield EncodedSegment(number, problem=segment)
            continue
        waiting.append((number, segment))
        if len(waiting) == job.batch_size:
            yield from _encode(model, waiting, job)
            waiting = []
    yield from _encode(model, waiting, job)


def _encode(model: RetrievalModel, segments: list[tuple[int, Segment]], job: Job) -> Iterator[EncodedSegment]:
    if not segments:
        return
    frames, mask = (torch.stack([getattr(segment, name) for _, segment in segments]) for name in ("frames", "mask"))
    arrays = encode_segments(model, frames, mask, job)
    for row, (number, segment) in enumerate(segments):
        own = {name: array[row] for name, array in arrays.items()}
        yield EncodedSegment(number, segment.start, segment.end, segment.times, own)


def encode_with_ray(items: Sequence[Item], job: Job, share: Share) -> Iterator[EncodedSegment]:
    """Encode with Ray Data, which must be connected: tasks decode, actors with the model encode, in order.

    Raises `UserError`: as one of them raises, storage that fails for instance.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = [{"video": number, "item": json.dumps(asdict(item))} for number, item in enumerate(items)]
    decode = _Decode(job)
    decoded = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // 16)).map_batches(
        lambda batch: decode(batch), batch_size=4, num_cpus=1
    )
    encoded = decoded.map_batches(
        _Encode,
        fn_constructor_args=(job, share.use_gpu),
        batch_size=job.batch_size,
        concurrency=share.workers,
        num_cpus=1,
        num_gpus=1 if share.use_gpu else None,
    )
    for row in encoded.iter_rows():
        arrays = {name[2:]: np.asarray(value) for name, value in row.items() if name.startswith("t.")}
        times = tuple(float(time) for time in row["times"] if time != _NONE)
        yield EncodedSegment(int(row["video"]), float(row["start"]), float(row["end"]), times, arrays, row["problem"])


Batch = dict[str, npt.NDArray[np.generic]]


class _Decode:
    """The task that decodes; a video that cannot be used becomes one row of padding with its problem."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: Batch) -> Batch:
        sampling = self.job.sampling
        pairs = zip(batch["video"], batch["item"], strict=True)
        items = [(int(number), _item(str(text))) for number, text in pairs]
        rows = list(read_items(items, self.job))
        frames = torch.zeros(len(rows), sampling.max_frames, *sampling.frame_shape, dtype=sampling.dtype)
        mask = torch.zeros(len(rows), sampling.max_frames, dtype=torch.bool)
        times = np.full((len(rows), sampling.max_frames), _NONE)
        edges = np.zeros((len(rows), 2))
        problems = []
        for row, (_, segment) in enumerate(rows):
            problems.append(segment if isinstance(segment, str) else "")
            if isinstance(segment, Segment):
                frames[row], mask[row] = segment.frames, segment.mask
                times[row, : len(segment.times)] = segment.times
                edges[row] = segment.start, segment.end
        return {
            "video": np.array([number for number, _ in rows]),
            "problem": np.array(problems, dtype=object),
            "start": edges[:, 0],
            "end": edges[:, 1],
            "times": times,
            "frames": frames.numpy(),
            "mask": mask.numpy(),
        }


class _Encode:
    """The actor that holds the model."""

    def __init__(self, job: Job, use_gpu: bool) -> None:
        self.job, self.model = job, load(job.model, "cuda" if use_gpu else "cpu")

    def __call__(self, batch: Batch) -> Batch:
        frames, mask = (torch.from_numpy(np.array(batch.pop(name))) for name in ("frames", "mask"))
        arrays = encode_segments(self.model, frames, mask, self.job)
        return batch | {f"t.{name}": array for name, array in arrays.items()}


def _item(text: str) -> Item:
    values = json.loads(text)
    return Item(**values | {"captions": tuple(values["captions"])})
