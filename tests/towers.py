"""Small towers with weights in a file, for the tests of their features."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from glscl.models.towers import Towers
from tests.training.ranks import write_clip


def write_towers(folder: Path, seed: int = 0) -> tuple[str, str]:
    """An architecture's file and one of random weights; features depend on every pixel and every word."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = write_clip(folder)
    torch.manual_seed(seed)
    towers = Towers(clip)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = str(folder / f"towers-{seed}.safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in towers.state_dict().items()}
    save_file(tensors | {"logit_scale": torch.tensor([2.0])}, weights, metadata=towers.metadata)
    return clip, weights
