"""X-CLIP: four scores of sentence, words, video and frames, joined by attention over the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.models.heads.base import Features, LengthTiedHead, register_head
from glscl.models.heads.mean_pool import mean_of_frames
from glscl.models.heads.scoring import score_by_tiles, wide
from glscl.models.scores.attention import attend_over_scores
from glscl.options import Options


class XCLIPOptions(Options):
    """Head of X-CLIP (arXiv 2207.07285): coarse, cross and fine-grained contrast. Tied to words and frames."""

    mask_padding: bool = True
    """Leave padded words and frames out of every score; false scores them, as the authors' code does."""


@register_head("xclip")
class XCLIP(LengthTiedHead):
    """Mean of video-sentence, video-word, sentence-frame and frame-word scores (xuguohai/X-CLIP).

    With unit features, v the mean of the frames and ``att_M(x) = Σ_i [softmax(x / 0.01) M]_i x_i``:
    ``(s G) · v``, ``att_w(w · v)``, ``att_f(s · f)`` and half the sum of ``att_f(att_w((w L) · f))`` and
    ``att_w(att_f((w L) · f))``; every attention has a learned W × W or F × F matrix of its own. All matrices start as
    the identity. With ``frame_context: transformer`` the frames are contextual in all four scores; the authors'
    ``seqTransf`` uses them in v only.
    """

    Options = XCLIPOptions
    length_tied = ("words", "frames")

    def __init__(self, width: int, options: XCLIPOptions, lengths: tuple[int, int]) -> None:
        super().__init__(width, options, lengths)
        self.options = options
        self.global_mat_weight, self.local_mat_weight = (nn.Parameter(torch.eye(width)) for _ in range(2))
        self.word_logit_weight, self.word_mat_weight, self.word_mat_weight2 = (
            nn.Parameter(torch.eye(self.words)) for _ in range(3)
        )
        self.frame_logit_weight, self.frame_mat_weight, self.frame_mat_weight2 = (
            nn.Parameter(torch.eye(self.frames)) for _ in range(3)
        )

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit sentences (A, D) and tokens (A, W, D), both also mapped (``s G``, ``w L``), and the mask.

        Raises:
            UserError: another number of tokens than the head was built for.
        """
        self.check_length("words", tokens.shape[1])
        with torch.autocast(tokens.device.type, enabled=False):
            unit_sentence, unit_tokens = F.normalize(wide(sentence), dim=-1), F.normalize(wide(tokens), dim=-1)
            return {
                "sentence": unit_sentence,
                "mapped_sentence": unit_sentence @ wide(self.global_mat_weight),
                "tokens": unit_tokens,
                "mapped_tokens": unit_tokens @ wide(self.local_mat_weight),
                "token_mask": token_mask.bool() | (not self.options.mask_padding),
            }

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Unit mean (B, D), unit frames (B, F, D) and the mask (B, F).

        Raises:
            UserError: another number of frames than the head was built for.
        """
        self.check_length("frames", frames.shape[1])
        return {
            "pooled": mean_of_frames(frames, frame_mask),
            "frames": F.normalize(wide(frames), dim=-1),
            "frame_mask": frame_mask.bool() | (not self.options.mask_padding),
        }

    def forward(self, text: Features, video: Features) -> Tensor:
        """Means of the four scores (A, B)."""
        texts_per_video = 32 * self.frames / self.words  # vectors are as long as a tile has texts
        return score_by_tiles(self._score, text, video, self.words * self.frames, texts_per_video, _arranged)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``(1 + W + F + WF) D`` for the products, ``2W² + 2F² + FW² + WF²`` for the learned matrices."""
        products = (1 + words + frames + words * frames) * self.width
        return products + (2 + frames) * words**2 + (2 + words) * frames**2

    def _score(self, text: Features, video: Features) -> Tensor:
        """Scores (a, b), computed as (b, F, W, a): attention is vectorised over what comes last, the texts."""
        words, frames = text["token_mask"], video["frame_mask"].unsqueeze(-1)  # (W, a), (b, F, 1)
        texts, videos = words.shape[1], len(video["frames"])
        video_sentence = video["pooled"] @ text["mapped_sentence"].T
        video_words = (video["pooled"] @ text["tokens"].T).view(videos, self.words, texts)
        video_word = attend_over_scores(video_words, 1, words, self.word_logit_weight)
        flat = video["frames"].flatten(0, 1)
        sentence_frames = (flat @ text["sentence"].T).view(videos, self.frames, texts)
        sentence_frame = attend_over_scores(sentence_frames, 1, frames, self.frame_logit_weight)
        fine = (flat @ text["mapped_tokens"].T).view(videos, self.frames, self.words, texts)
        of_frames = attend_over_scores(fine, 2, words, self.word_mat_weight)
        of_words = attend_over_scores(fine, 1, frames.unsqueeze(-1), self.frame_mat_weight)
        frame_word = (
            attend_over_scores(of_frames, 1, frames, self.frame_mat_weight2)
            + attend_over_scores(of_words, 1, words, self.word_mat_weight2)
        ) / 2
        return ((video_sentence + video_word + sentence_frame + frame_word) / 4).T


def _arranged(text: Features) -> Features:
    """Caches of a texts with the words' (W a, D) and their mask (W, a): the texts run fastest."""
    words = {name: text[name].transpose(0, 1).flatten(0, 1) for name in ("tokens", "mapped_tokens")}
    return text | words | {"token_mask": text["token_mask"].T}
