"""Training on features of frozen towers: the losses of the same towers on pixels, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.data.features import FeatureSampling
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet, open_shard_set
from glscl.data.stream import PairStream, make_loader
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation.encode import encode_shards
from glscl.evaluation.encoder import Encoding
from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.models.tokenizer import tokenize
from glscl.system.nodes import Share
from glscl.training.config import RunConfig, run_config
from glscl.training.driver.preflight import preflight
from glscl.training.engine import backward, build_engine, set_learning_rates
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig
from tests.towers import write_towers
from tests.training import ranks
from tests.training.ranks import FRAMES, SIZE, WORDS

STEPS, BATCH = 200, 16
HEADS = {
    "glscl": {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32, "dropout": 0.0, "mask_padding": False}
}
Steps = list[tuple[list[str], float]]
"""Names of the pairs and the loss of each step."""


def train(rank: int, uri: str, model: dict[str, Any], world_size: int, start: int = 0) -> Steps:
    """Train the head on a shard set, of videos or of features; the loss is the mean over the ranks."""
    torch.manual_seed(0)
    shard_set = open_shard_set(uri)
    facts = shard_set.manifest.features
    config = ModelConfig.model_validate(model)
    retriever = Retriever(config, towers=facts is None)
    training = TrainingConfig(precision="fp32", zero_stage=0, global_batch=BATCH, lr_head=3e-4, lr_towers=3e-4)
    engine = build_engine(retriever, training, torch.device("cpu"), world_size)
    plan = StreamPlan([shard_set.manifest], [], BATCH, 4, "all", 3)
    sampling = FeatureSampling.of([facts]) if facts else FrameSampling(FRAMES, 2.0, SIZE)
    tokens = partial(tokenize, max_words=WORDS)
    stream = PairStream([shard_set], plan, sampling, tokens, rank, world_size, start, cache_mb=64)
    steps = []
    for step, batch in enumerate(islice(make_loader(stream, 0, 1), STEPS)):
        set_learning_rates(engine, training, step, STEPS)
        pairs = RankPairs(batch.text, batch.frames, batch.frame_mask, batch.video_ids)
        losses = backward_global_batch(engine, partial(backward, engine), LossConfig(), pairs)
        engine.step()
        losses, _ = ranks.mean(losses, {})
        steps.append((batch.names, losses["total"].item()))
    return steps


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    clip, weights = write_towers(tmp_path_factory.mktemp("towers"))
    lengths = {"max_words": WORDS, "max_frames": FRAMES, "logit_scale": 20.0}
    context = {"frame_context": "transformer", "context_layers": 1}
    frozen = {"clip": clip, "pretrained": weights, "freeze": "towers"}
    return frozen | {"head": "glscl", "heads": HEADS} | lengths | context


@pytest.fixture
def both(
    make_shards: Callable[..., ShardSet], make_video: Callable[..., bytes], model: dict[str, Any], tmp_path: Path
) -> tuple[str, str]:
    """The same pairs as videos and as features; some videos are short, one cannot be read."""
    bad = {n: make_video((0.0, 0.4), seed=n) for n in (3, 5)} | {2: b"no video"}
    videos = make_shards(captions=(1, 2, 3, 2) * 4, per_shard=4, bad=bad)
    encoding = Encoding(
        clip=model["clip"],
        pretrained=model["pretrained"],
        words=WORDS,
        frames=FRAMES,
        rate=2.0,
        dtype="float32",
        max_bad_fraction=1.0,
    )
    features = str(tmp_path / "features")
    encode_shards(videos.uri, features, encoding, Share(1, False, 1.0, 0))
    return videos.uri, features


def test_the_losses_of_frozen_towers_on_pixels(both: tuple[str, str], model: dict[str, Any], tmp_path: Path) -> None:
    (pixels,), (features,) = (folder(tmp_path, name, 1, uri, model) for name, uri in zip(("p", "f"), both, strict=True))
    two = folder(tmp_path, "two", 2, both[1], model)
    worst = 0.0
    for step, (names, loss) in enumerate(pixels):
        assert features[step][0] == names
        assert two[0][step][0] + two[1][step][0] == names
        worst = max(worst, abs(features[step][1] - loss), abs(two[0][step][1] - loss))
    print(f"worst {worst:.1e}, first {pixels[0][1]:.4f}, last {pixels[-1][1]:.4f}")
    assert worst <= 1e-5
    assert pixels[-1][1] < 0.7 * pixels[0][1], "it learns"


def folder(tmp_path: Path, name: str, world: int, uri: str, model: dict[str, Any]) -> list[Steps]:
    """`train` on that many ranks."""
    (tmp_path / name).mkdir()
    return ranks.start(train, world, tmp_path / name, uri, model, world)


@pytest.fixture
def options(both: tuple[str, str], model: dict[str, Any], tmp_path: Path) -> Callable[..., RunConfig]:
    """The configuration of a run on the features; further words win."""

    def build(*more: object) -> RunConfig:
        given = {
            "storage": tmp_path / "runs",
            "name": "r",
            "data.train": both[1],
            "data.sample-fps": 2,
            "data.loader-workers": 0,
            "data.virtual-streams": 4,
            "model.clip": model["clip"],
            "model.pretrained": model["pretrained"],
            "model.freeze": "towers",
            "model.head": "mean_pool",
            "model.max-words": WORDS,
            "model.max-frames": FRAMES,
            "training.global-batch": 8,
            "training.num-workers": 1,
            "training.use-gpu": "false",
        }
        words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
        return run_config([*words, *map(str, more)], "glscl train").resolved()

    return build


def test_preflight_knows_features(options: Callable[..., RunConfig], both: tuple[str, str]) -> None:
    ready = preflight(options("--data.test", both[0]))
    assert ready.towers == open_shard_set(both[1]).manifest.features.towers  # type: ignore[union-attr]
    assert ready.facts["features"] == f"of the towers {ready.towers[:12]}"
    assert "features" not in preflight(options("--data.train", both[0])).facts
    pixels = preflight(options("--data.train", both[0], "--data.test", both[1]))
    assert pixels.towers is None, "the model is trained on pixels; of frozen towers, it can be tested on their features"


def test_what_does_not_fit_is_refused(
    options: Callable[..., RunConfig], both: tuple[str, str], model: dict[str, Any], tmp_path: Path
) -> None:
    """Each in one line, with the knob, before anything starts."""
    videos, features = both
    _, others = write_towers(tmp_path / "others", seed=1)
    manifest = json.loads(Path(features, "manifest.json").read_text())

    def refused(message: str, *words: object, **facts: object) -> None:
        changed = manifest | {"features": manifest["features"] | facts}
        Path(features, "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message) as caught:
            preflight(options(*words))
        assert "\n" not in str(caught.value)

    refused(
        rf"data.train: {features}: holds features of the towers \w{{12}} \(.*towers-0.safetensors\), not of \w{{12}} "
        rf"\(.*towers-1.safetensors\): set model.clip and model.pretrained to those, or encode the shards again",
        *("--model.pretrained", others),
    )
    refused("holds features at model.max_frames 3, not 2: set it to that, or encode", "--model.max-frames", 2)
    refused("holds features at model.max_words 8, not 7: set it to that", "--model.max-words", 7)
    refused("holds features at data.sample_fps 2, not 1: set it to that", "--data.sample-fps", 1)
    augment = ("--data.augment", "rand-m7-n4-mstd0.5-inc1")
    refused("data.augment: rand-m7.* changes pixels, and .* holds features: set it to null", *augment)
    refused("data.train: .* holds features, and data.validation: .* videos: .*one kind", "--data.validation", videos)
    refused("model.freeze: parts of .* are trained, and data.train: .*: set it to towers", "--model.freeze", "image")
    refused("model.adapters: parts .* features of frozen ones: leave it out", "--model.adapters.lora-rank", 2)
    refused("model.unfreeze_blocks: parts .* leave it out, or name the videos", "--model.unfreeze-blocks", 1)
    pixels = ("--data.train", videos, "--data.test", features, "--model.freeze", "none")
    refused("model.freeze: parts .* are trained, and data.test: .* holds features of frozen ones: set it to", *pixels)
    refused("manifest.json: not a shard manifest .*features.dtype", dtype="float16")
    refused("manifest.json: not a shard manifest .*features.towers", towers="../secret")
    refused("manifest.json: not a shard manifest .*features.words", words=10**9)
