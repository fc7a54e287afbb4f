"""An exported GLSCL scores the same in a process that has open_clip, safetensors and torch, but not this project."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import glscl
from glscl.cli import main
from glscl.data.clips import stack_clips
from glscl.data.video import load_clip
from glscl.evaluation.saved import load_model, load_tokenizer
from tests.retrieval.test_model import LENGTHS, TEXTS, write_run

THEIRS = """
import json, sys
from functools import partial
import numpy as np, open_clip, torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from safetensors.torch import load_file
from torch import nn

folder, given, output = sys.argv[1:]
given = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
ids, frames, mask = given["ids"], given["frames"], given["mask"].bool()
model = json.load(open(f"{folder}/model.json"))["model"]
how = json.load(open(f"{folder}/preprocessing.json"))["frame"]
options, weights = model["heads"]["glscl"], load_file(f"{folder}/head.safetensors")
towers, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")


def part(prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


@torch.no_grad()
def scores():
    towers.eval()
    mean, std = (torch.tensor(how[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    video = towers.encode_image((frames.flatten(0, 1).float() / 255 - mean) / std).unflatten(0, frames.shape[:2])
    seen = {}
    reader = getattr(towers, "text", towers)  # open_clip has two forms of a model
    reader.ln_final.register_forward_hook(lambda module, given, output: seen.update(tokens=output))
    whole = F.pad(ids, (0, reader.context_length - ids.shape[1]))  # open_clip reads its whole context
    text = towers.encode_text(whole)
    tokens = seen["tokens"] @ reader.text_projection

    context, heads = part("frame_context."), reader.transformer.resblocks[0].attn.num_heads
    hidden = (~mask).float()[:, None, None, :] * -1e6
    hidden = hidden.expand(-1, heads, mask.shape[1], -1).flatten(0, 1)
    inner = video + context["position_embeddings.weight"][: video.shape[1]]
    for layer in range(model["context_layers"]):
        block = ResidualAttentionBlock(
            video.shape[-1], heads, act_layer=QuickGELU, norm_layer=partial(nn.LayerNorm, eps=1e-12)
        ).eval()
        block.load_state_dict(part(f"frame_context.resblocks.{layer}."))
        inner = block(inner, attn_mask=hidden)
    video = video + inner

    width = video.shape[-1]
    layer = nn.TransformerDecoderLayer(
        width, options["attention_heads"], options["feedforward"] or 4 * width, batch_first=True
    )
    decoder = nn.TransformerDecoder(layer, options["layers"]).eval()
    decoder.load_state_dict(part("head.decoder."))
    queries = weights["head.queries"]

    def concepts(features, real):
        decoded = decoder(queries.expand(len(features), -1, -1), features, memory_key_padding_mask=~real)
        return F.normalize(decoded, dim=-1).flatten(1)

    local = concepts(tokens, whole != 0) @ concepts(video, mask).T / len(queries)
    logits = torch.einsum("ad,bfd->abf", text, video) / options["tau"]
    pooled = torch.einsum("abf,bfd->abd", logits.masked_fill(~mask, -torch.inf).softmax(-1), video)
    return F.cosine_similarity(text[:, None], pooled, dim=-1) + options["local_weight"] * local


np.save(output, scores().numpy())
print("glscl" in sys.modules)
"""


def test_glscl_in_plain_torch(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    run = write_run(tmp_path)
    folder, given, output = tmp_path / "out", tmp_path / "given.npz", tmp_path / "scores.npy"
    assert main(["export", "--run", run, "--output", str(folder)]) == 0
    clips = [make_video(times, seed) for seed, times in enumerate(LENGTHS.values())]
    expected = glscl.load(run, "cpu").score(TEXTS, clips).numpy()
    sampling = load_model(run)[1].sampling(32)
    frames, mask = stack_clips([load_clip(clip, sampling) for clip in clips], sampling)  # type: ignore[arg-type]
    assert not mask.all(), "padding is part of it"
    ids, _ = load_tokenizer(run)(TEXTS)
    np.savez(given, ids=ids.numpy(), frames=frames.numpy(), mask=mask.numpy())
    arguments = [sys.executable, "-c", THEIRS, str(folder), str(given), str(output)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "False"
    np.testing.assert_allclose(np.load(output), expected, rtol=0, atol=1e-6)
    assert torch.from_numpy(expected).std() > 1e-3
