"""Fingerprint of towers: a hash of what their features depend on, the same on every machine.

Equal fingerprints mean the same architecture, activation, colours and weights. Weights are hashed as bf16: towers that
were loaded in fp32 and in bf16 are the same, and whatever is not worth a bf16 digit is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from glscl.models.towers import Towers

_SECTIONS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
_SAYS_NOTHING = {"timm_model_pretrained", "hf_model_pretrained", "output_tokens", "patch_dropout"}
"""Keys of an architecture that no feature in evaluation mode depends on."""


def tower_fingerprint(towers: Towers) -> str:
    """SHA-256, in hexadecimal, of towers that have weights: half a second for ViT-B."""
    facts = {"architecture": _describe_architecture(towers.architecture), **towers.metadata}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(towers.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(f"{name} {[*tensor.shape]}".encode())
            digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy())
    return digest.hexdigest()


def _describe_architecture(config: Mapping[str, object]) -> dict[str, object]:
    """open_clip's configuration without what says nothing, is a default, or is told by the activation itself."""
    described: dict[str, object] = {"embed_dim": config.get("embed_dim")}
    for name, kind in _SECTIONS.items():
        section = config.get(name)
        defaults = {one.name: None if one.default is MISSING else one.default for one in fields(kind)}
        described[name] = {
            key: value
            for key, value in (section.items() if isinstance(section, Mapping) else ())
            if key not in _SAYS_NOTHING and defaults.get(key) != value
        }
    return described
