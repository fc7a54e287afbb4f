"""Fuzz the decoder and every reader: broken bytes may cause no crash, hang, leak or unexpected exception.

Mutants of sound files (videos of several containers and codecs, shards, manifests, annotation files, configurations,
model files) are fed to what reads them, in child processes, until enough bytes were fed. A child that dies or answers
no more is named with its input, which is kept. Run it as

    python stress/fuzz.py --megabytes 10 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stress.fuzz_inputs import (
    VIDEOS,
    make_annotations,
    make_facts,
    make_features,
    make_manifest,
    make_tar,
    make_video,
    mutate,
)

HANG_S = 120
"""Wall seconds after which a child counts as hung: longer than the decoder's own limit on a busy machine."""
LEAK_BYTES = 4_000_000
"""Most that a child may grow from its first half to its end."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads files.

    Attributes:
        seeds: sound files.
        read: reads the bytes of one.
    """

    seeds: list[bytes]
    read: Callable[[bytes], object]


def build_targets(folder: Path) -> dict[str, Target]:
    """All targets by name; those that read files find them in a folder."""
    return {
        **_video_targets(),
        **_shard_targets(folder),
        **_annotation_targets(folder),
        **_text_targets(folder),
        **_model_targets(folder),
    }


def _write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def _video_targets() -> dict[str, Target]:
    from glscl.data.video import FrameSampling, load_frames, make_copy

    clips = [make_video(*kind) for kind in VIDEOS]
    sampling = FrameSampling(4, 10.0, 32, max_seconds=20)
    return {
        "decoder": Target(clips, lambda data: load_frames(data, sampling, 0.1, 0.5)),
        "re-encoder": Target(clips, lambda data: make_copy(data, 32, 10.0, 20)),
    }


def _shard_targets(folder: Path) -> dict[str, Target]:
    import torch

    from glscl.data.features import FeatureSampling
    from glscl.data.gallery import Gallery
    from glscl.data.shards import Shard, open_shard_set

    def read_tar(data: bytes) -> None:
        path = _write(folder / "set/shard-000000.tar", data)
        _write(folder / "set/manifest.json", json.dumps(make_manifest(len(data))))
        with contextlib.closing(Shard(open_shard_set(str(path.parent)), 0)) as opened:
            for position in range(len(opened.samples)):
                opened.read(position)

    def read_manifest(data: bytes) -> None:
        Shard(open_shard_set(str(_write(folder / "other/manifest.json", data).parent)), 0).close()

    def read_features(data: bytes) -> None:
        path = _write(folder / "features/shard-000000.tar", data)
        _write(folder / "features/manifest.json", json.dumps(make_manifest(len(data)) | {"features": make_facts()}))
        shard_set = open_shard_set(str(path.parent))
        assert shard_set.manifest.features is not None
        sampling = FeatureSampling.of([shard_set.manifest.features])
        for batch in Gallery(shard_set, 0, 3, sampling, lambda _: (torch.zeros(0, 4), torch.zeros(0)), 3).batches(0):
            assert batch.frames.isfinite().all()

    shard = make_tar(make_video(*VIDEOS[0]))
    _write(folder / "other/shard-000000.tar", shard)
    return {
        "shard": Target([shard], read_tar),
        "manifest": Target([json.dumps(make_manifest(len(shard))).encode()], read_manifest),
        "features": Target([make_features(str(folder / "features.tar"))], read_features),
    }


def _annotation_targets(folder: Path) -> dict[str, Target]:
    from glscl.data.benchmarks import read

    targets = {}
    for name, (split, mutated, files) in make_annotations().items():
        for file, content in files.items():
            _write(folder / name / file, content)
        seed = files[mutated]

        def read_annotations(data: bytes, name: str = name, split: str = split, mutated: str = mutated) -> None:
            read(name, str(_write(folder / name / mutated, data).parent), split)

        targets[f"annotations: {name}"] = Target([seed if isinstance(seed, bytes) else seed.encode()], read_annotations)
    return targets


def _text_targets(folder: Path) -> dict[str, Target]:
    from glscl.evaluation.leakage import read_leakage_list
    from glscl.training.config import read_yaml, validate

    def read_configuration(data: bytes) -> None:
        validate(read_yaml(str(_write(folder / "run.yaml", data))), "run.yaml")

    def read_list(data: bytes, kind: str) -> None:
        read_leakage_list(str(_write(folder / f"list.{kind}", data)))

    text = b"seed: 3\nmodel: {head: xpool, max_frames: 6}\ntraining:\n  lr_head: 1e-4\n  epochs: 2\nname: &a x\n"
    lists = {
        "csv": b"video_id,why\na,b\nc,d\n",
        "json": b'{"videos": ["a", {"video_id": "b"}]}',
        "txt": b"a\tb\n# c\nd\n",
    }
    return {
        "configuration": Target([text], read_configuration),
        **{f"leave-out list: {kind}": Target([seed], partial(read_list, kind=kind)) for kind, seed in lists.items()},
    }


def _model_targets(folder: Path) -> dict[str, Target]:
    import torch
    from safetensors.torch import save

    from glscl.evaluation.saved import ModelCard, read_card
    from glscl.evaluation.weight_files import header_shapes
    from glscl.models.retriever import ModelConfig

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
    weights = save({"a": torch.ones(3, 4), "b": torch.zeros(7)})
    return {
        "model card": Target(
            [card.model_dump_json().encode()],
            lambda data: read_card(str(_write(folder / "run/model.json", data).parent)),
        ),
        "model weights": Target(
            [weights], lambda data: header_shapes(str(_write(folder / "weights.safetensors", data)))
        ),
    }


def answer_jobs(pipe: Connection, seed: int, folder: str) -> None:
    """Run in a child process: answer every job ``(target, number)`` with the outcome of its mutant."""
    import logging

    import av

    from glscl.data.limits import VideoError
    from glscl.errors import UserError

    logging.disable(logging.CRITICAL)
    av.logging.set_level(None)
    scratch = Path(folder, f"child-{os.getpid()}")
    scratch.mkdir()
    targets = build_targets(scratch)
    pipe.send(list(targets))
    while (job := pipe.recv()) is not None:
        name, number = job
        data = draw_mutant(targets[name].seeds, f"{seed}/{name}/{number}")
        (scratch / "now").write_bytes(data)
        try:
            targets[name].read(data)
            outcome = "read"
        except VideoError:
            outcome = "quarantined"
        except UserError:
            outcome = "refused"
        except Exception as error:  # what is looked for
            outcome = f"{type(error).__name__}: {error}"[:200]
        if number % 64 == 0:
            gc.collect()
        pipe.send((outcome, len(data), resident_bytes()))


def draw_mutant(seeds: list[bytes], key: str) -> bytes:
    """Change one of the seeds; the same bytes for the same key."""
    dice = random.Random(key)
    return mutate(dice.choice(seeds), dice.choice(seeds), dice)


def resident_bytes() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Child:
    """A child process, its pipe, and its memory over time."""

    def __init__(self, seed: int, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=answer_jobs, args=(other, seed, folder), daemon=True)
        self.process.start()
        other.close()
        self.names: list[str] = self.pipe.recv()
        self.folder = Path(folder, f"child-{self.process.pid}")
        self.sizes: list[int] = []

    def ask(self, name: str, number: int) -> tuple[str, int]:
        """Send one job; returns its outcome and how many bytes it fed."""
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


def take_turns(names: list[str]) -> Iterator[str]:
    """Yield the next target; the decoders take most of the bytes."""
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
        turns = take_turns(worker.names)
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
