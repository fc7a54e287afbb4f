"""Query-bank normalisation, dual softmax and inverted softmax: re-scorings that look beyond the query at hand.

Each makes a hub (a video that is near to every text) harder to retrieve, and needs other queries to know the hubs:
those of a bank, or all those of the test. That is more than a search engine sees when a query comes in, so raw
similarities give the main result and these are columns of their own, which say what they saw.

All take queries × candidates, (Q, C): texts × videos, or its transpose for video-to-text. They return (Q, C) in the
precision of the similarities (at least fp32). The published forms exponentiate similarities; here everything stays in
logarithms, where a temperature of 100 neither overflows nor rounds small scores to ties. The scores order the
candidates of one query as the published forms do, but they may be compared along rows only: a row that query-bank
normalisation leaves alone is on another scale than its neighbours. `normalise` therefore ranks in one direction and in
no other. ``beta`` is the inverse temperature, by default that of the publication. One chosen on the test set is
one more thing the column saw.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.errors import UserError, did_you_mean
from glscl.evaluation.metrics import DIRECTIONS, Direction, measure_ranks
from glscl.evaluation.ranks import check_similarity, text_to_video_ranks, video_to_text_ranks
from glscl.evaluation.results import NormalisedColumn


def qb_norm(similarity: Tensor, bank: Tensor, *, beta: float = 20.0, top_k: int = 1, threshold: int = 1) -> Tensor:
    """Query-bank normalisation with the dynamic inverted softmax (Bogolin et al., CVPR 2022; ioanacroi/qb-norm).

    A candidate is a hub if at least ``threshold`` queries of the bank (P, C) have it among their ``top_k``. The row of
    a query whose best candidate is a hub becomes ``exp(beta * s) / Σ_bank exp(beta * s_bank)``, written here as
    ``s - logsumexp(beta * s_bank) / beta``; every other row stays as it is. The original has threshold 1; GLSCL and
    DiCoSA count occurrences (``theta``).

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
    """Inverted softmax over all test queries (Smith et al., ICLR 2017): ``exp(beta * s) / Σ_queries exp(beta * s)``.

    Written here as ``s - logsumexp_queries(beta * s) / beta``; raises as `dual_softmax`.
    """
    similarity = _checked(similarity, beta)
    exact = similarity.double()
    return (exact - torch.logsumexp(exact * beta, 0) / beta).to(similarity.dtype)


def dual_softmax(similarity: Tensor, *, beta: float = 100.0) -> Tensor:
    """Dual softmax at test time (CAMoE, Cheng et al. 2021): ``s * softmax_queries(beta * s) * Q``.

    The softmax rewards the query for which a candidate is nearest: a prior that queries and candidates are paired one
    to one. A negative similarity times a small weight comes out above one times a large weight, in the published form
    as here. A ``beta`` of 100 is the logit scale of CLIP, by which the published code multiplies first. Products are
    held as sign and logarithm, in the published form's order within each row.

    Raises:
        UserError: NaN.
        ValueError: ``beta`` is not positive.
    """
    similarity = _checked(similarity, beta)
    if not similarity.numel():
        return similarity
    exact = similarity.double()
    magnitude = exact.abs().log() + torch.log_softmax(exact * beta, 0)
    nonzero = exact != 0
    least = magnitude[nonzero].min() if nonzero.any() else magnitude.new_zeros(())
    return torch.where(nonzero, exact.sign() * (magnitude - least + 1), 0.0).to(similarity.dtype)


def _checked(similarity: Tensor, beta: float) -> Tensor:
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta}")
    return check_similarity(similarity)


@dataclass(frozen=True, slots=True)
class Bank:
    """Queries other than the test's, against the test's candidates."""

    similarity: Tensor
    """(P, C) queries of the bank × candidates of the test."""
    origin: str
    """Which queries, as in ``"training captions of msrvtt"``."""
    of_test_domain: bool
    """They come from the domain that is tested, which a model trained elsewhere has not seen."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """A registered normalisation."""

    label: str
    """How tables name it, parameters included."""
    source: str
    """Publication or code."""
    needs_bank: bool
    """Without a `Bank`, it takes all test queries."""
    function: Callable[[Tensor, Tensor | None, Direction], Tensor]
    """(similarity (Q, C), bank (P, C) or None, direction) -> (Q, C), comparable along rows."""
    prior: str = ""
    """What else it takes for granted, as the end of a sentence."""

    def saw(self, direction: Direction, bank: Bank | None = None) -> str:
        """What it was allowed to see, as a sentence."""
        queries, candidates = ("captions", "videos") if direction == "text_to_video" else ("videos", "captions")
        if bank is None:
            return f"All test queries at once: test {queries} × test {candidates}{self.prior}."
        access = "; these are queries of the test domain" if bank.of_test_domain else ""
        return f"A query bank: {bank.origin} × test {candidates}{self.prior}{access}."


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


def normalise(
    name: str, similarity: Tensor, text_to_video: Tensor, direction: Direction, bank: Bank | None = None
) -> NormalisedColumn:
    """Apply a registered normalisation to (A, N) texts × videos, and measure it along rows of one direction.

    Args:
        text_to_video: (A,) the video of each text.
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
    queries = None if bank is None else bank.similarity
    if direction == "text_to_video":
        ranks = text_to_video_ranks(entry.function(similarity, queries, direction), text_to_video)
    else:
        ranks = video_to_text_ranks(entry.function(similarity.T, queries, direction).T, text_to_video)
    return NormalisedColumn(
        name=name,
        label=entry.label,
        source=entry.source,
        saw=entry.saw(direction, bank),
        direction=direction,
        metrics=measure_ranks(ranks),
    )


def measure_normalised(
    similarity: Tensor, text_to_video: Tensor, banks: Mapping[Direction, Bank] | None = None
) -> list[NormalisedColumn]:
    """`normalise` by all that can be had, in both directions; without a bank, those that need it are left out."""
    banks = banks or {}
    return [
        normalise(name, similarity, text_to_video, direction, banks.get(direction))
        for name, entry in NORMALISATIONS.items()
        for direction in DIRECTIONS
        if direction in banks or not entry.needs_bank
    ]
