"""The results of a study, as ``study.json`` holds them and the page, the CSV and the LaTeX tables show them.

Recalls, accuracies and chance levels are in per cent, retention too; lifts and differences are in points. A *training*
is a row of the study: one training domain, the union of all of them, or none (zero-shot towers). A *variant* is a head
with its options and losses. Every number of a `Result` is over the seeds of one variant after one training on one
test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from glscl.data.records import describe_share
from glscl.evaluation.metrics import Direction
from glscl.evaluation.results import Incomplete, parse
from glscl.study.options import Group

Relation = Literal["in-domain", "cross-domain", "union", "zero-shot"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Estimate(_Section):
    """A figure with its 95 % interval."""

    estimate: float
    low: float | None
    """None: without bound on this side."""
    high: float | None
    deviation: float | None = None
    """Sample standard deviation over seeds; None for one seed."""
    seeds: int = 0
    """Trainings behind it; 0 for a model that is not trained."""
    note: str = ""
    """What the interval covers."""


class Variant(_Section):
    """A head with its options and losses, as the study trained it."""

    name: str
    head: str
    group: Group
    """``consistency`` (global-local consistency: GLSCL, GLCCL), ``attention`` (learned or token-wise attention between
    text and frames), ``pooling`` (no interaction before the last dot product) or ``ablation`` (a consistency head
    without its losses, or without one of its parts)."""
    what: str
    """In a few words."""


class Training(_Section):
    """A row: what was trained on."""

    name: str
    domains: list[str]


class TestSet(_Section):
    """A column: what was tested on."""

    __test__ = False

    name: str
    """Of the domain."""
    split: str
    videos: int
    texts: int
    chance: float
    """Text-to-video R@1 of a random order."""
    truncated: dict[str, int]
    """Condition -> captions that were cut to its number of words."""
    quarantined: int = 0
    rejected: int = 0
    """Videos left out when the shards were built."""

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


class Column(_Section):
    """Recalls after a normalisation that looked beyond the query at hand; means over seeds.

    They are the fields ``recall_at_K``, of every level that was measured.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    label: str
    saw: str
    direction: Direction

    def recall(self, k: int) -> float | None:
        """R@k in per cent; None where it was not measured."""
        return self.__pydantic_extra__.get(f"recall_at_{k}")


class WithoutLeaked(_Section):
    """The same result without the test videos that were (nearly) trained on."""

    note: str
    videos: int
    text_to_video: float
    """R@1, mean over seeds."""
    video_to_text: float


class Result(_Section):
    """One variant after one training on one test set, over seeds."""

    condition: str
    variant: str
    training: str
    test: str
    relation: Relation
    text_to_video: dict[str, Estimate]
    """`METRICS` by name, with intervals."""
    video_to_text: dict[str, Estimate]
    median_rank: dict[Direction, float]
    """Mean over seeds."""
    ties: dict[Direction, tuple[float, float]]
    """R@1 with every tie broken against and in favour of the right answer, means over seeds."""
    hubness: Estimate
    """Skewness of the 10-occurrence over seeds; its interval is the range over seeds."""
    retention: Estimate | None = None
    """Text-to-video R@1 here over that of the same variant trained on this test's domain, in per cent."""
    lift: Estimate | None = None
    """Text-to-video R@1 here minus that of the zero-shot towers, in points."""
    columns: list[Column] = []
    without_leaked: WithoutLeaked | None = None
    seconds: float | None = None
    """Wall-clock of a training, its tests included; mean over seeds."""


class Comparison(_Section):
    """``first - second`` on the same queries."""

    condition: str
    first: str
    second: str
    scope: str
    """``in-domain mean``, ``cross-domain mean`` or ``TRAINING -> TEST``."""
    relation: Relation
    direction: Direction
    metric: str
    estimate: float
    low: float
    high: float
    p_value: float
    adjusted_p: float
    """After Holm's correction over its family: the means, or the single cells, of one condition and direction."""
    shown: bool
    """The interval excludes 0 and the adjusted p-value is below 0.05."""
    sentence: str


class Cost(_Section):
    """What a variant's head costs at one condition; multiply-adds (MAC) are per pair of a text and a video."""

    condition: str
    variant: str
    parameters: int
    length_tied: list[str]
    text_bytes: int
    """Cached per text, float32."""
    video_bytes: int
    declared: int
    """MAC of the head's equations as its authors' code evaluates them."""
    implemented: int
    """MAC of this implementation, by its declared formula."""
    counted: float
    """The same, by torch's counter."""
    measured_texts: int
    """Size of the matrix that latency and memory were measured on."""
    measured_videos: int
    seconds: float
    """To score that matrix in blocks, features cached."""
    peak_bytes: int
    """Most bytes of tensors alive while scoring it, beyond the caches."""


class PaperCount(_Section):
    """A head's multiply-adds for a 1000 × 1000 matrix (D = 512, 32 words, 12 frames), in 10⁹."""

    method: str
    formula: str
    """As the paper's table counts."""
    paper: float
    """By that formula."""
    printed: float | None
    """In the paper's table."""
    fair: float
    """Everything per pair, query-dependent pooling and learned matrices included."""


class Shot(_Section):
    """A video of an example."""

    video_id: str
    correct: bool
    thumbnails: list[str] = []
    """``data:image/jpeg;base64,`` URIs: first, middle and last frame; empty where the shards were out of reach."""


class Example(_Section):
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


class StudyResults(_Section):
    """A whole study."""

    name: str
    label: str
    """What the figures are figures of, shown first: "toy domains, not MSR-VTT"."""
    verdict: str
    created: str
    """ISO 8601."""
    git_commit: str | None
    command: str
    machine: str
    finished_cells: int
    cells: int
    seeds: list[int]
    conditions: list[str]
    claims: list[str]
    """Sentences generated from the intervals, the answer to the study's question first."""
    protocol: dict[str, str]
    """What was held equal, in words."""
    variants: list[Variant]
    trainings: list[Training]
    """Zero-shot first, union last, where there are any."""
    tests: list[TestSet]
    incomplete: list[Incomplete] = []
    """Sets of which videos are missing in some run, at its fewest."""
    results: list[Result]
    comparisons: list[Comparison]
    costs: list[Cost] = []
    cost_machine: str = ""
    paper_counts: list[PaperCount] = []
    examples: list[Example] = []


def parse_study(results: Mapping[str, object] | StudyResults) -> StudyResults:
    """Check the structure of ``results``.

    Raises:
        UserError: a key is missing or of another type; names the first one.
    """
    return parse(StudyResults, results, "study", "glscl study")
