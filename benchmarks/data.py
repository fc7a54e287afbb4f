"""Measure the way from shards to batches: forms of prepared videos, the loader against bare decoding, resuming.

    python benchmarks/data.py [--videos FOLDER] [--processes 2] [--json FILE]

Builds shard sets of the same videos (8 made here, 12 s of 320 x 240 pixels, or a folder's) in several forms, and reads
up to 12 frames of 224 pixels, one a second. What is compared takes turns, so that a machine that others use slows all
alike; the median turn counts. Prints tables and writes JSON. Linux; two minutes on two free cores.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch

from glscl.data.build import BuildOptions, Encoding, Origin, build_shards
from glscl.data.clips import read_clip
from glscl.data.plan import StreamPlan
from glscl.data.records import Record
from glscl.data.shards import Shard, ShardSet, open_shard_set
from glscl.data.stream import PairStream, make_loader
from glscl.data.video import FrameSampling

FORMS = {
    "original": Encoding(),
    "copy, 3 fps": Encoding(224, 3.0),
    "copy, 1 fps, every frame a keyframe": Encoding(224, 1.0, gop=1),
    "pictures, 1 a second, quality 90": Encoding(224, frames=1.0),
}
REFERENCE = "copy, 3 fps"
SAMPLING = FrameSampling(12, 1.0, 224)
VIDEOS, PER_SHARD, CAPTIONS = 8, 1, 8
BATCH, STREAMS, PREFETCH = 32, 8, 2
PAIRS = 64
"""Pairs decoded of each form in a turn."""
TURNS, BATCHES = 3, 8
STEPS = (0, 1_000, 100_000)


@dataclass(frozen=True)
class Form:
    """A form of prepared videos: videos decoded in a CPU second, against the reference's, and bytes, likewise."""

    name: str
    videos_per_cpu_second: float
    speed: float
    bytes: float


@dataclass(frozen=True)
class Loader:
    """The loader against bare decoding by as many processes."""

    form: str
    processes: int
    bare_videos_per_second: float
    loader_videos_per_second: float
    share: float
    cpu_share: float


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="folder of video files")
    parser.add_argument("--processes", type=int, default=2, help="that decode")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(options.videos.rglob("*.mp4")) if options.videos else make_videos(Path(folder, "videos"))
        sets = {name: build(folder, files, name, encoding) for name, encoding in FORMS.items()}
        forms = compare_forms(sets)
        print("| stored as | videos per CPU second | x | bytes, x |\n|---|---|---|---|")
        for form in forms:
            print(f"| {form.name} | {form.videos_per_cpu_second:.0f} | {form.speed:.1f} | {form.bytes:.2f} |")
        print(
            "\n| loader of | processes | bare, videos/s | loader, videos/s | share | in CPU time |"
            "\n|---|---|---|---|---|---|"
        )
        loaders = [compare_loader(sets[name], name, options.processes) for name in (REFERENCE, forms[-1].name)]
        for one in loaders:
            print(
                f"| {one.form} | {one.processes} | {one.bare_videos_per_second:.0f} "
                f"| {one.loader_videos_per_second:.0f} | {one.share:.0%} | {one.cpu_share:.0%} |"
            )
        print("\n| resumed at step | first batch, CPU ms | x |\n|---|---|---|")
        resumed = compare_steps(sets[forms[-1].name])
        for step, seconds in resumed.items():
            print(f"| {step:,} | {seconds * 1e3:.0f} | {seconds / resumed[STEPS[0]]:.2f} |")
        if options.json:
            results = {
                "forms": [asdict(f) for f in forms],
                "loaders": [asdict(one) for one in loaders],
                "resumed": resumed,
            }
            options.json.write_text(json.dumps(results, indent=2) + "\n")


def make_videos(folder: Path) -> list[Path]:
    """Encode textures that move, 25 pictures a second."""
    folder.mkdir()
    for number in range(VIDEOS):
        random = np.random.RandomState(number)
        texture = np.kron(random.randint(0, 256, (40, 80, 3)), np.ones((12, 12, 1)))
        texture += random.normal(0, 6, (480, 960, 1))
        target = io.BytesIO()
        with av.open(target, "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            stream.options = {"preset": "veryfast", "threads": "1"}
            for at in range(300):
                picture = texture[at // 4 : at // 4 + 240, at : at + 320]
                frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        (folder / f"v{number:02d}.mp4").write_bytes(target.getvalue())
    return sorted(folder.iterdir())


def build(folder: str, files: Sequence[Path], name: str, encoding: Encoding) -> ShardSet:
    """Write the videos, each with several captions, as one form of shards."""
    where = os.path.join(folder, name)
    records = [Record(path.stem, ("a caption",) * CAPTIONS) for path in files]
    videos = {path.stem: str(path) for path in files}
    options = BuildOptions(samples_per_shard=PER_SHARD, encoding=encoding, workers=0)
    build_shards(records, videos, where, Origin("bench", "train", "none", 1, ()), options)
    return open_shard_set(where)


def clips(shard_set: ShardSet, shards: Sequence[int]) -> Iterator[int]:
    """Decode the video of every pair of some shards into the same memory, for ever."""
    into = torch.empty(SAMPLING.max_frames, 3, SAMPLING.size, SAMPLING.size, dtype=torch.uint8)
    while True:
        for index in shards:
            with closing(Shard(shard_set, index)) as shard:
                for position, _ in shard.pairs:
                    yield len(read_clip(shard, position, SAMPLING, into).frames)


def compare_forms(sets: dict[str, ShardSet]) -> list[Form]:
    """Bare decoding of each form in this process."""
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(TURNS):
        for name, shard_set in sets.items():
            begin = time.process_time()
            for _ in islice(clips(shard_set, range(len(shard_set.manifest.shards))), PAIRS):
                pass
            seconds[name].append((time.process_time() - begin) / PAIRS)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    size = {name: sum(entry.bytes for entry in shard_set.manifest.shards) for name, shard_set in sets.items()}
    return [
        Form(name, 1 / middle[name], middle[REFERENCE] / middle[name], size[name] / size[REFERENCE]) for name in sets
    ]


def tokenize(captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nothing of the captions: words are not measured."""
    return torch.zeros(len(captions), 32, dtype=torch.int64), torch.zeros(len(captions), dtype=torch.bool)


def open_loader(shard_set: ShardSet, processes: int, step: int = 0) -> Iterator[object]:
    """Batches of one rank."""
    plan = StreamPlan([shard_set.manifest], [], BATCH, STREAMS, "all", seed=0)
    return make_loader(PairStream([shard_set], plan, SAMPLING, tokenize, 0, 1, step), processes, PREFETCH)


def compare_loader(shard_set: ShardSet, name: str, processes: int) -> Loader:
    """Videos a second and CPU seconds a video of processes that only decode, and of the loader, in turn."""
    turns = [(bare(shard_set, processes), loaded(shard_set, processes)) for _ in range(TURNS)]
    (bare_rate, bare_cpu), (loader_rate, loader_cpu) = (
        [statistics.median(turn[which][what] for turn in turns) for what in range(2)] for which in range(2)
    )
    share = statistics.median(turn[1][0] / turn[0][0] for turn in turns)
    return Loader(name, processes, bare_rate, loader_rate, share, bare_cpu / loader_cpu)


def bare(shard_set: ShardSet, processes: int) -> tuple[float, float]:
    """Videos a second, and CPU seconds a video, of processes that decode as many as the loader does."""
    context = multiprocessing.get_context("fork")
    begin, results = context.Barrier(processes + 1), context.SimpleQueue()
    count = BATCH * BATCHES // processes

    def decode(number: int) -> None:
        torch.set_num_threads(1)
        shards = range(number, len(shard_set.manifest.shards), processes)
        videos = clips(shard_set, shards)
        next(videos)
        begin.wait()
        cpu = time.process_time()
        for _ in islice(videos, count):
            pass
        results.put(time.process_time() - cpu)

    children = [context.Process(target=decode, args=(number,)) for number in range(processes)]
    for child in children:
        child.start()
    begin.wait()
    start = time.perf_counter()
    cpu = sum(results.get() for _ in children)
    wall = time.perf_counter() - start
    for child in children:
        child.join()
    return count * processes / wall, cpu / (count * processes)


def loaded(shard_set: ShardSet, processes: int) -> tuple[float, float]:
    """Videos a second, and CPU seconds a video, of the loader with a reader that does nothing."""
    batches = open_loader(shard_set, processes)
    for _ in range(PREFETCH + 1):  # what was decoded ahead before the clock started is as much as is ahead at the end
        next(batches)
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    cpu, start = cpu_seconds(pids), time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    wall, cpu = time.perf_counter() - start, cpu_seconds(pids) - cpu
    return BATCH * BATCHES / wall, cpu / (BATCH * BATCHES)


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time that processes have taken."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def compare_steps(shard_set: ShardSet) -> dict[int, float]:
    """CPU seconds until the first batch of a run that starts at each step."""
    first: Callable[[int], object] = lambda step: next(open_loader(shard_set, 0, step))  # noqa: E731
    seconds: dict[int, list[float]] = {step: [] for step in STEPS}
    for _ in range(TURNS):
        for step in STEPS:
            begin = time.process_time()
            first(step)
            seconds[step].append(time.process_time() - begin)
    return {step: statistics.median(times) for step, times in seconds.items()}


if __name__ == "__main__":
    main()
