"""Query-bank normalisation, dual softmax and inverted softmax: re-scorings that look beyond the query at hand.

Each makes a hub (a video that is near to every text) harder to retrieve, and needs other queries to know the hubs:
those of a bank, or all those of the test. That is more than a search engine sees when a query comes in, so raw
similarities give the main result and these are columns of their own, which say what they saw.

All work on queries × candidates, (Q, C): texts × videos, or its transpose for video-to-text. The published forms
exponentiate similarities; here everything stays in logarithms, where a temperature of 100 neither overflows nor
rounds small scores to ties. The scores order the candidates of one query as the published forms do, but they may be
compared along rows only: a row that query-bank normalisation leaves alone is on another scale than its neighbours.
`Normalised` therefore ranks in its own direction and in no other.

Temperatures are those of the publications. One chosen on the test set is one more thing the column saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.errors import UserError, did_you_mean
from glscl.evaluation.metrics import DIRECTIONS, Direction, RetrievalMetrics
from glscl.evaluation.ranks import Ranks, check_similarity, text_to_video_ranks, video_to_text_ranks
from glscl.evaluation.results import NormalisedColumn

_QUERIES: dict[Direction, str] = {"text_to_video": "captions", "video_to_text": "videos"}
_CANDIDATES: dict[Direction, str] = {"text_to_video": "videos", "video_to_text": "captions"}


def qb_norm(similarity: Tensor, bank: Tensor, *, beta: float = 20.0, top_k: int = 1, threshold: int = 1) -> Tensor:
    """Query-bank normalisation with the dynamic inverted softmax (Bogolin et al., CVPR 2022; ioanacroi/qb-norm).

    A candidate is a hub if at least ``threshold`` queries of the bank have it among their ``top_k``. The row of a query
    whose best candidate is a hub becomes ``exp(beta * s) / Σ_bank exp(beta * s_bank)``, told here as
    ``s - logsumexp(beta * s_bank) / beta``; every other row stays as it is. The original has threshold 1; GLSCL and
    DiCoSA count occurrences (``theta``).

    Args:
        similarity: (Q, C) test queries × candidates.
        bank: (P, C) queries of the bank × the same candidates.
        beta: inverse temperature.
        top_k: neighbours of a bank query that it counts for.
        threshold: occurrences that make a hub.

    Returns:
        (Q, C), comparable along rows only, in the precision of the similarities (at least fp32).

    Raises:
        UserError: NaN.
        ValueError: shapes or parameters that do not fit.
    """
    similarity, bank = check_similarity(similarity), check_similarity(bank)
    if similarity.ndim != 2 or bank.ndim != 2 or bank.shape[1] != similarity.shape[1]:
        raise ValueError(f"bank {tuple(bank.shape)} and similarity {tuple(similarity.shape)} need the same candidates")
    if not len(bank) or not 1 <= top_k <= bank.shape[1] or threshold < 1 or beta <= 0:
        raise ValueError(
            f"needs a bank with queries, 1 <= top_k <= {bank.shape[1]}, threshold >= 1 and beta > 0, "
            f"not {len(bank)} queries, {top_k}, {threshold} and {beta}"
        )
    nearest = bank.argmax(1) if top_k == 1 else bank.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    hubs = torch.bincount(nearest.reshape(-1), minlength=bank.shape[1]) >= threshold
    active = hubs[similarity.argmax(1)]
    offset = torch.logsumexp(bank.double() * beta, 0) / beta
    return torch.where(active[:, None], similarity.double() - offset, similarity.double()).to(similarity.dtype)


def inverted_softmax(similarity: Tensor, *, beta: float = 20.0) -> Tensor:
    """Inverted softmax over the test queries themselves (Smith et al., ICLR 2017).

    ``exp(beta * s) / Σ_queries exp(beta * s)``, told as ``s - logsumexp_queries(beta * s) / beta``.

    Args:
        similarity: (Q, C) all test queries × candidates.
        beta: inverse temperature.

    Returns:
        (Q, C), comparable along rows only, in the precision of the similarities (at least fp32).

    Raises:
        UserError: NaN.
        ValueError: ``beta`` is not positive.
    """
    similarity = check_similarity(similarity)
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta}")
    exact = similarity.double()
    return (exact - torch.logsumexp(exact * beta, 0) / beta).to(similarity.dtype)


def dual_softmax(similarity: Tensor, *, beta: float = 100.0) -> Tensor:
    """Dual softmax at test time (CAMoE, Cheng et al. 2021): ``s * softmax_queries(beta * s) * Q``.

    The softmax rewards the query for which a candidate is nearest: a prior that queries and candidates are paired one
    to one. A negative similarity times a small weight comes out above one times a large weight, in the published form
    as here.

    Args:
        similarity: (Q, C) all test queries × candidates.
        beta: inverse temperature; 100 is the logit scale of CLIP, by which the published code multiplies first.

    Returns:
        (Q, C) with the published form's order within each row, in the precision of the similarities (at least fp32):
        products are told by their sign and logarithm.

    Raises:
        UserError: NaN.
        ValueError: ``beta`` is not positive.
    """
    similarity = check_similarity(similarity)
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta}")
    if not similarity.numel():
        return similarity
    exact = similarity.double()
    magnitude = exact.abs().log() + torch.log_softmax(exact * beta, 0)
    nonzero = exact != 0
    least = magnitude[nonzero].min() if nonzero.any() else magnitude.new_zeros(())
    return torch.where(nonzero, exact.sign() * (magnitude - least + 1), 0.0).to(similarity.dtype)


@dataclass(frozen=True, slots=True)
class Bank:
    """Queries other than the test's, against the test's candidates.

    Attributes:
        similarity: (P, C) queries of the bank × candidates of the test.
        origin: which queries, as in ``"training captions of msrvtt"``.
        of_test_domain: they come from the domain that is tested, which a model trained elsewhere has not seen.
    """

    similarity: Tensor
    origin: str
    of_test_domain: bool


@dataclass(frozen=True, slots=True)
class Normalisation:
    """A registered normalisation.

    Attributes:
        label: how tables name it, parameters included.
        source: publication or code.
        needs_bank: whether it needs a `Bank`; without, it takes all test queries.
        function: (similarity (Q, C), bank (P, C) or None, direction) -> (Q, C), comparable along rows.
        prior: what else it takes for granted, as the end of a sentence.
    """

    label: str
    source: str
    needs_bank: bool
    function: Callable[[Tensor, Tensor | None, Direction], Tensor]
    prior: str = ""

    def saw(self, direction: Direction, bank: Bank | None = None) -> str:
        """What it was allowed to see, as a sentence."""
        candidates = f"test {_CANDIDATES[direction]}"
        if bank is None:
            return f"All test queries at once: test {_QUERIES[direction]} × {candidates}{self.prior}."
        access = "; these are queries of the test domain" if bank.of_test_domain else ""
        return f"A query bank: {bank.origin} × {candidates}{self.prior}{access}."


def _bank(bank: Tensor | None) -> Tensor:
    if bank is None:
        raise ValueError("this normalisation needs a query bank")
    return bank


_THETA: dict[Direction, int] = {"text_to_video": 3, "video_to_text": 5}

NORMALISATIONS: dict[str, Normalisation] = {
    "qb_norm": Normalisation(
        "QB-Norm (β = 20, k = 1)",
        "Bogolin et al., CVPR 2022; ioanacroi/qb-norm",
        True,
        lambda similarity, bank, _: qb_norm(similarity, _bank(bank)),
    ),
    "qb_norm_glscl": Normalisation(
        "QB-Norm of GLSCL (β = 70, k = 1, θ = 3 / 5)",
        "zchoi/GLSCL, as published for MSR-VTT; β = 50 for ActivityNet there",
        True,
        lambda similarity, bank, way: qb_norm(similarity, _bank(bank), beta=70.0, threshold=_THETA[way]),
    ),
    "dual_softmax": Normalisation(
        "Dual softmax (β = 100)",
        "CAMoE: Cheng et al. 2021, arXiv 2109.04290",
        False,
        lambda similarity, _, __: dual_softmax(similarity),
        ", and that they are paired one to one",
    ),
    "inverted_softmax": Normalisation(
        "Inverted softmax (β = 20)",
        "Smith et al., ICLR 2017",
        False,
        lambda similarity, _, __: inverted_softmax(similarity),
    ),
}
"""By name. Add one with another temperature, or of another kind, to have it in every table."""


@dataclass(frozen=True, slots=True)
class Normalised:
    """Normalised similarities of one direction.

    Attributes:
        name: key of the registry.
        label: how tables name it.
        saw: what it was allowed to see.
        direction: in which it may be ranked.
        similarity: (Q, C) queries × candidates of this direction, comparable along rows only.
    """

    name: str
    label: str
    saw: str
    direction: Direction
    similarity: Tensor

    def ranks(self, text_to_video: Tensor) -> Ranks:
        """Ranks along rows, with the rules for several captions per video of `glscl.evaluation.metrics`.

        Args:
            text_to_video: (A,) the video of each text.
        """
        if self.direction == "text_to_video":
            return text_to_video_ranks(self.similarity, text_to_video)
        return video_to_text_ranks(self.similarity.T, text_to_video)


def normalise(name: str, similarity: Tensor, direction: Direction, bank: Bank | None = None) -> Normalised:
    """Apply a registered normalisation.

    Args:
        name: key of `NORMALISATIONS`.
        similarity: (A, N) texts × videos, for either direction.
        direction: which side asks.
        bank: for a normalisation that needs one: (P, N) texts × test videos, or (P, A) videos × test texts.

    Raises:
        UserError: unknown name, no bank where one is needed, or NaN.
    """
    if name not in NORMALISATIONS:
        raise UserError(
            f"no normalisation '{name}'{did_you_mean(name, NORMALISATIONS)}; known: {', '.join(NORMALISATIONS)}"
        )
    entry = NORMALISATIONS[name]
    if not entry.needs_bank:
        bank = None
    elif bank is None:
        raise UserError(f"normalisation '{name}' needs a query bank for {direction}: queries not of the test")
    queries = similarity if direction == "text_to_video" else similarity.T
    scores = entry.function(queries, None if bank is None else bank.similarity, direction)
    return Normalised(name, entry.label, entry.saw(direction, bank), direction, scores)


def measure_normalised(
    similarity: Tensor, text_to_video: Tensor, banks: Mapping[Direction, Bank] | None = None
) -> list[NormalisedColumn]:
    """Measure every registered normalisation that can be had, in both directions, as columns beside the raw result.

    Args:
        similarity: (A, N) texts × videos.
        text_to_video: (A,) the video of each text.
        banks: query banks; without one for a direction, the normalisations that need it are left out there.
    """
    columns = []
    for name, entry in NORMALISATIONS.items():
        for direction in DIRECTIONS:
            bank = (banks or {}).get(direction)
            if entry.needs_bank and bank is None:
                continue
            result = normalise(name, similarity, direction, bank)
            columns.append(
                NormalisedColumn(
                    name=name,
                    label=result.label,
                    source=entry.source,
                    saw=result.saw,
                    direction=direction,
                    metrics=RetrievalMetrics.from_ranks(result.ranks(text_to_video)).to_dict(),
                )
            )
    return columns
