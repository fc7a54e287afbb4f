"""Export for sentence-transformers: stock modules only, for models whose texts and frames are single vectors.

The towers become Hugging Face's CLIP, in which open_clip's parameters have other names. A video's vector is the unit
mean of the unit vectors of its frames, which `encode` gives for pictures.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glscl.errors import UserError
from glscl.evaluation.saved import ModelCard, read_card, towers_found
from glscl.retrieval.export import Exportable, read_exportable, write_page
from glscl.system import storage

if TYPE_CHECKING:
    from glscl.models.towers import Towers

FOLDER = "0_CLIPModel"
_MODULES = (
    {"idx": 0, "name": "0", "path": FOLDER, "type": "sentence_transformers.models.CLIPModel"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
)
_KNOWN = {
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
}
"""What of an architecture's description Hugging Face's CLIP has."""
_START, _END = "<|startoftext|>", "<|endoftext|>"
_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
          "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
_TOP = {
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final": "text_model.final_layer_norm",
    "text.text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = ("text.text_projection", "visual.proj")
_USAGE = """## How to use it

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")  # this folder
text = model.encode("a dog catches a frisbee")
frames = model.encode(pictures)  # PIL pictures of one video, chosen as preprocessing.json says
video = frames.mean(0)
print(text @ video / (video @ video) ** 0.5)
```

A picture is resized here by Pillow, elsewhere by torch, which differ in the last digit of a colour."""


def export_sentence_transformers(uri: str, output: str) -> ModelCard:
    """Write a model for sentence-transformers; ``modules.json`` comes last.

    Raises `UserError`: as `load_model`, or a model that stock modules cannot be: says what of it.
    """
    folder, card = read_card(uri)
    check_is_vector(card)
    with towers_found(folder, card) as towers, tempfile.TemporaryDirectory(prefix="glscl-st-") as scratch:
        whole = read_exportable(uri, towers, folder)
        _check_architecture(card.model.clip, whole.retriever.towers.architecture)
        os.makedirs(os.path.join(scratch, FOLDER))
        write_clip(whole, os.path.join(scratch, FOLDER))
        write_page(whole, scratch, hub=False, usage=_USAGE)
        output = storage.resolve(output)
        for name in sorted(_files(scratch)):
            storage.upload(os.path.join(scratch, name), storage.join(output, name))
        storage.write_json(storage.join(output, "modules.json"), list(_MODULES))
    return whole.card


def check_is_vector(card: ModelCard) -> None:
    """Refuse a model whose score is not a cosine of two vectors that stock modules compute."""
    model = card.model
    reason = ""
    if model.head != "mean_pool":
        reason = f"the head '{model.head}' is more than one vector of a text and one of a video (mean_pool is)"
    elif model.frame_context != "none":
        reason = "its frame context lets frames see each other (model.frame_context), which no stock module does"
    elif model.adapters.bottleneck is not None:
        reason = "its towers have bottlenecks (model.adapters.bottleneck), which no stock module has"
    if reason:
        raise UserError(f"--to sentence-transformers: {reason}; export it as a folder or to onnx")


def _check_architecture(clip: str, config: dict[str, dict[str, object]]) -> None:
    for section, known in _KNOWN.items():
        for key, value in config[section].items():
            if key not in known and value is not None:
                raise UserError(
                    f"--to sentence-transformers: {clip} has {section}.{key}, and Hugging Face's CLIP has not; export "
                    f"it as a folder or to onnx"
                )
    if not isinstance(config["vision_cfg"]["layers"], int):
        raise UserError(f"--to sentence-transformers: {clip} has a ResNet for pictures, and no stock module is one")


def _files(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in names)


def write_clip(whole: Exportable, folder: str) -> None:
    """Write towers as Hugging Face's CLIP: configuration, weights, picture processor, tokenizer."""
    from safetensors.torch import save_file

    towers, words = whole.retriever.towers, whole.card.model.max_words
    with torch.no_grad():
        weights = dict(rename(towers.state_dict())) | {"logit_scale": whole.retriever.logit_scale.reshape(())}
    save_file(
        {name: tensor.float().contiguous().clone() for name, tensor in weights.items()},
        os.path.join(folder, "model.safetensors"),
        metadata={"format": "pt"},
    )
    _write(folder, "config.json", describe(towers))
    size, colours = towers.frame_size, towers.colours
    _write(
        folder,
        "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
            "image_mean": list(colours["mean"]), "image_std": list(colours["std"]),
        },
    )  # fmt: skip
    _write_tokenizer(folder, words)


def describe(towers: Towers) -> dict[str, object]:
    """The ``config.json`` of Hugging Face's CLIP for towers of open_clip."""
    text, vision = (towers.architecture[section] for section in ("text_cfg", "vision_cfg"))
    activation = "quick_gelu" if towers.quick_gelu else "gelu"
    width = vision["width"]
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": towers.width,
        "text_config": {
            "model_type": "clip_text_model", "hidden_size": text["width"], "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"], "num_attention_heads": text["heads"], "hidden_act": activation,
            "max_position_embeddings": towers.context_length, "vocab_size": text["vocab_size"],
            "projection_dim": towers.width, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": width, "image_size": towers.frame_size,
            "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)), "num_hidden_layers": vision["layers"],
            "num_attention_heads": width // vision.get("head_width", 64), "patch_size": vision["patch_size"],
            "hidden_act": activation, "projection_dim": towers.width,
        },
    }  # fmt: skip


def rename(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters of open_clip's two transformers under the names that Hugging Face's CLIP has for them."""
    for name, tensor in state.items():
        tower, _, inner = name.partition(".transformer.resblocks.")
        if inner:
            number, _, part = inner.partition(".")
            prefix = f"{'text' if tower == 'text' else 'vision'}_model.encoder.layers.{number}."
            module, _, kind = part.rpartition(".")
            if kind.startswith("in_proj_"):
                for projection, third in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{prefix}self_attn.{projection}_proj.{kind.removeprefix('in_proj_')}", third
            else:
                yield f"{prefix}{_BLOCK[module]}.{kind}", tensor
        elif name in _TOP:
            yield _TOP[name], tensor.T if name in _TRANSPOSED else tensor
        elif name != "text.attn_mask":
            module, _, kind = name.rpartition(".")
            yield f"{_TOP[module]}.{kind}", tensor


def _write_tokenizer(folder: str, words: int) -> None:
    """CLIP's byte pairs, which open_clip brings, in the files of Hugging Face's tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    known = SimpleTokenizer()
    merges = sorted(known.bpe_ranks, key=known.bpe_ranks.__getitem__)
    vocabulary = {_START if token == "<start_of_text>" else _END if token == "<end_of_text>" else token: number
                  for token, number in known.encoder.items()}  # fmt: skip
    _write(folder, "vocab.json", vocabulary)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in merges))
    tokens = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    _write(folder, "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": words} | tokens)
    _write(folder, "special_tokens_map.json", tokens)


def _write(folder: str, name: str, value: object) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
