"""Broken bytes through the decoder and every reader: no crash, hang or leak, no exception but the two that are meant.

Mutants of sound files (videos of several containers and codecs, shards, manifests, annotation files, configurations,
model files) are fed to what reads them, in child processes, until enough bytes were fed. A child that dies or answers
no more is named with its input, which is kept. Run it as

    python stress/fuzz.py --megabytes 10 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

HANG_S = 120
"""Wall seconds after which a child counts as hung: longer than the decoder's own limit on a busy machine."""
LEAK_BYTES = 4_000_000
"""Most that a child may grow from its first half to its end."""
VIDEOS = (
    ("mp4", "libx264"), ("mp4", "libx265"), ("mp4", "mpeg4"), ("matroska", "libx264"), ("matroska", "libvpx"),
    ("webm", "libvpx-vp9"), ("webm", "libsvtav1"), ("avi", "mpeg4"), ("avi", "mjpeg"), ("mpegts", "libx264"),
    ("mpegts", "mpeg2video"), ("mpeg", "mpeg1video"), ("flv", "flv"), ("asf", "wmv2"),
    ("gif", "gif"), ("3gp", "h263"),
)  # fmt: skip
SIZES = {"h263": (176, 144), "libsvtav1": (64, 64)}
FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def video(container: str, codec: str) -> bytes:
    """A third of a second of a moving square."""
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


def tar(clip: bytes) -> bytes:
    """A shard of three samples."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as out:
        for n in range(3):
            text = json.dumps({"video_id": f"v{n}", "captions": ["a", "b"], "domain": "d", "start": 0.5, "end": 1.0})
            for extension, data in (("json", text.encode()), ("mp4", clip[:2000])):
                info = tarfile.TarInfo(f"{n:08d}.{extension}")
                info.size, info.mtime = len(data), 0.5  # a time of half seconds asks for an extended header
                out.addfile(info, io.BytesIO(data))
    return target.getvalue()


def manifest(size: int) -> dict[str, Any]:
    """The manifest of a set of one such shard."""
    entry = {"name": "shard-000000.tar", "samples": 3, "pairs": 6, "bytes": size, "sha256": "0" * 64}
    origin = {"domain": "d", "split": "train", "reader": "jsonl", "reader_version": 1, "sources": ["x"]}
    return origin | {"encoding": "as is", "videos": 3, "pairs": 6, "shards": [entry]}


def annotations() -> dict[str, tuple[str, str, dict[str, str | bytes]]]:
    """By reader: the split, the file that is mutated, and all files of a small sound folder."""
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
    """A few changes of a sound file: bits, bytes, numbers of headers, cuts, repeats, pieces of another file."""
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


def targets(folder: Path) -> dict[str, tuple[list[bytes], Callable[[bytes], object]]]:
    """By name: sound files, and what reads them."""
    from safetensors.torch import save

    from glscl.data.benchmarks import read
    from glscl.data.shards import Shard, open_shard_set
    from glscl.data.video import FrameSampling, load_frames, reencode
    from glscl.evaluation.leakage import read_leakage_list
    from glscl.evaluation.saved import ModelCard, _shapes, read_card
    from glscl.models.retriever import ModelConfig
    from glscl.training.config import read_yaml, validate

    clips = [video(*kind) for kind in VIDEOS]
    sampling = FrameSampling(4, 10.0, 32, max_seconds=20)
    shard = tar(clips[0])
    found: dict[str, tuple[list[bytes], Callable[[bytes], object]]] = {
        "decoder": (clips, lambda data: load_frames(data, sampling, 0.1, 0.5)),
        "re-encoder": (clips, lambda data: reencode(data, 32, 10.0, 20)),
    }

    def write(name: str, data: bytes | str) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    def read_tar(data: bytes) -> None:
        path = write("set/shard-000000.tar", data)
        write("set/manifest.json", json.dumps(manifest(len(data))))
        with contextlib.closing(Shard(open_shard_set(str(path.parent)), 0)) as opened:
            for position in range(len(opened.samples)):
                opened.video(position)

    write("other/shard-000000.tar", shard)

    def read_manifest(data: bytes) -> None:
        Shard(open_shard_set(str(write("other/manifest.json", data).parent)), 0).close()

    found["shard"] = ([shard], read_tar)
    found["manifest"] = ([json.dumps(manifest(len(shard))).encode()], read_manifest)
    for name, (split, mutated, files) in annotations().items():
        for file, content in files.items():
            write(f"{name}/{file}", content)
        seed = files[mutated]

        def read_annotations(data: bytes, name: str = name, split: str = split, mutated: str = mutated) -> None:
            read(name, str(write(f"{name}/{mutated}", data).parent), split)

        found[f"annotations: {name}"] = ([seed if isinstance(seed, bytes) else seed.encode()], read_annotations)
    text = "seed: 3\nmodel: {head: xpool, max_frames: 6}\ntraining:\n  lr_head: 1e-4\n  epochs: 2\nname: &a x\n"
    found["configuration"] = (
        [text.encode()],
        lambda data: validate(read_yaml(str(write("run.yaml", data))), "run.yaml"),
    )
    lists = {
        "csv": b"video_id,why\na,b\nc,d\n",
        "json": b'{"videos": ["a", {"video_id": "b"}]}',
        "txt": b"a\tb\n# c\nd\n",
    }
    for kind, seed in lists.items():
        found[f"leave-out list: {kind}"] = (
            [seed],
            lambda data, kind=kind: read_leakage_list(str(write(f"list.{kind}", data))),
        )
    card = ModelCard(
        model=ModelConfig(),
        sample_fps=1.0,
        decoder="pyav",
        train_domains=("d",),
        step=1,
        seed=0,
        run="r",
        validation={},
    )
    import torch

    found["model card"] = (
        [card.model_dump_json().encode()],
        lambda data: read_card(str(write("run/model.json", data).parent)),
    )
    weights = save({"a": torch.ones(3, 4), "b": torch.zeros(7)})
    found["model weights"] = ([weights], lambda data: _shapes(str(write("weights.safetensors", data))))
    return found


def child(pipe: Any, seed: int, folder: str) -> None:
    """Answer every job ``(target, number)`` with what its mutant came to."""
    import logging

    import av

    from glscl.data.limits import VideoError
    from glscl.errors import UserError

    logging.disable(logging.CRITICAL)
    av.logging.set_level(None)
    own = Path(folder, f"child-{os.getpid()}")
    own.mkdir()
    found = targets(own)
    pipe.send(list(found))
    while (job := pipe.recv()) is not None:
        name, number = job
        data = mutant(found[name][0], f"{seed}/{name}/{number}")
        (own / "now").write_bytes(data)
        try:
            found[name][1](data)
            outcome = "read"
        except VideoError:
            outcome = "quarantined"
        except UserError:
            outcome = "refused"
        except Exception as error:  # what is looked for
            outcome = f"{type(error).__name__}: {error}"[:200]
        if number % 64 == 0:
            gc.collect()
        pipe.send((outcome, len(data), memory()))


def mutant(seeds: list[bytes], key: str) -> bytes:
    """The same bytes for the same key."""
    dice = random.Random(key)
    return mutate(dice.choice(seeds), dice.choice(seeds), dice)


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Child:
    """A process, its pipe, and what it takes in memory over time."""

    def __init__(self, seed: int, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=child, args=(other, seed, folder), daemon=True)
        self.process.start()
        other.close()
        self.names: list[str] = self.pipe.recv()
        self.folder = Path(folder, f"child-{self.process.pid}")
        self.sizes: list[int] = []

    def ask(self, name: str, number: int) -> tuple[str, int]:
        """Outcome and bytes of one job."""
        self.pipe.send((name, number))
        try:
            if not self.pipe.poll(HANG_S):
                self.process.kill()
                return "hang", 0
            outcome, size, taken = self.pipe.recv()
        except EOFError:
            self.process.join()
            return f"crash (exit status {self.process.exitcode})", 0
        self.sizes.append(taken)
        return outcome, size

    def growth(self) -> int:
        """Bytes by which the largest size of the last tenth of its jobs exceeds that of the fifth before half."""
        count = len(self.sizes)
        if count < 200:
            return 0
        return max(self.sizes[-count // 10 :]) - max(self.sizes[int(count * 0.3) : count // 2])

    def close(self) -> None:
        """End it."""
        if self.process.is_alive():
            self.pipe.send(None)
        self.process.join()


def shares(names: list[str]) -> Iterator[str]:
    """Which target is next: the decoders take most of the bytes."""
    while True:
        for name in names:
            yield from (name, "decoder", "decoder", "re-encoder", name)


def main() -> int:
    """Feed, print a table, and say by the exit status whether anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where inputs that did harm are kept")
    options = parser.parse_args()
    began = time.monotonic()
    rows: dict[str, Counter[str]] = {}
    harm: list[str] = []
    with tempfile.TemporaryDirectory(prefix="glscl-fuzz-") as folder:
        worker = Child(options.seed, folder)
        fed = number = 0
        turns = shares(worker.names)
        while fed < options.megabytes * 1e6:
            name, number = next(turns), number + 1
            outcome, size = worker.ask(name, number)
            row = rows.setdefault(name, Counter())
            row["bytes"] += size
            row["cases"] += 1
            fed += size
            if outcome in ("read", "quarantined", "refused"):
                row[outcome] += 1
                continue
            row["harm"] += 1
            options.keep.mkdir(exist_ok=True)
            kept = options.keep / f"{number:06d}-{name.replace(': ', '-').replace(' ', '-')}"
            shutil.copy(worker.folder / "now", kept)
            harm.append(f"{name}: {outcome}; input in {kept}")
            if not worker.process.is_alive() or outcome.startswith(("hang", "crash")):
                worker.close()
                worker = Child(options.seed, folder)
        growth = worker.growth()
        worker.close()
    columns = ("cases", "bytes", "read", "quarantined", "refused", "harm")
    print(f"| what reads | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    total = sum(rows.values(), Counter())
    for name, row in [*rows.items(), ("all", total)]:
        print(f"| {name} | {' | '.join(f'{row[column]:,}' for column in columns)} |")
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s; memory grew by {growth / 1e6:.1f} MB after warm-up")
    for line in harm:
        print(line)
    if growth > LEAK_BYTES:
        print(f"leak: more than {LEAK_BYTES / 1e6:.0f} MB")
    return 1 if harm or growth > LEAK_BYTES else 0


if __name__ == "__main__":
    raise SystemExit(main())
