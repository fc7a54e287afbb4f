"""The picture of a study's first screen: what consistency heads gain over attention-based ones and over themselves."""

from collections.abc import Sequence

from glscl.evaluation.metrics import MAIN_METRIC
from glscl.study.results import Comparison, StudyResults
from glscl.study.sections import Forest, Scopes, row_axis

_SCOPES = ("cross-domain mean", "in-domain mean")


def build_answer(study: StudyResults) -> Forest | None:
    """Means of text-to-video R@1 that answer the question; None where no such comparison is in the study.

    Consistency heads minus attention-based heads, and minus the same heads without their consistency losses: by
    condition and scope, on one axis.
    """
    rows = [row for row in study.comparisons if _answers(study, row)]
    if not rows:
        return None
    blocks = []
    for condition in study.conditions:
        title = "R@1 in points, text to video" + (f": {condition}" if len(study.conditions) > 1 else "")
        if scopes := _scopes([row for row in rows if row.condition == condition]):
            blocks.append((title, scopes))
    return Forest(row_axis(value for row in rows for value in (row.low, row.estimate, row.high)), blocks)


def _scopes(rows: Sequence[Comparison]) -> Scopes:
    by_scope = [(scope, [row for row in rows if row.scope == scope]) for scope in _SCOPES]
    return [(scope, of_scope) for scope, of_scope in by_scope if of_scope]


def _answers(study: StudyResults, row: Comparison) -> bool:
    if (row.direction, row.metric) != ("text_to_video", MAIN_METRIC) or row.scope not in _SCOPES:
        return False
    variants = {variant.name: (variant.group, variant.head) for variant in study.variants}
    (group, head), (other_group, other_head) = (variants.get(name, ("", "")) for name in (row.first, row.second))
    against_itself = other_group == "ablation" and head == other_head
    return group == "consistency" and (other_group == "attention" or against_itself)
