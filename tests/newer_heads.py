"""What `tests/parity.py` computes of heads that draw numbers, or have losses and gradients of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from glscl.losses import LossConfig, LossInputs, compute_losses, term_names
from glscl.models.heads import Features, Head

Tensors = dict[str, Tensor]


def compute(head: Head, metadata: Mapping[str, str], given: Mapping[str, Tensor]) -> Tensors:
    """Everything that the project can compute of a case, under the recorded names.

    Gradients of a part's sum against numbers from -1 to 1 are ``grad.<part>.X``, those of the similarity's ``grad.X``.
    """
    inputs = {name: tensor.clone() for name, tensor in given.items()}
    wanted = [name for name in ("text_eos", "text_tokens", "frames") if name in inputs]
    for name in wanted:
        inputs[name].requires_grad_()
    found = COMPUTE[metadata["head"]](head, metadata, inputs)
    gradients = {}
    for part, tensor in found.items():
        if not tensor.requires_grad:
            continue
        objective = (tensor * torch.linspace(-1, 1, tensor.numel()).view_as(tensor)).sum() if tensor.ndim else tensor
        grads = torch.autograd.grad(objective, [inputs[name] for name in wanted], retain_graph=True, allow_unused=True)
        prefix = "grad." if part == "similarity" else f"grad.{part}."
        gradients |= {prefix + name: grad for name, grad in zip(wanted, grads, strict=True) if grad is not None}
    return {name: tensor.detach() for name, tensor in found.items()} | gradients


def _encode(head: Head, inputs: Tensors) -> tuple[Features, Features]:
    text = head.encode_text(inputs["text_eos"], inputs["text_tokens"], inputs["token_mask"])
    return text, head.encode_video(inputs["frames"], inputs["frame_mask"])


def _losses(inputs: LossInputs, sections: Mapping[str, Mapping[str, float]]) -> Tensors:
    """These terms of the loss under the names of their sections, and their sum."""
    off: dict[str, Mapping[str, float]] = {name: {"weight": 0.0} for name in term_names()}
    return compute_losses(LossConfig.model_validate(off | dict(sections)), inputs)


def _loss_inputs(
    similarity: Tensor,
    scale: Tensor,
    caches: tuple[Features, Features] = ({}, {}),
    name: str | None = None,
    detail: Tensor | None = None,
) -> LossInputs:
    """Of a batch of pairs of different videos, or of one that is no batch of pairs."""
    pairs, logits = torch.eye(*similarity.shape, dtype=torch.bool), scale * similarity
    of_detail = {"detail": name, "row_detail": detail, "column_detail": detail, "scale": scale}
    return LossInputs(logits, logits, pairs, pairs, *caches, **of_detail)  # type: ignore[arg-type]


def _gare(head: Head, metadata: Mapping[str, str], inputs: Tensors) -> Tensors:
    both = head(*_encode(head, inputs), detail=True)
    similarity, increments = both[..., 0], both[..., 1:]
    sections: dict[str, dict[str, float]] = {
        "increment_bottleneck": {"weight": float(metadata["beta"])},
        "increment_direction": {"weight": float(metadata["lambda_dir"]), "alpha": float(metadata["alpha"])},
        "increment_radius": {"weight": float(metadata["lambda_epsilon"]), "limit": float(metadata["lambda_lower"])},
    }
    scale = inputs.get("log_logit_scale", torch.zeros(())).exp()
    losses = _losses(_loss_inputs(similarity, scale, ({}, {}), "increments", increments), sections)
    found = {
        "similarity": similarity,
        "increments": increments,
        "bottleneck_loss": losses["increment_bottleneck"],
        "direction_diversity_loss": losses["increment_direction"],
        "radius_loss": losses["increment_radius"],
        "regularisation_loss": losses["total"],
    }
    if len(similarity) == similarity.shape[1]:
        contrastive = _losses(_loss_inputs(similarity, scale), {"contrastive": {"weight": 1.0}})["contrastive"]
        found |= {"contrastive_loss": contrastive, "total_loss": contrastive + losses["total"]}
    return found


class _Given:
    """Draws that are given."""

    def __init__(self, *draws: Tensor) -> None:
        self._draws = list(draws)

    def normal(self, *shape: int) -> Tensor:
        return self._draws.pop(0)

    uniform = normal


def _tmass(head: Head, metadata: Mapping[str, str], inputs: Tensors) -> Tensors:
    text, video = _encode(head, inputs)
    if metadata["mode"] == "inference":
        return {"similarity": _tmass_at_test_time(head, text, video, inputs["noise"])}
    text |= head.match(text, video, text, _Given(inputs["noise"]), ("support",))[0]  # type: ignore[arg-type]
    both = head(text, video, detail=True)
    weight = float(metadata["support_loss_weight"])
    sections = {"contrastive": {"weight": 1.0}, "support_text": {"weight": weight}}
    scale = inputs["log_logit_scale"].exp()
    losses = _losses(_loss_inputs(both[..., 0], scale, ({}, {}), "support", both[..., 1:]), sections)
    return {
        "similarity": both[..., 0],
        "support_similarity": both[..., 1],
        "contrastive_loss": losses["contrastive"],
        "support_loss": losses.get("support_text", torch.zeros(())),
        "total_loss": losses["total"],
    }


def _tmass_at_test_time(head: Head, text: Features, video: Features, noise: Tensor) -> Tensor:
    """Pair by pair, because the recorded points (B, trials, A, D) are of one pair each, and the head's of all."""
    rows = []
    for a in range(len(text["sentence"])):
        row = []
        for b in range(len(noise)):
            head._noise = lambda like, points=noise[b, :, a]: points  # type: ignore[assignment]
            of_pair = [{key: cache[key][i : i + 1] for key in cache} for cache, i in ((text, a), (video, b))]
            row.append(head(*of_pair))
        rows.append(torch.cat(row, 1))
    return torch.cat(rows)


def _uatvr(head: Head, metadata: Mapping[str, str], inputs: Tensors) -> Tensors:
    text, video = _encode(head, inputs)
    similarity = head(text, video)
    draws = _Given(inputs["noise_text"], inputs["noise_video"])
    of_text, of_video = head.match(text, video, text, draws, ("samples",))  # type: ignore[arg-type]
    caches = text | of_text, video | of_video
    sections = {
        "contrastive": {"weight": 1.0},
        "mil_nce": {"weight": float(metadata["mil_weight"])},
        "sample_divergence": {"weight": float(metadata["kl_weight"])},
    }
    losses = _losses(_loss_inputs(similarity, inputs["log_logit_scale"].exp(), caches), sections)
    return {
        "similarity": similarity,
        "contrastive_loss": losses["contrastive"],
        "mil_loss": losses["mil_nce"],
        "kl_loss": losses["sample_divergence"],
        "total_loss": losses["total"],
    }


def _agc(head: Head, metadata: Mapping[str, str], inputs: Tensors) -> Tensors:
    """From hidden states of [padding, document, universal queries] and the last layer's attention on."""
    queries = int(metadata["queries"])
    mask = inputs["sequence_mask"][:, :-queries].bool()
    attention = inputs["attention"][:, :, -queries:, :-queries]
    no_sentence = torch.zeros(len(inputs["text_tokens"]), inputs["text_tokens"].shape[-1])
    text = head.encode_text(no_sentence, inputs["text_tokens"], inputs["token_mask"])
    return {"similarity": head(text, head.compress(inputs["frames"][:, :-queries], attention, mask))}


def _tcmgc(head: Head, metadata: Mapping[str, str], inputs: Tensors) -> Tensors:
    scale = inputs["log_logit_scale"].exp()
    both = head(*_encode(head, inputs), detail=True, scale=scale)
    similarity, scores = both[..., 0], both[..., 1:]
    sections = {
        "contrastive": {"weight": 1.0},
        "similarity_decorrelation": {"weight": float(metadata["sdr_weight"])},
    }
    losses = _losses(_loss_inputs(similarity, scale, ({}, {}), "scores", scores), sections)
    names = ("sentence_video", "word_video", "sentence_frame", "word_frame")
    return {
        "similarity": similarity,
        **{f"scores.{name}": score for name, score in zip(names, scores.unbind(-1), strict=True)},
        "similarity_decorrelation_loss": losses["similarity_decorrelation"],
        "contrastive_loss": losses["contrastive"],
        "total_loss": losses["total"],
    }


COMPUTE: dict[str, Callable[[Head, Mapping[str, str], Tensors], Tensors]] = {
    "gare": _gare,
    "tmass": _tmass,
    "uatvr": _uatvr,
    "agc": _agc,
    "tcmgc": _tcmgc,
}
"""By the name of the head."""
