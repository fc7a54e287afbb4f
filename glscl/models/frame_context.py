"""Temporal transformer over frame features (CLIP4Clip's ``seqTransf``)."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glscl.errors import UserError

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer

_HIDDEN = -1e6  # additive; finite, so that a video without a real frame still has numbers


class FrameContext(nn.Module):
    """Lets every frame see the others: ``v = u + Transformer(u + p)`` (ArrowLuo/CLIP4Clip, ``sim_header seqTransf``).

    Pre-norm residual blocks with QuickGELU and LayerNorm of eps 1e-12; padded frames are hidden from attention.
    ``positions`` are the rows of the frame position table, the most frames it can take.
    """

    def __init__(self, width: int, layers: int, heads: int, positions: int) -> None:
        from open_clip.transformer import QuickGELU, ResidualAttentionBlock

        super().__init__()
        self.heads = heads
        self.position_embeddings = nn.Embedding(positions, width)
        norm = partial(nn.LayerNorm, eps=1e-12)
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, act_layer=QuickGELU, norm_layer=norm) for _ in range(layers)
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def initialise_from(self, text: "TextTransformer") -> None:
        """Copy the text tower's positions and first layers, as far as their shapes agree (as CLIP4Clip does)."""
        table = self.position_embeddings.weight
        rows = min(len(table), len(text.positional_embedding))
        if text.positional_embedding.shape[1] == table.shape[1]:
            table[:rows] = text.positional_embedding[:rows]
        for block, given in zip(self.resblocks, text.transformer.resblocks, strict=False):
            state = given.state_dict()
            if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in block.state_dict().items()}:
                block.load_state_dict(state)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Contextual features (B, F, D) of features and mask (B, F). Raises `UserError`: more frames than positions."""
        length = frames.shape[1]
        if length > self.position_embeddings.num_embeddings:
            raise UserError(
                f"{length} frames, but this model's frame positions end at {self.position_embeddings.num_embeddings}: "
                "raise model.max_frames before training, or lower it now"
            )
        positions = self.position_embeddings(torch.arange(length, device=frames.device))
        return frames + self.attend(frames + positions, frame_mask)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """The blocks alone, of sequences (N, L, D) that have their positions, with their mask (N, L)."""
        sequences, length, _ = x.shape
        hidden = (~mask.bool()).to(x.dtype)[:, None, None, :] * _HIDDEN
        bias = hidden.expand(sequences, self.heads, length, length).reshape(-1, length, length)
        for block in self.resblocks:
            x = block(x, attn_mask=bias)
        return x
