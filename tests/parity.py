"""Compare the project's heads and losses with outputs recorded from the authors' own code.

    python tests/parity.py FILE.safetensors...

Prints the largest difference of every recorded tensor, and exits 1 if one is beyond tolerance, was not compared, or
belongs to a head that the project does not have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from glscl.errors import UserError
from glscl.evaluation.normalise import qb_norm
from glscl.losses import LossConfig, LossInputs, compute_losses
from glscl.losses.inter_consistency import parts
from glscl.models.heads import Head, build_head, head_class

sys.path.append(str(Path(__file__).parent))
import newer_heads

ABSOLUTE = 1e-5  # similarities, concepts
RELATIVE = 1e-4  # losses, gradients: of the tensor's largest entry
ROUNDING = 1e-8  # a recorded loss or gradient of exactly zero


LEFT_OUT = {
    "evaluation_similarity": "what T-MASS's code ranks by pools every video for its own caption, and tells which it is"
}
"""Recorded on purpose to be no head's similarity: names, and why neither they nor their gradients are compared."""


@dataclass(frozen=True)
class Case:
    """One recorded case: metadata, and tensors by the part of their name after the first dot."""

    metadata: dict[str, str]
    inputs: dict[str, Tensor]
    params: dict[str, Tensor]
    expected: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from its recording."""

    key: str
    found: float
    allowed: float
    kind: str

    @property
    def ok(self) -> bool:
        return self.found <= self.allowed  # False for NaN


def load(path: str | Path) -> Case:
    """Read a file of recorded tensors."""
    groups: dict[str, dict[str, Tensor]] = {"input": {}, "param": {}, "expected": {}}
    with safe_open(str(path), "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dict)
            group, _, name = key.partition(".")
            groups[group][name] = file.get_tensor(key)
        return Case(file.metadata() or {}, groups["input"], groups["param"], groups["expected"])


def _glscl_options(case: Case) -> dict[str, Any]:
    meta = case.metadata
    return {
        "tau": float(meta["tau"]),
        "local_weight": float(meta["lam"]),
        "queries": int(meta["queries"]),
        "layers": int(meta["layers"]),
        "attention_heads": int(meta["heads"]),
        "feedforward": int(meta["feedforward"]),
        "dropout": 0.0,
        "mask_padding": False,
    }


def _transformer_options(case: Case, table: str) -> dict[str, Any]:
    """Options of CLIP4Clip's transformers; ``table`` is the position table's name."""
    layers, heads = int(case.metadata["layers"]), int(case.metadata["heads"])
    return {"layers": layers, "attention_heads": heads, "positions": len(case.params[table])}


_UATVR_COUNTS = ("extra_text_tokens", "extra_video_tokens", "text_samples", "video_samples")
_TIGHT_POSITIONS = "cross.embeddings.position_embeddings.weight"


def _mask_options(case: Case, *numbers: str) -> dict[str, Any]:
    """Recorded numbers under their own names, and padding as the authors' code uses it."""
    return {name: float(case.metadata[name]) for name in numbers} | {"mask_padding": False}


OPTIONS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "mean_pool": lambda case: {},
    "glscl": _glscl_options,
    "glccl": lambda case: {"tau": float(case.metadata["tau"]), "mask_padding": False},
    "seq_transformer": lambda case: _transformer_options(case, "frame_position_embeddings.weight"),
    "tight_transformer": lambda case: _transformer_options(case, _TIGHT_POSITIONS) | {"dropout": 0.0},
    "xpool": lambda case: {"attention_heads": int(case.metadata["heads"]), "dropout": 0.0, "mask_padding": False},
    "wti": lambda case: {"mask_padding": False},
    "xclip": lambda case: {"mask_padding": False},
    "dicosa": lambda case: {
        "tau": float(case.metadata["tau"]),
        "centers": int(case.metadata["centers"]),
        "mask_padding": False,
    },
    "gare": lambda case: _mask_options(case, "tau") | {"dropout": 0.0},
    "tmass": lambda case: _mask_options(case) | {"attention_heads": int(case.metadata["heads"]), "dropout": 0.0},
    "uatvr": lambda case: {
        **_transformer_options(case, "frame_position_embeddings.weight"),
        **{name: int(case.metadata[name]) for name in _UATVR_COUNTS},
        "mask_padding": False,
    },
    "agc": lambda case: {
        "mask_padding": True,  # as theirs does with the query's
        **{name: int(case.metadata[name]) for name in ("vectors", "queries")},
        "pooling": case.metadata["pooling"],
        "weights": "saliency" if case.metadata["weights"] == "saliency" else "none",
        "centroid_weight": float(case.metadata["centroid_weight"]),
        "attention_heads": 1,
        "layers": 1,
    },
    "tcmgc": lambda case: (
        _mask_options(case, "keep_rate", "softmax_lambda")
        | {"attention_heads": int(case.metadata["heads"]), "dropout": 0.0}
    ),
}
"""From a case to the options of the project's head."""

RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "seq_transformer": (("frame_position_embeddings", "context.position_embeddings"), ("transformerClip", "context")),
    "tight_transformer": (
        ("cross.embeddings.", "context."),
        ("cross.transformer.", "context."),
        ("cross.pooler.", ""),
        ("similarity_dense.", "similarity."),
    ),
    "xpool": (("cross_attn.", ""),),
    "dicosa": (("weight_fc.0.", "hidden."), ("weight_fc.2.", "weight.")),
    "gare": (
        ("psi.layers.0.cross_attn.", ""),
        ("psi.layers.0.linear1.", "linear_proj."),
        ("psi.layers.0.", ""),
        ("psi.", ""),
    ),
    "tmass": (
        ("pool_frames.cross_attn.", "pool."),
        ("pool_frames.", "pool."),
        ("stochastic.std_branch.linear_proj.", "radius."),
    ),
    "tcmgc": (("conditional_transformer.pool_frames.", ""),),
    "uatvr": (("frame_position_embeddings", "context.position_embeddings"), ("transformerClip", "context")),
}
"""Beginnings of the authors' parameter names, and the project's in their place; other names are equal."""


def rename(head: str, name: str) -> str:
    """The project's name of an authors' parameter."""
    for theirs, ours in RENAMED.get(head, ()):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def build(case: Case) -> Head:
    """The project's head with the recorded options and parameters, in training mode without dropout.

    Raises:
        UserError: the project has no such head, or this script cannot set it up.
    """
    name = case.metadata["head"]
    cls = head_class(name)
    if name not in OPTIONS:
        raise UserError(f"head '{name}' is not covered: say in OPTIONS how its recorded options are set")
    lengths = case.inputs["text_tokens"].shape[1], case.inputs["frames"].shape[1]
    head = build_head(name, int(case.metadata["width"]), cls.Options.model_validate(OPTIONS[name](case)), lengths)
    if case.params or name != "agc":  # of AGC what comes before its scores is not recorded
        head.load_state_dict({rename(name, key): tensor for key, tensor in case.params.items()})
    return head.train()


def compute(case: Case) -> dict[str, Tensor]:
    """Everything that the project can compute of a case, under the recorded names."""
    head = build(case)
    if case.metadata["head"] in newer_heads.COMPUTE:
        return newer_heads.compute(head, case.metadata, case.inputs)
    inputs = {name: tensor.clone() for name, tensor in case.inputs.items()}
    for name in inputs.keys() - {"token_mask", "frame_mask"}:
        inputs[name].requires_grad_()
    text = head.encode_text(inputs["text_eos"], inputs["text_tokens"], inputs["token_mask"])
    video = head.encode_video(inputs["frames"], inputs["frame_mask"])
    similarity = head(text, video)
    found = {"similarity": similarity}
    if head.parts:
        parts = head(text, video, parts=True)
        found |= {f"scores.{name}": parts[..., index] for index, name in enumerate(head.parts)}
        found |= _consistency_loss(parts)
    if case.metadata["head"] == "glscl":
        found |= {
            "global_similarity": head.global_similarity(text, video),
            "local_similarity": head.local_similarity(text, video),
            "text_concepts": text["concepts"],
            "video_concepts": video["concepts"],
        }
        found |= _losses(case.metadata, similarity * inputs["log_logit_scale"].exp(), text, video)
        objective = found["total_loss"]
    else:
        objective = (similarity * torch.linspace(-1, 1, similarity.numel()).view_as(similarity)).sum()
    objective.backward()
    for name, tensor in [*inputs.items(), *head.named_parameters()]:
        if tensor.grad is not None:
            found[f"grad.{name}"] = tensor.grad
    return {name: tensor.detach() for name, tensor in found.items()}


def compute_order(case: Case) -> dict[str, Tensor]:
    """The ranking of videos per text after query-bank normalisation, which is no head but is recorded like one."""
    scores = qb_norm(
        case.inputs["similarity"],
        case.inputs["bank_similarity"],
        beta=float(case.metadata["temperature"]),
        top_k=int(case.metadata["top_k"]),
        threshold=int(case.metadata["activation_threshold"]),
    )
    return {"order": scores.argsort(dim=1, descending=True, stable=True)}


def _consistency_loss(parts: Tensor) -> dict[str, Tensor]:
    """The score consistency loss, from which the logit scale cancels, where every text has its video."""
    if parts.shape[0] != parts.shape[1]:
        return {}
    pairs = torch.eye(len(parts), dtype=torch.bool)
    similarity = parts.mean(-1)
    config = LossConfig.model_validate({"contrastive_score_consistency": {"weight": 1.0}})
    losses = compute_losses(config, LossInputs(similarity, similarity, pairs, pairs, {}, {}, parts=parts))
    return {"contrastive_score_consistency_loss": losses["contrastive_score_consistency"]}


def _losses(
    meta: dict[str, str], logits: Tensor, text: dict[str, Tensor], video: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The official losses of a batch whose pairs all have videos of their own."""
    config = LossConfig.model_validate(
        {
            "contrastive": {"weight": 1.0},
            "inter_consistency": {
                "weight": 1.0,
                "margin_weight": float(meta["beta"]),
                "target": float(meta["target"]),
                "form": "official",
            },
            "intra_diversity": {"weight": float(meta["alpha"]), "margin": float(meta["margin"]), "form": "official"},
        }
    )
    pairs = torch.eye(len(logits), dtype=torch.bool)
    losses = compute_losses(config, LossInputs(logits, logits, pairs, pairs, text, video))
    mse, margin = parts(config.inter_consistency, text["concepts"], video["concepts"])
    return {
        "contrastive_loss": losses["contrastive"],
        "inter_consistency_loss": losses["inter_consistency"],
        "intra_diversity_loss": losses.get("intra_diversity", torch.zeros(())),
        "total_loss": losses["total"],
        "inter_consistency_mse": mse,
        "inter_consistency_margin": margin,
    }


def compare(path: str | Path) -> list[Difference]:
    """Differences of every recorded tensor of a file but `LEFT_OUT`; one that cannot be computed differs infinitely.

    Raises:
        UserError: the project has no such head, or it has no such parameters.
    """
    case = load(path)
    if "head" not in case.metadata:
        raise UserError(f"not covered: {Path(path).name} records no head")
    found = compute_order(case) if case.metadata["head"] == "qb_norm" else compute(case)
    differences = []
    for key, expected in sorted(case.expected.items()):
        if set(key.split(".")) & LEFT_OUT.keys():
            continue
        relative = key.startswith(("grad.", "inter_consistency_")) or key.endswith("_loss")
        kind = "relative" if relative else "absolute"
        actual = found.get(key)
        if actual is None or actual.shape != expected.shape:
            differences.append(Difference(key, float("inf"), 0.0, "not compared" if actual is None else "other shape"))
            continue
        largest = (actual - expected).abs().max().item()
        reference = expected.abs().max().item()
        if not relative:
            differences.append(Difference(key, largest, ABSOLUTE, kind))
        elif reference == 0:
            differences.append(Difference(key, largest, ROUNDING, "absolute, of zero"))
        else:
            differences.append(Difference(key, largest / reference, RELATIVE, kind))
    return differences


def main(paths: list[str]) -> int:
    """Print every difference of every file; 0 if all agree."""
    if not paths:
        print("usage: python tests/parity.py FILE.safetensors...")
        return 2
    failed = 0
    for path in paths:
        print(path)
        try:
            differences = compare(path)
        except (UserError, KeyError, RuntimeError, OSError) as error:
            failed += 1
            print(f"  FAIL  {type(error).__name__}: {error}")
            continue
        for difference in differences:
            mark = "ok  " if difference.ok else "FAIL"
            print(f"  {mark}  {difference.key:32s} {difference.found:.2e} {difference.kind} (≤ {difference.allowed:g})")
        for name in LEFT_OUT.keys() & load(path).expected.keys():
            print(f"  left out: {name}, {LEFT_OUT[name]}")
        failed += not differences or not all(difference.ok for difference in differences)
    print(f"parity: {len(paths) - failed} of {len(paths)} files agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
