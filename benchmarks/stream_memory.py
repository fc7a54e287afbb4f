"""Measure the peak memory of a streaming process for a small data set and a large one.

    python benchmarks/stream_memory.py

Writes two shard sets, the second with eight times as many shards, to a local folder and to a storage server of its own
(moto, in this process), and reads as many steps of each as one epoch of the larger has, in a fresh process. Prints the
growth of that process's peak resident memory over what it held before it opened the first shard, in MB, and the ratio
between the two sets. Linux; needs the ``dev`` extra; under a minute on two free cores.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np

SHARDS = 8
TIMES = 8
VIDEOS_PER_SHARD = 4
VIDEO_BYTES = 256 << 10
STREAMS = 8
BATCH = 2 * STREAMS
STEPS = SHARDS * TIMES * VIDEOS_PER_SHARD * 2 // BATCH  # two captions a video


def main() -> None:
    """Measure both sets on both kinds of storage and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", metavar="URI", help="read this set and print its peak (used inside)")
    uri = parser.parse_args().measure
    if uri:
        print(measure(uri))
        return
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # one line per request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="bench")
    print(f"{'storage':<10}{'shards':>8}{'set, MB':>10}{'peak extra, MB':>16}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for storage, root in (("local", folder), ("s3", "s3://bench")):
            first = 0.0
            for shards in (SHARDS, SHARDS * TIMES):
                where = f"{root}/{shards}"
                size = write_set(where, shards, folder)
                peak = in_fresh_process(where)
                first = first or peak
                print(f"{storage:<10}{shards:>8}{size:>10.1f}{peak:>16.1f}{peak / first:>8.2f}", flush=True)
    server.stop()


def write_set(uri: str, shards: int, folder: str) -> float:
    """Write a set of one short video under many names; returns its size in MB."""
    from glscl.data.build import BuildOptions, Origin, build_shards
    from glscl.data.records import Record

    path = Path(folder) / "video.mp4"
    path.write_bytes(make_video())
    records = [Record(f"v{number:05d}", ("a", "b")) for number in range(shards * VIDEOS_PER_SHARD)]
    videos = {record.video_id: str(path) for record in records}
    origin = Origin("bench", "train", "none", 1, ())
    options = BuildOptions(samples_per_shard=VIDEOS_PER_SHARD, workers=0)
    manifest = build_shards(records, videos, uri, origin, options)
    return sum(entry.bytes for entry in manifest.shards) / 1e6


def make_video() -> bytes:
    """Encode a second of noise, filled up to its size with an empty box, which players ignore."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(4):
            pixels = np.random.RandomState(number).randint(0, 256, (64, 64, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    data = target.getvalue()
    rest = VIDEO_BYTES - len(data)
    return data + struct.pack(">I", rest) + b"free" + np.random.RandomState(0).bytes(rest - 8)


def in_fresh_process(uri: str) -> float:
    """Run `measure` in another process."""
    done = subprocess.run([sys.executable, __file__, "--measure", uri], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def measure(uri: str) -> float:
    """Peak growth of this process's resident memory over STEPS steps, in MB."""
    import torch

    from glscl.data.plan import StreamPlan
    from glscl.data.shards import open_shard_set
    from glscl.data.stream import PairStream, make_loader
    from glscl.data.video import FrameSampling, load_frames

    def tokenize(captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(captions), 4, dtype=torch.int64), torch.zeros(len(captions), dtype=torch.bool)

    torch.set_num_threads(1)
    sampling = FrameSampling(max_frames=4, rate=4.0, size=64)
    load_frames(make_video(), sampling)  # the decoder allocates once
    shard_set = open_shard_set(uri)
    plan = StreamPlan([shard_set.manifest], [], BATCH, STREAMS, "all", seed=0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    for _ in islice(make_loader(PairStream([shard_set], plan, sampling, tokenize, 0, 1), 0, 1), STEPS):
        pass
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A line of /proc/self/status in MB."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match.group(1)) / 1e3


if __name__ == "__main__":
    main()
