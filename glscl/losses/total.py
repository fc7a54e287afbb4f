"""The total loss: the weighted sum of the terms that are on, and its configuration."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pydantic import Field, create_model
from torch import Tensor

from glscl.errors import UserError
from glscl.losses.base import LossInputs, Term, TermOptions, registry
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


def term_names() -> tuple[str, ...]:
    """Names of all terms, those of installed plug-ins (entry-point group ``glscl.losses``) included."""
    return tuple(registry.entries())


def applicable_terms(config: LossConfig, head: Head) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which terms a head can be trained with.

    Returns:
        names of the terms that are on and apply, and of those that are on but need what the head does not provide. A
        logit bias is not the head's: `needs_logit_bias`.
    """
    wanted = _switched_on(config)
    fit = [name for name, term, _ in wanted if set(term.needs) <= {*head.provides, "logit_bias"}]
    return tuple(fit), tuple(name for name, _, _ in wanted if name not in fit)


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
        given |= {"logit_bias"}
    losses = {
        name: options.weight * term.function(options, inputs)
        for name, term, options in _switched_on(config)
        if set(term.needs) <= given
    }
    if not losses:
        raise UserError("loss: no term is on that this head can be trained with; give a term a weight above 0")
    return {**losses, "total": sum(losses.values(), start=next(iter(losses.values())).new_zeros(()))}


def needs_score_parts(config: LossConfig) -> bool:
    """Whether a term that is on asks for the scores that the similarity is the mean of."""
    return any("score_parts" in term.needs for _, term, _ in _switched_on(config))


def needs_logit_bias(config: LossConfig) -> bool:
    """Whether a term that is on asks for a logit bias."""
    return any("logit_bias" in term.needs for _, term, _ in _switched_on(config))


def tiles_apply(config: LossConfig, pairs: int, given: Collection[str]) -> bool:
    """Whether the losses of a global batch are to be computed in tiles, without similarities as a whole.

    Args:
        config: the terms.
        pairs: of the global batch.
        given: what there is for the terms: names of caches, "score_parts" and "logit_bias".
    """
    terms = {name: term for name, term, _ in _switched_on(config) if set(term.needs) <= set(given)}
    whole = any(term.reads_similarities or "score_parts" in term.needs for term in terms.values())
    tiled = [section.tiled_above for section in (config.contrastive, config.sigmoid) if section.weight]
    return bool(tiled) and pairs > max(tiled) and not whole


def _switched_on(config: LossConfig) -> list[tuple[str, Term, TermOptions]]:
    """Name, term and options of every term whose weight is not 0."""
    sections = [(name, term, getattr(config, name)) for name, term in registry.entries().items()]
    return [section for section in sections if section[2].weight != 0]
