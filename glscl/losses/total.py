"""The total loss: the weighted sum of the terms that are on, and its configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, create_model
from torch import Tensor

from glscl.errors import UserError
from glscl.losses.base import LOGIT_BIAS, LossInputs, Term, TermOptions, registry
from glscl.models.heads.base import Head
from glscl.options import Options

if TYPE_CHECKING:
    from glscl.losses.contrastive import ContrastiveOptions
    from glscl.losses.sigmoid import SigmoidOptions

    class LossConfig(Options):
        """Loss over the global batch: one section per term, each with a weight."""

        contrastive: ContrastiveOptions = ContrastiveOptions()
        sigmoid: SigmoidOptions = SigmoidOptions()
else:
    LossConfig = create_model(
        "LossConfig",
        __base__=Options,
        __doc__="Loss over the global batch: one section per term, each with a weight.",
        **{
            name: (term.options, Field(term.options(), description=term.options.__doc__))
            for name, term in registry.entries().items()
        },
    )


Terms = dict[str, tuple[Term, TermOptions]]
"""Terms that are on, with their options, by name."""
TILED = ("contrastive", "sigmoid")
"""Terms that can be computed in tiles."""


def term_names() -> tuple[str, ...]:
    """Names of all terms, those of installed plug-ins (entry-point group ``glscl.losses``) included."""
    return tuple(registry.entries())


def applicable_terms(config: LossConfig, head: Head) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which terms a head can be trained with.

    Returns:
        names of the terms that are on and apply; and of those that are on but do not, because another stands in their
        place, or because the head does not provide what they need, if their options were changed from the defaults. A
        logit bias is not the head's: `needs_logit_bias`.
    """
    terms = _switched_on(config)
    fit = _applying(terms, {*head.provides, LOGIT_BIAS})
    replaced = {other for name in fit for other in terms[name][0].replaces}
    left_out = [
        name
        for name, (_, options) in terms.items()
        if name not in fit and (name in replaced or options != type(options)())
    ]
    return tuple(fit), tuple(left_out)


def compute_losses(config: LossConfig, inputs: LossInputs) -> dict[str, Tensor]:
    """Every applicable term that is on, times its weight, under its name; and their sum under "total".

    Terms whose needs the head does not provide are left out, as `applicable_terms` says.

    Raises:
        UserError: no term is left.
    """
    given = inputs.text.keys() & inputs.video.keys()
    if inputs.parts is not None and inputs.parts.shape[-1] > 1:
        given |= {"score_parts"}
    if inputs.bias is not None:
        given |= {LOGIT_BIAS}
    if inputs.detail is not None:
        given |= {inputs.detail}
    terms = _switched_on(config)
    losses = {}
    for name in _applying(terms, given):
        term, options = terms[name]
        losses[name] = options.weight * term.function(options, inputs)
    if not losses:
        raise UserError("loss: no term is on that this head can be trained with; give a term a weight above 0")
    return {**losses, "total": sum(losses.values(), start=next(iter(losses.values())).new_zeros(()))}


@dataclass(frozen=True)
class NeededFeatures:
    """What the terms that are on and apply ask a head for."""

    names: frozenset[str]
    """Of caches, and "score_parts" and `detail`."""
    detail: str | None
    """The head's `detail`, if a term needs it."""


def needed_features(config: LossConfig, provided: Collection[str]) -> NeededFeatures:
    """What the terms that are on ask of a head that provides this."""
    terms = _switched_on(config)
    fit = [terms[name][0] for name in _applying(terms, provided)]
    detail = next((term.detail for term in fit if term.detail is not None), None)
    names = {name for term in fit for name in term.needs} | ({detail} if detail else set())
    return NeededFeatures(frozenset(names), detail)


def needs_logit_bias(config: LossConfig) -> bool:
    """Whether a term that is on asks for a logit bias."""
    return any(LOGIT_BIAS in term.needs for term, _ in _switched_on(config).values())


def tiles_apply(config: LossConfig, pairs: int, given: Collection[str]) -> bool:
    """Whether the losses of a global batch are to be computed in tiles, without similarities as a whole.

    Args:
        config: the terms.
        pairs: of the global batch.
        given: what there is for the terms: names of caches, of the head's detail, "score_parts" and "logit_bias".
    """
    terms = _switched_on(config)
    fit = _applying(terms, given)
    chosen = [terms[name][0] for name in fit]
    whole = any(term.reads_similarities or term.detail or "score_parts" in term.needs for term in chosen)
    tiled = [getattr(config, name).tiled_above for name in TILED if name in fit]
    return bool(tiled) and pairs > max(tiled) and not whole


def _applying(terms: Terms, provided: Collection[str]) -> list[str]:
    """Names of the terms that apply to a head that provides this, without those that another stands in for."""
    fit = [name for name, (term, _) in terms.items() if term.applies(provided)]
    replaced = {other for name in fit for other in terms[name][0].replaces}
    return [name for name in fit if name not in replaced]


def _switched_on(config: LossConfig) -> Terms:
    """Term and options of every term whose weight is not 0, by name."""
    sections = {name: (term, getattr(config, name)) for name, term in registry.entries().items()}
    return {name: section for name, section in sections.items() if section[1].weight != 0}
