"""Cost of a head: multiply-adds, caches, latency and memory of scoring; and the GLSCL paper's count.

Multiply-adds (MAC) are those of products of matrices and vectors, per pair of a text and a video, with everything
cached that depends on one of them alone.
"""

import statistics
import time
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from glscl.errors import UserError
from glscl.models.heads.base import Features, Head, build_head, head_class
from glscl.options import Options

SIZES = (1000, 500, 200, 100, 50, 20, 10)
"""Numbers of texts, and of videos, that latency and memory may be measured on."""
BUDGET = 30_000_000_000
"""Multiply-adds of scoring the measured matrix once: a second or a few on one core."""
RUNS = 3
"""Timed runs, after one that warms up and measures memory."""

_COUNTED = (3, 5)  # texts and videos of the counted block: unequal, so that work per item shows
_ENCODED = 10  # items encoded; their caches are repeated, since only the number of rows matters for time and memory


@dataclass(frozen=True)
class HeadCost:
    """What a head costs at some number of words and frames."""

    parameters: int
    length_tied: tuple[str, ...]
    """Which lengths its parameters are tied to, "words" or "frames"."""
    text_bytes: int
    """Cached per text, by a head in float32."""
    video_bytes: int
    declared: int
    """MAC of the head's equations as its authors' code evaluates them."""
    implemented: int
    """MAC of this implementation, by its declared formula."""
    counted: float
    """The same, by torch's counter."""
    measured_texts: int
    """Of the matrix that latency and memory were measured on."""
    measured_videos: int
    seconds: float
    """To score that matrix in blocks, features cached; median of `RUNS`."""
    peak_bytes: int
    """Most bytes of tensors alive while scoring it, beyond the caches."""


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are ``alive``, and their ``peak`` after any operation.

    Deterministic and the same on every device: it follows the storages that operations return, not an allocator. What
    existed before is not counted, a view counts with its storage, once, and what a kernel allocates for itself is not
    seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if func is not torch.ops.aten.lift_fresh.default:  # the first that is seen of what torch.tensor has made
            self._follow((args, kwargs), made_here=False)
        result = func(*args, **(kwargs or {}))
        self._follow(result, made_here=True)
        self.peak = max(self.peak, self.alive)
        return result

    def _follow(self, values: object, made_here: bool) -> None:
        for tensor in filter(torch.is_tensor, tree_leaves(values)):
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:  # a storage is one Python object for as long as it lives
                self._add(storage, storage.nbytes() if made_here else 0)

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._known[key]
            self.alive -= size

        self._known[key] = weakref.ref(storage, forget)
        self.alive += size


@torch.no_grad()
def head_cost(
    name: str,
    options: Options,
    width: int,
    words: int,
    frames: int,
    *,
    device: torch.device | str = "cpu",
    budget: int = BUDGET,
    block: int = 256,
) -> HeadCost:
    """Measure a registered head of feature width D with random weights; torch's random state stays as it is.

    Scoring the measured matrix once takes no more than ``budget`` multiply-adds: it is the largest square of `SIZES`
    within that, the smallest of them if none is. ``block`` texts, and videos, are scored at a time.

    Raises:
        UserError: no head has that name, its options do not fit the width, or its `implemented_multiply_adds` are not
            those that torch counts.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        head = build_head(name, width, options, (words, frames)).to(device).eval()
        text = head.encode_text(
            torch.randn(_ENCODED, width, device=device),
            torch.randn(_ENCODED, words, width, device=device),
            torch.ones(_ENCODED, words, dtype=torch.bool, device=device),
        )
        video = head.encode_video(
            torch.randn(_ENCODED, frames, width, device=device),
            torch.ones(_ENCODED, frames, dtype=torch.bool, device=device),
        )
    implemented = head.implemented_multiply_adds(words, frames)
    counted = _counted(head, text, video)
    if counted != implemented:
        raise UserError(
            f"head '{name}' says that it makes {implemented:,} multiply-adds per pair at {words} words and {frames} "
            f"frames, but torch counts {counted:,.10g}: correct its implemented_multiply_adds, or move what depends "
            "on one text or one video alone to encode_text or encode_video"
        )
    size = next((size for size in SIZES if implemented * size**2 <= budget), SIZES[-1])
    texts, videos = (  # their rows again and again
        {key: value.repeat(size // _ENCODED, *[1] * (value.ndim - 1)) for key, value in cache.items()}
        for cache in (text, video)
    )
    with PeakMemory() as memory:
        _score(head, texts, videos, size, block)
    return HeadCost(
        parameters=sum(parameter.numel() for parameter in head.parameters()),
        length_tied=head.length_tied,
        text_bytes=_bytes_per_item(text),
        video_bytes=_bytes_per_item(video),
        declared=head.multiply_adds(words, frames),
        implemented=implemented,
        counted=counted,
        measured_texts=size,
        measured_videos=size,
        seconds=statistics.median(_seconds(head, texts, videos, size, block, device) for _ in range(RUNS)),
        peak_bytes=memory.peak,
    )


def _counted(head: Head, text: Features, video: Features) -> float:
    """Multiply-adds per pair that torch counts while a block is scored."""
    texts, videos = _COUNTED
    with FlopCounterMode(display=False) as counter:
        head({key: value[:texts] for key, value in text.items()}, {key: value[:videos] for key, value in video.items()})
    return float(counter.get_total_flops()) / 2 / (texts * videos)


def _score(head: Head, text: Features, video: Features, size: int, block: int) -> None:
    """Score the whole matrix, no more than one block of similarities at a time."""
    for row in range(0, size, block):
        rows = {key: value[row : row + block] for key, value in text.items()}
        for column in range(0, size, block):
            head(rows, {key: value[column : column + block] for key, value in video.items()})


def _seconds(head: Head, text: Features, video: Features, size: int, block: int, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    _score(head, text, video, size, block)
    wait(device)
    return time.perf_counter() - start


def _bytes_per_item(cache: Features) -> int:
    return sum(value[0].numel() * value.element_size() for value in cache.values())


@dataclass(frozen=True)
class PaperCount:
    """A head's multiply-adds for a 1000 × 1000 matrix (D = 512, W = 32 words, F = 12 frames), in 10⁹."""

    method: str
    formula: str
    """Per pair, as the paper's table counts; by it, ``paper``."""
    paper: float
    printed: float
    """In the paper's table."""
    fair: float
    """`Head.multiply_adds`: everything per pair, pooling for the text at hand and learned matrices included."""


def paper_counts() -> list[PaperCount]:
    """The FLOPs column of the GLSCL paper's Table I (arXiv 2405.12710), the formula that gives it, and a fair count.

    The paper does not state its formulas: these reproduce its figures. They count X-Pool's attention over the frames
    and one of its two maps after it, but neither GLSCL's and DiCoSA's pooling over the frames, nor GLSCL's K concepts,
    DiCoSA's networks and X-CLIP's learned matrices.
    """
    D, W, F = 512, 32, 12
    methods = (
        ("CLIP4Clip", "mean_pool", "D", D, 0.5),
        ("DiCoSA", "dicosa", "D", D, 0.51),
        ("X-CLIP", "xclip", "D + WD + FD + WFD", (1 + W + F + W * F) * D, 220.9),
        ("X-Pool", "xpool", "D² + 2FD + D", D**2 + 2 * F * D + D, 275.0),
        ("GLSCL", "glscl", "2D", 2 * D, 1.0),
    )
    counts = []
    for method, name, formula, per_pair, printed in methods:
        with torch.device("meta"):
            head = build_head(name, D, head_class(name).Options(), (W, F))
        counts.append(PaperCount(method, formula, per_pair / 1e3, printed, head.multiply_adds(W, F) / 1e3))
    return counts


def efficiency_claim() -> str:
    """The paper's ratio of X-CLIP's head to GLSCL's, and the fair one, as a sentence."""
    by_method = {count.method: count for count in paper_counts()}
    xclip, glscl = by_method["X-CLIP"], by_method["GLSCL"]
    return (
        f"By the GLSCL paper's table, X-CLIP's head takes {xclip.printed / glscl.printed:.0f} times the multiply-adds "
        f'of GLSCL\'s ({xclip.printed} / {glscl.printed}, its "nearly 220 times"; {xclip.paper / glscl.paper:.0f} by '
        f"the formulas behind it); with everything counted that is computed per pair, {xclip.fair / glscl.fair:.0f} "
        f"times ({xclip.fair:.1f} / {glscl.fair:.1f})."
    )
