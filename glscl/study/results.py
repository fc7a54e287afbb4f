"""The results of a study, as ``study.json`` holds them and the page, the CSV and the LaTeX tables show them.

Recalls, accuracies and chance levels are in per cent, retention too; lifts and differences are in points. A *training*
is a row of the study: one training domain, the union of all of them, or none (zero-shot towers). A *variant* is a head
with its options and losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, Field

from glscl.data.frame_changes import FrameOrder
from glscl.data.records import describe_share
from glscl.evaluation.cost import HeadCost, PaperCount
from glscl.evaluation.metrics import Direction
from glscl.evaluation.results import Section, parse
from glscl.runs.summary import Summary
from glscl.study.effects import Decomposition, OrderChange
from glscl.study.options import Group

Relation = Literal["in-domain", "cross-domain", "union", "zero-shot"]


class Estimate(Section):
    """A figure with its 95 % interval."""

    estimate: float
    low: float | None  # none: without bound on this side
    high: float | None
    deviation: float | None = None  # sample standard deviation over seeds; None for one seed
    seeds: int = 0  # trainings behind it; 0 for a model that is not trained
    note: str = ""  # what the interval covers


class Variant(Section):
    """A head with its options and losses, as the study trained it."""

    name: str
    head: str
    group: Group
    what: str
    tuned: bool = False  # its settings are a sweep's winner


class Training(Section):
    """A row: what was trained on."""

    name: str
    domains: list[str]


class TestSet(Section):
    """A column: what was tested on."""

    __test__ = False

    name: str  # of the domain
    split: str
    videos: int
    texts: int
    chance: float  # text-to-video R@1 of a random order
    truncated: dict[str, int]  # condition -> captions that were cut to its number of words
    quarantined: int = 0
    rejected: int = 0  # videos left out when the shards were built

    @property
    def videos_of(self) -> int:
        """Its videos, the missing ones included."""
        return self.videos + self.quarantined + self.rejected

    @property
    def share(self) -> str:
        """``16 of 19``: its videos, wherever some are missing."""
        return describe_share(self.videos, self.videos_of)

    @property
    def title(self) -> str:
        """Domain and split, for tables."""
        return f"{self.name}/{self.split}"


class Column(Section):
    """Recalls ``recall_at_K`` after a normalisation that looked beyond the query at hand; means over seeds."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    label: str
    saw: str
    direction: Direction

    def recall(self, k: int) -> float | None:
        """R@k in per cent; None where it was not measured."""
        return self.__pydantic_extra__.get(f"recall_at_{k}")


class WithoutLeaked(Section):
    """The same result without the test videos that were (nearly) trained on."""

    note: str
    videos: int
    text_to_video: float  # R@1, mean over seeds
    video_to_text: float


class SeveralRelevant(Section):
    """Text to video where a list says that captions have several relevant videos."""

    note: str
    relevant: float  # per caption
    text_to_video: dict[str, float]  # `RELEVANT_SUMMARY` by name, in per cent; means over seeds
    intervals: dict[str, Estimate] = Field(default_factory=dict)  # of the same; none where cells are of before these


class InCell(Section):
    """Figures of one variant after one training on one test set."""

    condition: str
    variant: str
    training: str
    test: str
    relation: Relation


class InCellOrMean(Section):
    """The same, or the mean over the cells of a relation, whose training and test set are empty."""

    condition: str
    variant: str
    relation: Relation
    training: str = ""
    test: str = ""


class Result(InCell):
    """One variant after one training on one test set, over seeds."""

    text_to_video: dict[str, Estimate]  # `METRICS` by name, with intervals
    video_to_text: dict[str, Estimate]
    median_rank: dict[Direction, float]  # mean over seeds
    ties: dict[Direction, tuple[float, float]]  # R@1, ties broken against and in favour; mean over seeds
    hubness: Estimate  # skewness of the 10-occurrence over seeds; its interval is the range over seeds
    retention: Estimate | None = None  # text-to-video R@1 over the same variant's trained at home, in per cent
    lift: Estimate | None = None  # text-to-video R@1 here minus that of the zero-shot towers, in points
    columns: list[Column] = Field(default_factory=list)
    without_leaked: WithoutLeaked | None = None
    several_relevant: SeveralRelevant | None = None
    seconds: float | None = None  # wall-clock of a training, its tests included; mean over seeds


class Control(InCell):
    """One variant after one training on one test set whose frames come in another order, over seeds."""

    frames: FrameOrder
    recall: dict[Direction, Estimate]  # R@1
    change: dict[Direction, Estimate]  # of R@1 from the ordinary frames, in points, paired over queries and seeds
    hubness: float  # skewness of the 10-occurrence, mean over seeds


class WiseFt(InCellOrMean):
    """One variant by towers between those before and after training: in one cell over seeds, or in a mean of cells."""

    towers_alpha: float  # share of the trained towers
    recall: dict[Direction, Estimate]  # R@1
    change: dict[Direction, Estimate]  # of R@1 from the trained towers, in points, paired over queries and seeds


class Matched(InCellOrMean):
    """One variant of two conditions that differ in the amount of training data: in one cell, or in a mean of cells."""

    of: str  # the condition that its own differs from
    recall: dict[Direction, float]  # R@1 in per cent, mean over seeds
    recall_of: dict[Direction, float]
    change: dict[Direction, Estimate]  # the first minus the second, in points, on the same queries


class GalleryFigures(InCellOrMean):
    """Recall in galleries of equal size: of one variant after one training on one test set, or of a mean over these."""

    text_to_video: dict[str, Estimate]  # recalls by name
    video_to_text: dict[str, Estimate]
    retention: Estimate | None = None  # of text-to-video R@1, in per cent, as in `Result`


class EqualGalleries(Section):
    """Recall where every test set has galleries of the same size: its expectation over all of them."""

    videos: int  # of a gallery: the query's own and others, drawn without replacement
    cells: list[GalleryFigures]
    means: list[GalleryFigures]


class Comparison(Section):
    """``first - second`` on the same queries."""

    condition: str
    first: str
    second: str
    scope: str  # ``in-domain mean``, ``cross-domain mean`` or ``TRAINING -> TEST``
    relation: Relation
    direction: Direction
    metric: str
    estimate: float
    low: float
    high: float
    p_value: float
    adjusted_p: float  # after Holm's correction over its family of one condition and direction
    shown: bool  # the interval excludes 0 and the adjusted p-value is below 0.05
    equivalence_p: float | None = None  # of two one-sided tests, Holm-adjusted; None: no margin was fixed
    equivalent: bool = False  # shown to be smaller than the margin
    standard_error: float | None = None
    detectable: float | None = None  # with 80 % power at the family's smallest level, given what varies; in points
    sentence: str


@dataclass(frozen=True)
class Cost(HeadCost):
    """What a variant's head costs at one condition."""

    condition: str
    variant: str


class MeasuredCosts(Section):
    """What ``costs.json`` holds."""

    costs: list[Cost] = Field(default_factory=list)
    cost_machine: str = ""
    paper_counts: list[PaperCount] = Field(default_factory=list)


class Shot(Section):
    """A video of an example."""

    video_id: str
    correct: bool
    thumbnails: list[str] = Field(default_factory=list)
    """``data:image/jpeg;base64,`` URIs: first, middle and last frame; empty where the shards were out of reach."""


class Example(Section):
    """A query that one variant finds and another loses, after the same training with the same seed."""

    condition: str
    training: str
    test: str
    query: str
    finder: str
    loser: str
    finder_rank: float
    loser_rank: float
    finder_top: list[Shot]
    loser_top: list[Shot]


class BesideRow(Section):
    """Means over cells of text-to-video R@1, here and in the other study."""

    condition: str
    variant: str
    scope: Relation
    ours: float
    theirs: float
    over_pooling: tuple[float, float] | None = None  # the same minus those of mean pooling, in points; None: of itself


class Preregistration(Section):
    """What was registered before the first cell was trained, compared with what is reported."""

    written: str  # ISO 8601
    sha256: str  # of the file
    differences: list[str]  # ``key: registered -> reported``; empty: they agree
    detectable: dict[str, float] = Field(default_factory=dict)  # points, by scope, as planned


class Beside(Section):
    """Another study of the same variants."""

    name: str
    label: str
    claims: list[str]
    rows: list[BesideRow]


class StudyResults(MeasuredCosts, Summary):
    """A whole study."""

    finished_cells: int
    cells: int
    seeds: list[int]
    conditions: list[str]
    protocol: dict[str, str]  # what was held equal, in words
    variants: list[Variant]
    trainings: list[Training]  # zero-shot first, union last, where there are any
    tests: list[TestSet]
    results: list[Result]
    comparisons: list[Comparison]
    relevant_comparisons: list[Comparison] = Field(default_factory=list)  # of R@1 with all relevant videos
    equivalence_margin: float | None = None  # points
    preregistration: Preregistration | None = None  # None: nothing was registered before the first cell
    controls: list[Control] = Field(default_factory=list)
    wise_ft: list[WiseFt] = Field(default_factory=list)
    matched: list[Matched] = Field(default_factory=list)
    galleries: EqualGalleries | None = None  # None: not asked for
    examples: list[Example] = Field(default_factory=list)
    beside: Beside | None = None
    decompositions: list[Decomposition] = Field(default_factory=list)
    order_changes: list[OrderChange] = Field(default_factory=list)


def parse_study(results: Mapping[str, object] | StudyResults) -> StudyResults:
    """Check the structure of ``results``. Raises `UserError`: the first key that is missing or of another type."""
    return parse(StudyResults, results, "study", "glscl study")
