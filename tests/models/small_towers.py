"""Every architecture of open_clip built small: fewer layers, less width, smaller pictures, the same modules."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from open_clip.factory import get_model_config

WIDTH, EMBED = 32, 24
VOCABULARY = 49408
_TEXT_MODELS: dict[str, dict[str, Any]] = {
    "roberta": {
        "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
        "max_position_embeddings": 90, "vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
    "mt5": {
        "d_model": WIDTH, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
        "vocab_size": 500, "pad_token_id": 0, "eos_token_id": 1, "is_encoder_decoder": True,
        "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu",
    },
    "m2m_100": {
        "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 500,
        "max_position_embeddings": 128, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "is_encoder_decoder": True, "decoder_start_token_id": 2,
    },
}  # fmt: skip
_TEXT_MODELS["xlm-roberta"] = _TEXT_MODELS["roberta"]


def text_model_type(name: str) -> str:
    """Kind of a Hugging Face text model, by its repository."""
    kinds = {"xlm-roberta": "xlm-roberta", "roberta": "roberta", "mt5": "mt5", "nllb": "m2m_100"}
    return next(kind for part, kind in kinds.items() if part in name)


def write_text_model(folder: Path, kind: str) -> str:
    """Write the configuration of a small Hugging Face text model; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind} | _TEXT_MODELS[kind]))
    return str(folder)


def shrink(config: dict[str, Any]) -> dict[str, Any]:
    """A small description with the switches of the given one."""
    config = copy.deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = WIDTH if vision.get("timm_proj") == "none" else EMBED
    if "timm_model_name" not in vision:
        if isinstance(vision["layers"], list):
            vision |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
        else:
            vision |= {"layers": 1, "width": WIDTH, "head_width": 16, "image_size": 2 * vision["patch_size"]}
            if vision.get("attentional_pool"):
                vision |= {"attn_pooler_heads": 2, "attn_pooler_queries": 3}
    if not text.get("hf_model_name"):
        text |= {"width": WIDTH, "heads": 2, "layers": 1}
        if text.get("hf_tokenizer_name"):
            text["vocab_size"] = 500
        if text.get("proj_type") == "none":
            text["width"] = config["embed_dim"]
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": EMBED, "heads": 2, "layers": 1}
    return config


@contextmanager
def small_timm() -> Iterator[None]:
    """Have timm build its models small; those whose width is written in their code keep it."""
    make = timm.create_model

    def create_model(name: str, *arguments: Any, **options: Any) -> torch.nn.Module:
        return make(name, *arguments, **options | _timm_sizes(name))

    with mock.patch("timm.create_model", create_model):
        yield


def _timm_sizes(name: str) -> dict[str, Any]:
    patch = next((int(part.removeprefix("patch")) for part in name.split("_") if part.startswith("patch")), 16)
    if name.startswith("convnext"):
        return {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    if name.startswith("fastvit"):
        stages = 5 if name in ("fastvit_mci3", "fastvit_mci4") else 4
        return {"layers": (1,) * stages, "embed_dims": (16, 16, 32, 32, 32)[:stages]}
    if name.startswith("swin"):
        return {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    if name.startswith(("vitamin", "vit_base_mci")):  # the width is written in the stem
        return {"depth": 1, "img_size": 64}
    return {"embed_dim": WIDTH, "depth": 1, "num_heads": 2, "img_size": 2 * patch}


def write_small(name: str, folder: Path) -> str:
    """Write the small description of a named architecture; returns its path."""
    config = shrink(get_model_config(name))
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        text["hf_model_name"] = write_text_model(folder / name, text_model_type(text["hf_model_name"]))
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        vision["image_size"] = _image_size(vision["timm_model_name"], vision["image_size"])
    path = folder / f"small-{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def _image_size(name: str, size: int) -> int:
    sizes = _timm_sizes(name)
    if "img_size" in sizes:
        return int(sizes["img_size"])
    if name.startswith(("convnext", "fastvit")):
        return 64
    return size
