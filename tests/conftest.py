"""Fixtures that every test may use."""

from __future__ import annotations

import io
import logging
import os
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from glscl.data.build import BuildOptions, Encoding, Origin, build_shards
from glscl.data.records import Record
from glscl.data.shards import ShardSet, open_shard_set
from glscl.system import storage
from glscl.system.s3 import S3
from tests.fault_proxy import FaultProxy


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded outputs, real clips and official annotations that lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared test material (../shared: parity, clips, annotations) is not beside this checkout")
    return folder


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a storage server of this test's own."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    S3.clear_instance_cache()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # its state belongs to the process and outlives the server
    boto3.client("s3").create_bucket(Bucket="data")
    yield "s3://data"
    S3.clear_instance_cache()
    server.stop()


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of `bucket`'s storage server that lets everything pass until it is told otherwise."""
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], rate=0) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        S3.clear_instance_cache()
        yield between
        S3.clear_instance_cache()


@cache
def _video(
    times: tuple[float, ...], seed: int, container: str, codec: str, bframes: int, size: tuple[int, int]
) -> bytes:
    width, height = size
    base = np.random.RandomState(seed).randint(0, 256, (height // 8, width // 8, 3))
    target = io.BytesIO()
    with av.open(target, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 7
        stream.codec_context.max_b_frames = bframes
        if codec == "libx264":
            stream.options = {"preset": "veryfast", "threads": "1", "sc_threshold": "0"}
        for number, time in enumerate(times):
            tiles = np.roll(base, number, axis=1) * (0.4 + 0.6 * ((number * 5) % 11) / 10)
            picture = np.kron(tiles, np.ones((8, 8, 1))).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


@pytest.fixture(scope="session")
def make_video() -> Callable[..., bytes]:
    """Encode a small real video: every frame differs from its neighbours, every seed from every other."""

    def make(
        times: Sequence[float] = (0.0, 0.5, 1.0, 1.5),
        seed: int = 0,
        container: str = "mp4",
        codec: str = "libx264",
        bframes: int = 2,
        size: tuple[int, int] = (64, 48),
    ) -> bytes:
        return _video(tuple(times), seed, container, codec, bframes, size)

    return make


@pytest.fixture
def make_shards(tmp_path: Path, make_video: Callable[..., bytes]) -> Callable[..., ShardSet]:
    """Build a shard set of domain ``name`` under ``root``: one video per number of ``captions``, named v000, v001 ...

    ``ids`` replaces the v, ``bad`` replaces the bytes of some videos, ``texts`` the captions.
    """

    def make(
        name: str = "toy",
        captions: Sequence[int] = (1, 2, 3) * 10,
        per_shard: int = 5,
        bad: dict[int, bytes] | None = None,
        texts: dict[int, tuple[str, ...]] | None = None,
        root: str | None = None,
        encoding: Encoding | None = None,
        workers: int = 0,
        ids: str = "v",
    ) -> ShardSet:
        files = {f"{ids}{n:03d}": str(tmp_path / "videos" / name / f"{ids}{n:03d}.mp4") for n in range(len(captions))}
        for n, path in enumerate(files.values()):
            storage.write_bytes(path, bad[n] if bad and n in bad else make_video(seed=n))
        records = [
            Record(video_id, (texts or {}).get(n) or tuple(f"{video_id} text {i}" for i in range(captions[n])))
            for n, video_id in enumerate(files)
        ]
        output = storage.join(root or str(tmp_path), name)
        origin = Origin(name, "train", "test", 1, ("annotations.json",))
        options = BuildOptions(
            samples_per_shard=per_shard, encoding=encoding or Encoding(), workers=workers, max_bad_fraction=1.0
        )
        build_shards(records, files, output, origin, options)
        return open_shard_set(output)

    return make
