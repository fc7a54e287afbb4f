"""The sound files that the fuzzer starts from, and how it changes them."""

from __future__ import annotations

import csv
import io
import json
import pickle
import random
import tarfile
from fractions import Fraction
from typing import Any

VIDEOS = (
    ("mp4", "libx264"), ("mp4", "libx265"), ("mp4", "mpeg4"), ("matroska", "libx264"), ("matroska", "libvpx"),
    ("webm", "libvpx-vp9"), ("webm", "libsvtav1"), ("avi", "mpeg4"), ("avi", "mjpeg"), ("mpegts", "libx264"),
    ("mpegts", "mpeg2video"), ("mpeg", "mpeg1video"), ("flv", "flv"), ("asf", "wmv2"),
    ("gif", "gif"), ("3gp", "h263"),
)  # fmt: skip
SIZES = {"h263": (176, 144), "libsvtav1": (64, 64)}
FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def make_video(container: str, codec: str) -> bytes:
    """Encode a third of a second of a moving square."""
    import av
    import numpy as np

    target = io.BytesIO()
    with av.open(target, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=25)
        stream.width, stream.height = SIZES.get(codec, (32, 32))
        stream.pix_fmt = FORMATS.get(codec, "yuv420p")
        stream.codec_context.gop_size = 5
        stream.bit_rate = 50_000
        shape = (stream.height, stream.width, 3)
        for n in range(8):
            picture = np.full(shape, 25 * n, np.uint8)
            picture[n : n + 9, 2 * n : 2 * n + 9] = 200
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


def make_tar(clip: bytes) -> bytes:
    """Pack a shard of three samples."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as out:
        for n in range(3):
            text = json.dumps({"video_id": f"v{n}", "captions": ["a", "b"], "domain": "d", "start": 0.5, "end": 1.0})
            for extension, data in (("json", text.encode()), ("mp4", clip[:2000])):
                info = tarfile.TarInfo(f"{n:08d}.{extension}")
                info.size, info.mtime = len(data), 0.5  # a time of half seconds asks for an extended header
                out.addfile(info, io.BytesIO(data))
    return target.getvalue()


def make_features(path: str) -> bytes:
    """Write a shard of features of three samples and two captions each; returns its bytes."""
    import torch

    from glscl.data.feature_writer import EncodedVideo, write_features
    from glscl.data.tars import Sample

    mask = torch.ones(2, 4, dtype=torch.bool)
    videos = [
        EncodedVideo(
            Sample(f"{n:08d}", f"v{n}", ("a", "b"), 0.5, 1.0, {}),
            f"{n:08d}",
            torch.randn(3, 8),
            torch.randn(2, 5, 8),
            mask,
        )
        for n in range(3)
    ]
    write_features(videos, path, "d", None)
    with open(path, "rb") as file:
        return file.read()


def make_facts() -> dict[str, object]:
    """Write what the manifest says of such a shard."""
    lengths = {"width": 8, "words": 4, "frames": 3, "rate": 1.0, "dtype": "float32"}
    return {"towers": "0" * 64, "clip": "c", "pretrained": "p", **lengths}


def make_manifest(size: int) -> dict[str, Any]:
    """Write the manifest of a set of one such shard."""
    entry = {"name": "shard-000000.tar", "samples": 3, "pairs": 6, "bytes": size, "sha256": "0" * 64}
    origin = {"domain": "d", "split": "train", "reader": "jsonl", "reader_version": 1, "sources": ["x"]}
    return origin | {"encoding": "as is", "videos": 3, "pairs": 6, "shards": [entry]}


def make_annotations() -> dict[str, tuple[str, str, dict[str, str | bytes]]]:
    """Write a small sound folder for each reader: its split, the file that is mutated, and all its files."""
    rows = [{"video_id": f"v{n}", "caption": f"text {n}", "start": 0.5, "end": 2, "attributes": {"a": [n]}}
            for n in range(6)]  # fmt: skip
    table = io.StringIO()
    writer = csv.DictWriter(table, ["video_id", "caption", "start", "end"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    msrvtt = {
        "videos": [
            {"video_id": f"video{n}", "split": "train", "start time": 1.5, "end time": 9, "url": "x"} for n in range(6)
        ],
        "sentences": [{"video_id": f"video{n}", "caption": f"a man {n}", "sen_id": n} for n in range(6)],
    }
    anet = {f"v_{n}": {"duration": 82.7, "timestamps": [[0, 9.5]], "sentences": ["One.", "Two."]} for n in range(6)}
    didemo = [{"video": f"{n}@N01_1.mov", "description": "the cat", "times": [[0, 1]]} for n in range(6)]
    lsmdc = "".join(f"0001_A_{n}\t00:00\t00:01\t00:00\t00:01\tSOMEONE walks.\n" for n in range(6))
    vatex = [{"videoID": f"id{n}_000001_000011", "enCap": ["a", "b"], "chCap": ["c"]} for n in range(6)]
    msvd = {f"clip{n}_1_2": [["a", "man"], ["two"]] for n in range(6)}
    names = "".join(f"clip{n}_1_2\n" for n in range(6))
    ids = "".join(f"id{n}_000001_000011\n" for n in range(6))
    return {
        "jsonl": ("t", "t.jsonl", {"t.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}),
        "csv": ("t", "t.csv", {"t.csv": table.getvalue()}),
        "msrvtt": ("train_full", "MSRVTT_data.json", {"MSRVTT_data.json": json.dumps(msrvtt)}),
        "activitynet": ("train", "train.json", {"train.json": json.dumps(anet)}),
        "didemo": ("train", "train_data.json", {"train_data.json": json.dumps(didemo)}),
        "lsmdc": ("train", "LSMDC16_annos_training.csv", {"LSMDC16_annos_training.csv": lsmdc}),
        "vatex": (
            "train", "vatex_training_v1.0.json",
            {"vatex_training_v1.0.json": json.dumps(vatex), "train_list.txt": ids},
        ),
        "msvd": ("train", "raw-captions.pkl", {"raw-captions.pkl": pickle.dumps(msvd), "train_list.txt": names}),
    }  # fmt: skip


SPLICES = (b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"-1", b"1e999", b"NaN", b"[" * 3000,
           b'{"a":' * 3000, b"9" * 5000, b'"\\ud800"', b"\x1b[31m", b"\x00", b"null", b"true", b"../../",
           b"&a [*a]")  # fmt: skip


def mutate(data: bytes, other: bytes, dice: random.Random) -> bytes:
    """Change a sound file in a few places: bits, bytes, numbers of headers, cuts, repeats, pieces of another file."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 3, 8, 30))):
        if not changed:
            break
        # headers are where it hurts: half of the changes are in the first and last tenth
        span = max(1, len(changed) // dice.choice((1, 1, 10)))
        at = dice.randrange(span) if dice.random() < 0.7 else len(changed) - 1 - dice.randrange(span)
        kind = dice.randrange(8)
        if kind <= 1:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            changed[at : at + 4] = dice.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, dice.getrandbits(32))).to_bytes(4)
        elif kind == 3:
            length = dice.randrange(1, 64)
            changed[at : at + length] = dice.randbytes(length)
        elif kind == 4:
            del changed[at : at + dice.randrange(1, 1 + len(changed) // 4 + 1)]
        elif kind == 5:
            piece = changed[at : at + dice.randrange(1, 400)]
            changed[at:at] = piece * dice.choice((1, 2, 20))
        elif kind == 6:
            start = dice.randrange(len(other))
            changed[at:at] = other[start : start + dice.randrange(1, 2000)]
        else:
            changed[at:at] = dice.choice(SPLICES)
    return bytes(changed[: max(1, 8 * len(data))])
