"""Text towers: open_clip's own, giving every token's feature in the joint space beside the sentence's.

Which features are a token's: what the last layer says of it, under the norm and the projection that the sentence
feature goes through, also where the sentence is another position's or a mean. Which tokens are real: those up to the
end token; where nothing but the padding tells, those that are not padding, at least the first.
"""

from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from glscl.models.architectures import Architecture


class TokenTextTransformer(TextTransformer):
    """open_clip's text transformer, giving tokens.

    The parameters are open_clip's own; only what `forward` returns differs. It is a `forward` of the module that owns
    them so that hooks which gather sharded parameters run.
    """

    marks_end: bool
    """Whether a caption's end token has the greatest id of all, as in CLIP's vocabulary."""
    sees_padding: bool

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode token ids (A, W), W at most the context length.

        Returns sentence features (A, D); token features (A, W, D); token mask (A, W), True for real tokens.
        """
        words = token_ids.shape[1]
        ids = token_ids
        if self.sees_padding:  # it must be as long as it was in pretraining
            ids = F.pad(ids, (0, self.context_length - words), value=self.pad_id)
        if self.cls_emb is None and self.pool_type in ("argmax", "eos"):
            tokens = self._project(self._encode(ids)[:, :words])
            is_end = token_ids == self.eos_id if self.pool_type == "eos" else token_ids
            sentence = tokens[torch.arange(tokens.shape[0], device=ids.device), is_end.int().argmax(-1)]
        else:
            sentence, hidden = super().forward(ids)
            hidden = hidden[:, :words]  # with a class token, which is the last, before the norm
            tokens = self._project(hidden if self.cls_emb is None else self.ln_final(hidden))
        return sentence, tokens, _up_to(self._find_end(token_ids), words)

    def _encode(self, ids: Tensor) -> Tensor:
        """Last hidden states of tokens (A, W, width), normalised, without a class token."""
        length = ids.shape[1]
        mask = self.attn_mask if self.attn_mask is None else self.attn_mask[:length, :length]
        x = self.token_embedding(ids)
        x = x + self.positional_embedding[:length].to(x.dtype)
        return cast(Tensor, self.ln_final(self.transformer(x, attn_mask=mask)))

    def _project(self, x: Tensor) -> Tensor:
        if self.text_projection is None:
            return x
        projected = self.text_projection(x) if isinstance(self.text_projection, nn.Linear) else x @ self.text_projection
        return cast(Tensor, projected)

    def _find_end(self, token_ids: Tensor) -> Tensor:
        """Position of the last real token (A,)."""
        if self.pool_type == "eos" and self.cls_emb is None:
            return cast(Tensor, token_ids == self.eos_id).int().argmax(-1)
        return token_ids.argmax(-1) if self.marks_end else _last(cast(Tensor, token_ids != self.pad_id))


class TokenHFTextEncoder(HFTextEncoder):
    """open_clip's adapter of Hugging Face's text models, giving tokens; padding is hidden from attention."""

    def forward(self, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode token ids (A, W): sentence features (A, D), token features (A, W, D), token mask (A, W)."""
        real = token_ids != self.config.pad_token_id
        # transformers looks at the mask's numbers, of which there are none where only shapes are.
        output = self.transformer(input_ids=token_ids, attention_mask=None if real.is_meta else real.long())
        sentence = self.proj(self.pooler(output, real.long()))
        return sentence, self.proj(output.last_hidden_state), _up_to(_last(real), token_ids.shape[1])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        if enable:
            self.transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.transformer.gradient_checkpointing_disable()


TextTower: TypeAlias = TokenTextTransformer | TokenHFTextEncoder


def give_tokens(text: nn.Module, architecture: Architecture) -> TextTower:
    """Make a text tower of open_clip return tokens, too: the same module and parameters, another `forward`."""
    if isinstance(text, HFTextEncoder):
        text.__class__ = TokenHFTextEncoder
        text.float()  # of whatever type the hub's configuration asks for
        # Layers that are left out by chance would leave ranks with gradients for different parameters.
        text.transformer.layerdrop = 0.0
        return cast(TokenHFTextEncoder, text)
    text.__class__ = TokenTextTransformer
    tower = cast(TokenTextTransformer, text)
    tower.output_tokens = True
    tower.pad_id = architecture.padding
    tower.marks_end = not architecture.text.hf_tokenizer_name
    tower.sees_padding = architecture.sees_padding
    return tower


def _last(real: Tensor) -> Tensor:
    """Position of the last True of each row (A,) of (A, W); 0 without one."""
    return (real * torch.arange(real.shape[1], device=real.device)).amax(-1)


def _up_to(end: Tensor, words: int) -> Tensor:
    """Mask (A, W), True up to each row's end (A,)."""
    return torch.arange(words, device=end.device) <= end.unsqueeze(-1)
