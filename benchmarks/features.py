"""Measure what features of frozen towers save: training steps on videos against steps on shards of their features.

    python -m benchmarks.features [--clip ViT-B-32] [--heads mean_pool glscl xpool] [--pairs 32] [--json FILE]

Makes 8 videos of 12 s (320 x 240 pixels), encodes them once with towers of random weights, and trains heads on both
sets: the same towers (frozen, without gradients), lengths (32 words, 12 frames), pairs and optimiser. Videos are
decoded in the process that trains, on one thread. A round has one step on videos and ten on features, each head in
turn; the best of two rounds counts, in CPU time, which what else the machine does disturbs least. Prints a table and
writes JSON; minutes on a free core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.data import CAPTIONS, build, make_videos
from glscl.data.build import Encoding as Storing
from glscl.data.features import FeatureSampling
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet, open_shard_set
from glscl.data.stream import Batch, PairStream, make_loader
from glscl.data.video import FrameSampling
from glscl.evaluation.encode import encode_shards
from glscl.evaluation.encoder import Encoding
from glscl.losses import LossConfig
from glscl.models.options import ModelConfig
from glscl.models.retriever import Retriever
from glscl.models.tokenizer import tokenize
from glscl.models.towers import Towers
from glscl.system.nodes import Share
from glscl.training.global_batch import RankPairs, backward_global_batch

WORDS, FRAMES = 32, 12
STEPS = {"videos": 1, "features": 10}
ROUNDS = 2


@dataclass(frozen=True)
class Row:
    """Pairs in a CPU second of one head."""

    head: str
    videos: float
    features: float

    @property
    def ratio(self) -> float:
        """How many times as many on features."""
        return self.features / self.videos


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="ViT-B-32", help="architecture")
    parser.add_argument("--heads", nargs="+", default=["mean_pool", "glscl", "xpool"])
    parser.add_argument("--pairs", type=int, default=32, help="of a step")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(options.clip, folder)
        videos = build(folder, make_videos(Path(folder, "videos")), "copies", Storing(224, 3.0))
        began = time.process_time()
        encoding = Encoding(clip=options.clip, pretrained=weights, words=WORDS, frames=FRAMES, dtype="float32")
        encode_shards(videos.uri, f"{folder}/features", encoding, Share(1, False, 1.0, 0))
        encoded = videos.manifest.pairs / (time.process_time() - began)
        sets = {"videos": videos, "features": open_shard_set(f"{folder}/features")}
        rows = [measure(head, options.clip, weights, sets, options.pairs) for head in options.heads]
    print(f"{options.clip}, {WORDS} words, {FRAMES} frames, {options.pairs} pairs a step; pairs in a CPU second")
    print(f"{'head':<12}{'videos':>10}{'features':>12}{'x':>8}")
    for row in rows:
        print(f"{row.head:<12}{row.videos:>10.2f}{row.features:>12.1f}{row.ratio:>8.0f}")
    print(f"encoding, {CAPTIONS} captions a video, start included: {encoded:.2f} pairs in a CPU second")
    if options.json:
        figures = {"clip": options.clip, "pairs": options.pairs, "encoding": encoded}
        heads = [asdict(row) | {"ratio": row.ratio} for row in rows]
        options.json.write_text(json.dumps(figures | {"heads": heads}, indent=1) + "\n", encoding="utf-8")


def write_weights(clip: str, folder: str) -> str:
    """Random weights of an architecture, as a file."""
    torch.manual_seed(0)
    towers = Towers(clip)
    path = f"{folder}/towers.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in towers.state_dict().items()}
    save_file(tensors | {"logit_scale": torch.tensor([2.66])}, path, metadata=towers.metadata)
    return path


def measure(head: str, clip: str, weights: str, sets: dict[str, ShardSet], pairs: int) -> Row:
    """Train one head on both sets in turn."""
    config = ModelConfig(clip=clip, pretrained=weights, head=head, max_words=WORDS, max_frames=FRAMES)
    runs = {name: train(config, shard_set, pairs) for name, shard_set in sets.items()}
    for run in runs.values():
        next(run)  # the first step also gets its memory
    best = dict.fromkeys(sets, 0.0)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.process_time()
            count = len(list(islice(run, STEPS[name])))
            best[name] = max(best[name], count * pairs / (time.process_time() - began))
    return Row(head, best["videos"], best["features"])


def train(config: ModelConfig, shard_set: ShardSet, pairs: int) -> Iterator[Batch]:
    """Train a head for ever; a batch for each step."""
    facts = shard_set.manifest.features
    torch.manual_seed(0)
    model = Retriever(config, towers=facts is None)
    model.towers.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    sampling = FeatureSampling.of([facts]) if facts else FrameSampling(FRAMES, 1.0, model.frame_size)
    plan = StreamPlan([shard_set.manifest], [], pairs, min(8, pairs), "all", seed=0)
    stream = PairStream([shard_set], plan, sampling, partial(tokenize, max_words=WORDS), 0, 1)
    for batch in make_loader(stream, 0, 1):
        backward_global_batch(
            model,
            lambda loss, last: loss.backward(),
            LossConfig(),
            RankPairs(batch.text, batch.frames, batch.frame_mask, batch.video_ids),
        )
        optimizer.step()
        optimizer.zero_grad()
        yield batch


if __name__ == "__main__":
    main()
