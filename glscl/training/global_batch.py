"""Loss and gradients of a global batch that is spread over ranks and, within a rank, over chunks.

Everything here keeps one promise: **the loss averaged over the ranks, and the gradients averaged over the ranks, are
those of one process that holds the whole global batch** (to rounding, dropout aside), at any number of ranks and
chunks. Each rank encodes its own pairs, gathers what the head caches with gradients, and scores its own texts against
all videos and all texts against its own videos, so that the work per rank falls with the number of ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from glscl.errors import UserError
from glscl.losses import (
    LossConfig,
    LossInputs,
    NeededFeatures,
    compute_losses,
    needed_features,
    needs_logit_bias,
    tiled_cross_entropies,
    tiled_sigmoid,
    tiles_apply,
)
from glscl.losses.base import LOGIT_BIAS
from glscl.models.heads.base import Draws, Features
from glscl.training.collectives import gather, gather_features, mean_gradient, mean_over_ranks, rank, world_size

Call = Callable[..., Any]
"""A `Retriever`, or an engine around one: called with a mode and that mode's arguments."""


class Backward(Protocol):
    """Accumulates the gradients of a scalar, unscaled, into the parameters; ``last`` marks the step's last piece."""

    def __call__(self, loss: Tensor, *, last: bool) -> None: ...


@dataclass(frozen=True)
class RankPairs:
    """The tensors of a rank's share of a global batch: b pairs."""

    text: tuple[Tensor, ...]  # token ids (b, W) int64; or features (b, 1 + W, D) with their token mask (b, W)
    frames: Tensor  # (b, F, 3, S, S) uint8; or features (b, F, D)
    frame_mask: Tensor  # (b, F)
    video_ids: Tensor  # (b,) int64, equal for pairs of the same video, whichever rank holds them

    def split(self, chunks: int) -> list["RankPairs"]:
        """Cut into chunks of equal size; a `UserError` where their number does not divide that of the pairs."""
        pairs = len(self.video_ids)
        if pairs % chunks:
            raise UserError(
                f"training.accumulate: {pairs} pairs per worker cannot be cut into {chunks} equal chunks; choose a "
                "divisor of global_batch / num_workers"
            )
        fields = (*self.text, self.frames, self.frame_mask, self.video_ids)
        cuts = zip(*(field.split(pairs // chunks) for field in fields), strict=True)
        return [RankPairs(cut[:-3], *cut[-3:]) for cut in cuts]


def step_loss(
    call: Call, config: LossConfig, text: Features, video: Features, video_ids: Tensor, seed: int = 0
) -> dict[str, Tensor]:
    """Loss terms of the global batch, as this rank's share of their mean over the ranks.

    Args:
        call: matches pairs ("match"), scores ("score", "score_parts", "score_detail", "scored"), says what the head
            provides ("provides") and gives the logit scale ("scale") and bias ("bias").
        text: caches of this rank's b texts.
        video: caches of this rank's b videos, in the same order; every rank has the same b.
        video_ids: (b,) int64, equal for pairs of the same video.
        seed: of the random numbers that the head draws for the pairs, the same on every rank.

    Returns weighted terms by name and their sum, "total". Back-propagate "total" on every rank and average the
    parameters' gradients over the ranks.
    """
    scale = mean_gradient(call("scale"))
    bias = call("bias") if needs_logit_bias(config) else None
    provided = text.keys() & video.keys() | set(call("provides")) | ({LOGIT_BIAS} if bias is not None else set())
    wanted = needed_features(config, provided)
    batch = _gather(call, wanted, text, video, video_ids, seed)
    if tiles_apply(config, len(batch.all_ids), provided):
        return compute_losses(config, _tiled_inputs(call, config, scale, bias, batch))
    return compute_losses(config, _whole_inputs(call, wanted, scale, bias, batch))


@dataclass(frozen=True)
class _Gathered:
    """Caches and numbers of videos of this rank's pairs, and of all."""

    text: Features
    video: Features
    ids: Tensor
    all_text: Features
    all_video: Features
    all_ids: Tensor

    @property
    def first(self) -> int:
        """Index of this rank's first pair."""
        return rank() * len(self.ids)


def _gather(call: Call, wanted: NeededFeatures, text: Features, video: Features, ids: Tensor, seed: int) -> _Gathered:
    """Gather caches with gradients, those included that the head adds to pairs that belong together."""
    all_ids, all_text, all_video = gather(ids), gather_features(text), gather_features(video)
    own = slice(rank() * len(ids), (rank() + 1) * len(ids))
    draws = Draws(seed, own, len(all_ids), ids.device)
    # Copies, because ZeRO-3's hooks replace the tensors inside the dictionaries that they see.
    of_text, of_video = call("match", dict(text), dict(video), dict(all_text), draws, wanted.names)
    return _Gathered(
        text | of_text,
        video | of_video,
        ids,
        all_text | gather_features(of_text),
        all_video | gather_features(of_video),
        all_ids,
    )


def _whole_inputs(
    call: Call, wanted: NeededFeatures, scale: Tensor, bias: Tensor | None, batch: _Gathered
) -> LossInputs:
    """Inputs of the loss with this rank's rows and columns of the similarities."""

    def score(text: Features, video: Features) -> tuple[Tensor, Tensor | None]:
        if wanted.detail is None:
            return call("score", dict(text), dict(video), scale), None
        both = call("score_detail", dict(text), dict(video), scale)
        return both[..., 0], both[..., 1:]

    score_parts, row_detail = None, None
    if "score_parts" in wanted.names:
        score_parts = call("score_parts", dict(batch.text), dict(batch.all_video))
        rows = scale * score_parts.mean(-1)
    else:
        similarities, row_detail = score(batch.text, batch.all_video)
        rows = scale * similarities
    columns, column_detail = rows, row_detail
    if world_size() > 1:
        similarities, column_detail = score(batch.all_text, batch.video)
        columns = scale * similarities
    return LossInputs(
        rows=rows,
        columns=columns,
        row_positives=batch.ids[:, None] == batch.all_ids[None, :],
        column_positives=batch.all_ids[:, None] == batch.ids[None, :],
        text=batch.all_text,
        video=batch.all_video,
        parts=score_parts,
        first=batch.first,
        mean_over_ranks=mean_over_ranks,
        bias=bias,
        detail=wanted.detail,
        row_detail=row_detail,
        column_detail=column_detail,
        scale=scale,
    )


def _tiled_inputs(call: Call, config: LossConfig, scale: Tensor, bias: Tensor | None, batch: _Gathered) -> LossInputs:
    """Inputs of the loss with its sums in place of similarities, which exist in tiles only."""

    def cross_entropies(some: Features, others: Features, ids: Tensor, other_ids: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = call(
            "scored", tiled_cross_entropies, scale, dict(some), dict(others), ids, other_ids
        )
        return result

    both, of_pairs = None, None
    if config.contrastive.weight:
        by_text, by_video = cross_entropies(batch.text, batch.all_video, batch.ids, batch.all_ids)
        if world_size() > 1:
            by_video = cross_entropies(batch.all_text, batch.video, batch.all_ids, batch.ids)[1]
        both = by_text, by_video
    if bias is not None and config.sigmoid.weight:
        caches = dict(batch.text), dict(batch.all_video)
        of_pairs = call("scored", tiled_sigmoid, scale, bias, *caches, batch.ids, batch.all_ids)
    empty, no_positives = scale.new_empty(0, 0), batch.ids.new_empty(0, 0, dtype=torch.bool)
    return LossInputs(
        rows=empty,
        columns=empty,
        row_positives=no_positives,
        column_positives=no_positives,
        text=batch.all_text,
        video=batch.all_video,
        first=batch.first,
        cross_entropies=both,
        mean_over_ranks=mean_over_ranks,
        bias=bias,
        sigmoid=of_pairs,
        scale=scale,
    )


def backward_global_batch(
    call: Call, backward: Backward, config: LossConfig, batch: RankPairs, accumulate: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Run forward and backward of one step over this rank's share; returns the terms of `step_loss`, detached.

    ``seed`` is of the step's random numbers that belong to pairs, the same on every rank.

    With ``accumulate`` > 1 only one chunk's activations are held at a time (a two-pass gradient cache, Gao et al. 2021,
    arXiv 2101.06983): encode every chunk without a graph; back-propagate the loss of the whole global batch to the
    caches; encode each chunk again, under the random state it had the first time, and back-propagate the inner product
    of its caches with their gradients. Parameters that scoring uses directly, and the logit scale, get their gradient
    in the second stage, once.

    ``backward`` is called `backward_calls(accumulate)` times. The gradients must arrive unscaled, since the caches'
    gradients enter the later pieces (see `glscl.training.engine.backward`). Precisions that scale the loss (fp16) do
    not fit. Raises `UserError`: ``accumulate``, the number of chunks, does not divide the rank's pairs.
    """
    if accumulate == 1:
        losses = step_loss(call, config, *_encode(call, batch), batch.video_ids, seed)
        backward(losses["total"], last=True)
        return {name: loss.detach() for name, loss in losses.items()}

    chunks = batch.split(accumulate)
    device = batch.frames.device
    states: list[tuple[Tensor, Tensor | None]] = []
    cached: list[tuple[Features, Features]] = []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(device))
            cached.append(_encode(call, chunk))
    text, video = (_leaves([caches[side] for caches in cached]) for side in (0, 1))
    losses = step_loss(call, config, text, video, batch.video_ids, seed)
    backward(losses["total"], last=False)

    for index, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        with _replayed(state, device):
            again = _encode(call, chunk)
        pieces = []
        for leaves, features in zip((text, video), again, strict=True):
            for name, tensor in features.items():
                grad = leaves[name].grad
                if tensor.requires_grad and grad is not None:
                    pieces.append((tensor.float() * grad.chunk(accumulate)[index].float()).sum())
        if not pieces:  # nothing that encodes is trained; the calls of ``backward`` are counted all the same
            pieces.append(0.0 * call("scale").sum())
        backward(torch.stack(pieces).sum(), last=index == accumulate - 1)
    return {name: loss.detach() for name, loss in losses.items()}


def backward_calls(accumulate: int) -> int:
    """How many times `backward_global_batch` calls ``backward``."""
    return 1 if accumulate == 1 else 1 + accumulate


def _encode(call: Call, batch: RankPairs) -> tuple[Features, Features]:
    return call("text", *batch.text), call("video", batch.frames, batch.frame_mask)


def _leaves(chunks: list[Features]) -> Features:
    """Concatenate chunks of caches; floating-point ones become leaves that collect gradients."""
    whole = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return {name: t.requires_grad_() if t.is_floating_point() else t for name, t in whole.items()}


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Run under an earlier random state, and leave the present one as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
