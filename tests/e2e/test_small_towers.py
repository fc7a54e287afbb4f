"""Small towers of SigLIP's and of PE-Core's modules learn a toy domain in 200 steps, tokenizer and loss included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from open_clip.tokenizer import canonicalize_text

from glscl.data.build import BuildOptions
from glscl.data.prepare import Source, prepare
from glscl.data.toy import toy_records, write_toy
from glscl.models.architectures import find_architecture
from glscl.training.run_log import read_metrics
from tests.models.small_tokenizers import write_tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.exhaustive]

STEPS = 200
SIGMOID = ["--loss.contrastive.weight", "0", "--loss.sigmoid.weight", "1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A training, a held-out and a test set of a toy domain."""
    root = tmp_path_factory.mktemp("toy")
    for split, count in (("train", 400), ("dev", 50), ("test", 50)):
        folder = root / split
        write_toy("toy_clips", split, count, 0, str(folder), processes=2)
        source = Source(
            benchmark="jsonl",
            annotations=str(folder / "annotations.jsonl"),
            split=split,
            videos=str(folder / "videos"),
            domain="toy_clips",
        )
        prepare(source, str(root / "shards" / split), BuildOptions(samples_per_shard=50, workers=0))
    return {split: str(root / "shards" / split) for split in ("train", "dev", "test")}


def _siglip2(folder: Path) -> list[str]:
    """`glscl-tiny-siglip` with a tokenizer like SigLIP 2's, from files as a repository on Hugging Face has them."""
    config = find_architecture("glscl-tiny-siglip").config
    config["text_cfg"] |= {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP2", "vocab_size": 200}
    path = folder / "small-siglip2.json"
    path.write_text(json.dumps(config))
    captions = [caption for record in toy_records("toy_clips", "train", 400, 0) for caption in record.captions]
    known = sorted({word for caption in captions for word in canonicalize_text(caption).split()})
    tokenizer = write_tokenizer(folder / "tokenizer", "siglip2", known)
    return ["--model.clip", str(path), "--model.tokenizer", tokenizer, *SIGMOID]


@pytest.mark.parametrize("towers", ["siglip2", "pe"])
def test_they_learn(towers: str, shards: dict[str, str], glscl: Callable[..., Any], tmp_path: Path) -> None:
    words = _siglip2(tmp_path) if towers == "siglip2" else ["--model.clip", "glscl-tiny-pe"]
    glscl(
        *["train", "--config", "tiny", "--name", towers, "--storage", str(tmp_path / "runs")],
        *["--data.train", shards["train"], "--data.validation", shards["dev"], "--data.test", shards["test"]],
        *["--model.head", "mean_pool", "--model.frame-context", "none", "--training.max-steps", str(STEPS), *words],
    ).wait()
    run = tmp_path / "runs" / towers
    rows = [row for row in read_metrics(str(run)) if "loss" in row]
    assert rows[-1]["step"] == STEPS
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]
    recalls = json.loads((run / "results.json").read_text())["tests"][0]["text_to_video"]
    assert recalls["R@10"] > 50, recalls  # chance: 20
    assert (run / "model" / "towers").is_dir() == (towers == "siglip2")
