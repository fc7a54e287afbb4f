"""Measure search in a large index: recall against exact scores, latency, bytes on disk, memory, and adding videos.

    python benchmarks/index.py [--videos 1000000] [--data clusters|gaussian] [--precision int8] [--json FILE]

Writes an index of made videos, each one segment with 8 concepts of 512 numbers (GLSCL's local score alone), part by
part, and fits its first stage to made texts. Then it searches with other texts: recall@10 of the two stages against the
exact scores of everything as they are stored, recall@10 of what is stored against fp32, and the time of each search
from an encoded text to ten videos with their moments, warm, by one thread. At last it adds 10,000 videos, and
counts the older files that were written again.

``clusters`` are videos of 2,000 topics in a latent space of 96 dimensions, of which every concept sees a view of its
own with a fifth of its energy in noise that nothing explains; a text is a noisier view of one video. ``gaussian`` are
independent random numbers: nothing is compact about them, which no first stage can change. One million need about 6 GB
of disk and a quarter of an hour on two free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.evaluation.saved import ModelCard, save_model
from glscl.evaluation.similarity import rows_of
from glscl.index.exact import best_rows
from glscl.index.first_stage import fit_first_stage, update_first_stage
from glscl.index.layout import MODEL, Cutting, IndexFacts, next_part, write_facts
from glscl.index.library import Item
from glscl.index.model_files import store_model
from glscl.index.parts import PartWriter
from glscl.index.search import VideoIndex, open_index
from glscl.index.vectors import to_arrays
from glscl.models import ModelConfig, Retriever
from glscl.retrieval.model import load

CONCEPTS, WIDTH = 8, 512
LATENT, TOPICS, NOISE = 96, 2000, 0.2
PART = 50_000
BATCH = 10_000
ADDED = 10_000


class Maker:
    """Makes concepts of videos and texts from a seed; the same video is made again by its number."""

    def __init__(self, data: str) -> None:
        self.data = data
        draw = torch.Generator().manual_seed(7)
        self.topics = torch.randn(TOPICS, LATENT, generator=draw)
        self.views = torch.randn(CONCEPTS, LATENT, WIDTH, generator=draw) / LATENT**0.5
        self.base = torch.randn(2, CONCEPTS, WIDTH, generator=draw)  # what all videos, and all texts, have in common

    def videos(self, first: int, count: int) -> Tensor:
        """Concepts (N, K, D) of consecutive videos; ``first`` is a multiple of the batch."""
        draw = torch.Generator().manual_seed(1000 + first)
        if self.data == "gaussian":
            return F.normalize(torch.randn(count, CONCEPTS, WIDTH, generator=draw), dim=-1)
        return self._see(self._latent(count, draw), 0, draw)

    def texts(self, count: int, seed: int) -> Tensor:
        """Concepts (A, K, D) of texts about videos of the first batch."""
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(BATCH, generator=draw)[:count]
        if self.data == "gaussian":
            return F.normalize(torch.randn(count, CONCEPTS, WIDTH, generator=draw), dim=-1)
        latent = self._latent(BATCH, torch.Generator().manual_seed(1000))[chosen]
        return self._see(latent + 0.4 * torch.randn(latent.shape, generator=draw), 1, draw)

    def _latent(self, count: int, draw: torch.Generator) -> Tensor:
        topic = self.topics[torch.randint(TOPICS, (count,), generator=draw)]
        return 0.7 * topic + 0.7 * torch.randn(count, LATENT, generator=draw)

    def _see(self, latent: Tensor, side: int, draw: torch.Generator) -> Tensor:
        seen = torch.einsum("nl,kld->nkd", latent, self.views)
        noise = torch.randn(seen.shape, generator=draw)
        return F.normalize(self.base[side] + (1 - NOISE) ** 0.5 * seen + NOISE**0.5 * noise, dim=-1)


Figures = dict[str, float | int | str]
"""What was measured, by name."""


def main() -> None:
    """Make, measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--data", choices=["clusters", "gaussian"], default="clusters")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="int8")
    parser.add_argument("--folder", help="where the index is written, and kept; a temporary folder by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="glscl-index-") as scratch:
        figures = measure(options, options.folder or os.path.join(scratch, "made.index"), scratch)
    for name, value in figures.items():
        print(f"{name:<22}{value:>14,.4f}" if isinstance(value, float) else f"{name:<22}{value:>14}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def measure(options: argparse.Namespace, folder: str, scratch: str) -> Figures:
    """All figures of one index."""
    maker = Maker(options.data)
    began = time.perf_counter()
    facts = write_index(maker, options, folder, scratch)
    write_s, began = time.perf_counter() - began, time.perf_counter()
    model = load(os.path.join(folder, MODEL), "cpu")
    facts, note = fit_first_stage(folder, facts, model, as_cache(maker.texts(2048, 1)))
    write_facts(folder, facts)
    print(note, flush=True)
    fit_s = time.perf_counter() - began
    index = open_index(folder, "cpu")
    texts = as_cache(maker.texts(options.queries, 2))
    exact = best_rows(model.retriever.score, texts, index._segments, model.device, 10)
    seconds, first = [], []
    found = []
    torch.set_num_threads(1)  # so few candidates need no more, and threads that wait for each other are slow
    for row in [0, 1, 2, *range(options.queries)]:  # the first ones are for warming up
        text = rows_of(texts, range(row, row + 1))
        began = time.perf_counter()
        found.append([one.id for one in index.search_encoded(text, 10)])
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert index._first is not None
        index._first.search(text, index.candidates)
        first.append(time.perf_counter() - began)
    found, seconds, first = found[3:], seconds[3:], first[3:]
    torch.set_num_threads(options.threads)
    ids = [[index._segments.entry(int(row)).id for row in rows] for rows in exact]
    stored = recall_of_stored(maker, options.videos, texts, exact)
    size = index.stats.bytes
    began = time.perf_counter()
    again = add(maker, options, folder, index)
    return {
        "videos": options.videos,
        "data": options.data,
        "precision": options.precision,
        "candidates": index.candidates,
        "recall_two_stages": float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, ids, strict=True)])),
        "recall_stored": stored,
        "p50_ms": 1e3 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(seconds, 0.99)),
        "first_stage_ms": 1e3 * float(np.quantile(first, 0.5)),
        "index_gb": size / 1e9,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "write_s": write_s,
        "fit_s": fit_s,
        "add_s": time.perf_counter() - began,
        "parts_written_again": again,
    }


def as_cache(concepts: Tensor) -> dict[str, Tensor]:
    """What the head keeps of texts: their concepts, and sentences, which its local score does not read."""
    return {"sentence": torch.ones(len(concepts), WIDTH), "concepts": concepts}


def write_index(maker: Maker, options: argparse.Namespace, folder: str, scratch: str) -> IndexFacts:
    """Write model and parts; returns what index.json says."""
    shutil.rmtree(folder, ignore_errors=True)
    clip = os.path.join(scratch, "made.json")
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    Path(clip).write_text(json.dumps({"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}))
    head = {"glscl": {"queries": CONCEPTS, "layers": 1, "use_global": False}}
    config = ModelConfig.model_validate({"clip": clip, "max_words": 8, "max_frames": 2, "heads": head})
    card = ModelCard(
        model=config, sample_fps=1.0, decoder="pyav", train_domains=(), step=0, seed=0, run="made", validation={}
    )
    save_model(os.path.join(scratch, "run", "model"), card, Retriever(config).state_dict())
    os.makedirs(folder)
    facts = IndexFacts(
        library="made",
        model=store_model(os.path.join(scratch, "run"), folder),
        cutting=Cutting(segment_s=2.0, stride_s=1.0),
        precision=options.precision,
    )
    write_facts(folder, facts)
    for first in range(0, options.videos, PART):
        facts = write_made_part(maker, folder, facts, range(first, min(first + PART, options.videos)))
        print(f"{min(first + PART, options.videos):,} videos written", flush=True)
    return facts


def write_made_part(maker: Maker, folder: str, facts: IndexFacts, videos: range) -> IndexFacts:
    """Write one part of made videos, a batch at a time."""
    writer = PartWriter()
    for first in range(videos.start, videos.stop, BATCH):
        concepts = maker.videos(first, min(BATCH, videos.stop - first))
        arrays = to_arrays({"concepts": concepts}, facts.precision)
        for row in range(len(concepts)):
            item = Item(f"video{first + row:08d}", f"made/{first + row}.mp4", "1")
            writer.add(item, [(0.0, 2.0, (0.5, 1.5))], [{name: array[row] for name, array in arrays.items()}])
    facts = facts.model_copy(update={"parts": (*facts.parts, writer.write(folder, next_part(facts)))})
    write_facts(folder, facts)
    return facts


def recall_of_stored(maker: Maker, videos: int, texts: dict[str, Tensor], exact: list[np.ndarray]) -> float:
    """Recall@10 of the exact search of what is stored against the scores of the fp32 concepts themselves."""
    queries = texts["concepts"].flatten(1)
    scores, numbers = torch.zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
    for first in range(0, videos, BATCH):
        made = queries @ maker.videos(first, min(BATCH, videos - first)).flatten(1).T
        best = made.topk(10)
        scores, numbers = torch.cat([scores, best.values], 1), torch.cat([numbers, first + best.indices], 1)
        kept = scores.topk(10).indices
        scores, numbers = scores.gather(1, kept), numbers.gather(1, kept)
    true = [{*row} for row in numbers.tolist()]
    return float(np.mean([len(a & {*b.tolist()}) / 10 for a, b in zip(true, exact, strict=True)]))


def add(maker: Maker, options: argparse.Namespace, folder: str, index: VideoIndex) -> int:
    """Add videos as a part of their own; returns how many files of older parts were written again."""

    def times() -> dict[str, int]:
        return {
            entry.path: entry.stat().st_mtime_ns
            for at, _, _ in os.walk(os.path.join(folder, "parts"))
            for entry in os.scandir(at)
            if entry.is_file()
        }

    before, first = times(), -(-options.videos // BATCH) * BATCH
    facts = write_made_part(maker, folder, index.facts, range(first, first + ADDED))
    facts, _ = update_first_stage(folder, facts, index.model, ())
    write_facts(folder, facts)
    assert len(open_index(folder, "cpu")) == options.videos + ADDED
    after = times()
    return sum(after.get(path) != stamp for path, stamp in before.items())


if __name__ == "__main__":
    main()
