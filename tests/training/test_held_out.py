"""Held-out sets during training: what cannot be decoded is listed and bounded, whatever set it is in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from glscl.data.activity import ActivityTable
from glscl.data.quarantine import Quarantine, read_quarantine
from glscl.data.shards import ShardSet
from glscl.data.video import FrameSampling
from glscl.errors import RunStoppedError
from glscl.models import Retriever
from glscl.models.caption_tokenizer import build_tokenizer
from glscl.training.config import RunConfig
from glscl.training.held_out import HeldOut


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Told:
    """A heartbeat sender that remembers."""

    def __init__(self) -> None:
        self.found_by_part: list[tuple[str, list[str]]] = []

    def report_unusable(self, part: str, entries: list[dict[str, str]]) -> None:
        self.found_by_part.append((part, [entry["video_id"] for entry in entries]))


def test_every_held_out_set_is_listed_and_bounded(make_shards: Callable[..., ShardSet], tmp_path: Path) -> None:
    clip = tmp_path / "held-out-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    clip.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    sets = [
        make_shards("a", captions=[1] * 6, bad={1: b"torn"}),
        make_shards("b", captions=[1] * 6),
        make_shards("c", captions=[1] * 4, bad=dict.fromkeys(range(4), b"torn")),
    ]
    config = RunConfig.model_validate({
        "data": {"validation": [shard_set.uri for shard_set in sets], "loader_workers": 0},
        "model": {"clip": str(clip), "head": "mean_pool", "max_words": 8, "max_frames": 2},
    })  # fmt: skip
    model: Any = Retriever(config.model).eval()
    told: Any = Told()

    def score(folder: str, limit: float, config: RunConfig) -> dict[str, float]:
        quarantine = Quarantine(folder, limit, "data.max_bad_fraction")
        sampling = FrameSampling(2, 1.0, 32)
        tokens = build_tokenizer(config.model)
        return HeldOut(config, sampling, tokens, torch.device("cpu"), ActivityTable(0), quarantine, told).score(model)

    strict, loose = str(tmp_path / "strict"), str(tmp_path / "loose")
    with pytest.raises(RunStoppedError) as caught:
        score(strict, 0.01, config)
    assert "1 of 6 videos of held-out set a/train cannot be used, more than data.max_bad_fraction" in str(caught.value)
    assert "4 of 4 videos of held-out set c/train cannot be used" in str(caught.value)
    assert [(entry["part"], entry["domain"]) for entry in read_quarantine(strict)] == [
        ("validation", "a"), *[("validation", "c")] * 4,
    ]  # fmt: skip
    assert told.found_by_part[:2] == [("validation", ["v001"]), ("validation", [])]
    two = config.model_copy(update={"data": config.data.model_copy(update={"validation": config.data.validation[:2]})})
    metrics = score(loose, 0.2, two)
    assert {f"validation/{name}/text_to_video_R@1" for name in "ab"} <= metrics.keys()
    assert [entry["video_id"] for entry in read_quarantine(loose)] == ["v001"]
