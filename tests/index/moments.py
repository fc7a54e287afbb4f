"""Small models that are trained in a loop of their own, and what a moment is compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.evaluation.saved import ModelCard, save_model
from glscl.models import ModelConfig, Retriever
from glscl.models.caption_tokenizer import build_tokenizer


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two stretches of time."""
    common = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return common / max(1e-9, max(one[1], other[1]) - min(one[0], other[0]))


def train_run(
    folder: Path,
    frames: Tensor,
    texts: Sequence[str],
    *,
    steps: int,
    batch: int,
    rate: float = 1e-3,
    sample_fps: float,
    values: dict[str, Any],
) -> str:
    """Train a model on clips (N, F, 3, S, S) and a text of each, and write its run directory."""
    config = ModelConfig.model_validate(values)
    torch.manual_seed(0)
    model = Retriever(config).train()
    ids, _ = build_tokenizer(config)(list(texts))
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    draw = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randperm(len(frames), generator=draw)[:batch]
        mask = torch.ones(len(rows), frames.shape[1], dtype=torch.bool)
        logits = model.scale() * model.score(model.encode_text(ids[rows]), model.encode_video(frames[rows], mask))
        same = torch.tensor([[texts[a] == texts[b] for b in rows.tolist()] for a in rows.tolist()])
        logits = logits.masked_fill(same & ~torch.eye(len(rows), dtype=torch.bool), -1e4)
        target = torch.arange(len(rows))
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    card = ModelCard(
        model=config,
        sample_fps=sample_fps,
        decoder="pyav",
        train_domains=("toy",),
        step=steps,
        seed=0,
        run="moments",
        validation={},
    )
    save_model(str(folder / "run" / "model"), card, model.eval().state_dict())
    return str(folder / "run")


def small_towers(folder: Path) -> str:
    """The file of an architecture that learns colours in seconds."""
    clip = folder / "colours.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1, "pool_type": "avg"}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    clip.write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}))
    return str(clip)
