"""Temporal transformer over frame features (CLIP4Clip's ``seqTransf``)."""

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.errors import UserError

if TYPE_CHECKING:
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

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

    def forward(self, frames: Tensor, frame_mask: Tensor, setting: str = "model.max_frames") -> Tensor:
        """Contextual features (B, F, D) of features and mask (B, F). Raises as `positions_of` does."""
        return frames + self.attend(frames + self.positions_of(frames, setting), frame_mask)

    def positions_of(self, frames: Tensor, setting: str) -> Tensor:
        """The rows (F, D) of the position table for features (B, F, D); ``setting`` says how many it has.

        Raises:
            UserError: more frames than rows.
        """
        length, rows = frames.shape[1], self.position_embeddings.num_embeddings
        if length > rows:
            raise UserError(
                f"{setting}: {length} frames, but the position table has {rows} rows; raise it before training, or "
                f"lower model.max_frames now"
            )
        positions: Tensor = self.position_embeddings(torch.arange(length, device=frames.device))
        return positions

    def attend_with(self, features: Tensor, mask: Tensor, positions: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Contextual features, and outputs of E learned tokens behind them, which see and are seen.

        Args:
            features: (N, L, D).
            mask: (N, L).
            positions: (L, D), added to the features before the blocks; the features are added again after them.
            extra: (E, D), the tokens' input.

        Returns:
            (N, L + E, D) and its mask (N, L + E), in which the tokens are real.
        """
        x, seen = _append(features + positions, mask, extra)
        outputs, length = self.attend(x, seen), features.shape[1]
        return torch.cat([outputs[:, :length] + features, outputs[:, length:]], 1), seen

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """The blocks alone, of sequences (N, L, D) that have their positions, with their mask (N, L)."""
        return self._run(x, mask)[0]

    def attend_and_tell(
        self, features: Tensor, mask: Tensor, positions: Tensor, extra: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Contextual features (N, L, D) as of `attend_with`, and what the E tokens attended to in the last block.

        That is (N, heads, E, L + E), each row summing to 1.
        """
        x, seen = _append(features + positions, mask, extra)
        outputs, before = self._run(x, seen)
        length, last = features.shape[1], cast("ResidualAttentionBlock", self.resblocks[-1])
        in_projection = last.attn.in_proj_weight, last.attn.in_proj_bias
        query, key, _ = F.linear(last.ln_1(before), *in_projection).chunk(3, -1)
        query, key = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query[:, length:], key))
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits.masked_fill(~seen[:, None, None, :], torch.finfo(torch.float32).min)
        return outputs[:, :length] + features, logits.softmax(-1)

    def _run(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the blocks, and what the last of them was given."""
        sequences, length, _ = x.shape
        hidden = (~mask.bool()).to(x.dtype)[:, None, None, :] * _HIDDEN
        bias = hidden.expand(sequences, self.heads, length, length).reshape(-1, length, length)
        before = x
        for block in self.resblocks:
            before, x = x, block(x, attn_mask=bias)
        return x, before


def _append(x: Tensor, mask: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences (N, L + E, D) and their mask, of sequences (N, L, D), their mask, and tokens (E, D), which are real."""
    tokens = extra.to(x.dtype).expand(x.shape[0], -1, -1)
    seen = torch.cat([mask.bool(), mask.new_ones(x.shape[0], len(extra), dtype=torch.bool)], 1)
    return torch.cat([x, tokens], 1), seen
