"""Similarities of texts and videos, a group of texts at a time, within a bound of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.evaluation.caches import Cache, Caches, cut
from glscl.evaluation.ranks import check_similarity

ScoreFunction = Callable[[Cache, Cache], Tensor]
"""Blocks of a texts and b videos -> similarity (a, b)."""

MEMORY = 2 << 30  # bytes of `Scorer.memory` where none are given
_RANKING = 12  # most bytes for each similarity of a block of texts while they are ranked: a comparison in double is 8


@dataclass(frozen=True)
class Scorer:
    """Texts to be scored against videos, and in which blocks.

    Attributes:
        score: similarity of a block of texts and a block of videos, which are on the device.
        text: caches of all texts, A.
        video: caches of all videos, N.
        device: of the computation.
        text_block: most texts scored at a time.
        video_block: most videos scored at a time.
        memory: bytes that are enough beyond the model, what the head makes while it scores a tile, and caches that lie
            on the device anyway. One half is for a group of texts and its similarities, one for the visiting block of
            videos and for counting ranks. Where it is too small, blocks are smaller. More of it means fewer visits.
    """

    score: ScoreFunction
    text: Caches
    video: Caches
    device: torch.device
    text_block: int = 256
    video_block: int = 256
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if min(self.text_block, self.video_block, self.memory) < 1:
            raise ValueError(
                f"text_block, video_block and memory must be positive, not {self.text_block}, {self.video_block}, "
                f"{self.memory}"
            )

    @property
    def _bytes_per_text(self) -> int:
        """Of a group: its cache, and its similarities in float32."""
        return self.text.layout.row_bytes + 4 * len(self.video)

    @property
    def texts_at_once(self) -> int:
        """Texts of a tile."""
        dearest = max(self._bytes_per_text, _RANKING * len(self.video), 1)
        return max(1, min(self.text_block, self.memory // 2 // dearest))

    @property
    def videos_at_once(self) -> int:
        """Videos of a tile; the same for all processes, whatever texts they have."""
        return max(1, min(self.video_block, self.memory // 2 // max(1, self.video.layout.row_bytes)))

    def groups(self, texts: range) -> list[range]:
        """The parts of ``texts`` that are held at once, of whole blocks."""
        blocks = self.memory // 2 // max(1, self._bytes_per_text) // self.texts_at_once
        return list(cut(texts, max(1, blocks) * self.texts_at_once))

    def similarities(self, texts: range, visits: int = 0) -> Iterator[tuple[range, Tensor]]:
        """Yield each group with its similarities (g, N) on the device; a caller lets go of one before the next.

        Videos are read once for every group, or ``visits`` times, if that is more: reading may be collective.

        Raises:
            UserError: a similarity is NaN.
        """
        groups = self.groups(texts)
        for number in range(max(visits, len(groups))):
            group = groups[number] if number < len(groups) else range(0)
            text = self.text.read(group, self.device) if group else {}
            similarity = torch.empty(0)
            for columns in self.video.blocks(self.videos_at_once):
                video = self.video.read(columns, self.device)
                for rows in cut(range(len(group)), self.texts_at_once):
                    tile = self.tile(rows_of(text, rows), video)
                    if not len(similarity):
                        similarity = tile.new_empty(len(group), len(self.video))
                    similarity[rows.start : rows.stop, columns.start : columns.stop] = tile
                del video
            del text
            if group:
                yield group, similarity
            del similarity

    def tile(self, text: Cache, video: Cache) -> Tensor:
        """Similarity of a block of texts and a block of videos, checked, in the precision of its ranks."""
        similarity = self.score(text, video)
        sizes = tuple(len(next(iter(cache.values()))) for cache in (text, video))
        if similarity.shape != sizes:
            raise ValueError(f"score gave {tuple(similarity.shape)} for {sizes[0]} texts and {sizes[1]} videos")
        return check_similarity(similarity)


def rows_of(cache: Cache, rows: range) -> Cache:
    """Views of some rows."""
    return {name: tensor[rows.start : rows.stop] for name, tensor in cache.items()}


@torch.no_grad()
def similarity_rows(scorer: Scorer, rows: range) -> Tensor:
    """Some rows of the similarity matrix, as they are: for what cannot be computed block by block.

    Returns:
        (len(rows), N) on the CPU, in the precision that the score function gives (at least fp32).

    Raises:
        UserError: a similarity is NaN.
    """
    whole = torch.empty(len(rows), len(scorer.video))
    for group, similarity in scorer.similarities(rows):
        whole = whole.to(similarity.dtype)  # of the first; the same for all others
        whole[group.start - rows.start : group.stop - rows.start] = similarity
        del similarity
    return whole
