"""UATVR's information bottleneck: the distributions of texts and videos stay near a standard normal one."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term


class SampleDivergenceOptions(TermOptions):
    """Divergence of UATVR's distributions from a standard normal one."""

    weight: float = Field(1e-4, ge=0)
    """Factor of the term in the total; 0 switches it off."""


@register_term("sample_divergence", SampleDivergenceOptions, needs=("samples", "log_sigma"), reads_similarities=False)
def sample_divergence(options: SampleDivergenceOptions, inputs: LossInputs) -> Tensor:
    """``-½ Σ (1 + l - m² - e^l)`` over all texts, videos and channels (bofang98/UATVR, ``modules/until_module.py``).

    m is the mean of an item's samples, not that of its distribution; l, of which sampling makes the deviation ``e^l``,
    is read here as the logarithm of a variance. The sum grows with the global batch. All three are the authors'.
    """
    return _divergence(inputs.text) + _divergence(inputs.video)


def _divergence(side: dict[str, Tensor]) -> Tensor:
    logarithm = side["log_sigma"]
    return -(1 + logarithm - side["samples"].mean(1).square() - logarithm.exp()).sum() / 2
