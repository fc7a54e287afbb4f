"""The results of an evaluation: typed here, made by `evaluate_model`, written as ``results.json``, shown in the report.

All recalls, accuracies, chance levels and oracle scores are in per cent. Unknown keys are ignored when results are
read.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError, model_validator

from glscl.data.frame_changes import FrameOrder
from glscl.data.quarantine import Entry, Incomplete
from glscl.data.records import describe_share
from glscl.errors import UserError
from glscl.evaluation.metrics import Direction
from glscl.options.mistakes import first_mistake

RESULTS = "results.json"
"""The file that `Results` are written to."""
Model = TypeVar("Model", bound=BaseModel)
Metrics = dict[str, int | float]  # `measure_ranks`: by customary name, the number of queries included
IntArray = Annotated[
    NDArray[np.int32],
    PlainValidator(lambda numbers: np.asarray(numbers, np.int32)),
    PlainSerializer(lambda numbers: numbers.tolist(), return_type=list),
]
"""Whole numbers: lists in a file, an array in memory, because a study holds the ranks of very many queries."""
FloatArray = Annotated[
    NDArray[np.float64],
    PlainValidator(lambda numbers: np.asarray(numbers, np.float64)),
    PlainSerializer(lambda numbers: numbers.tolist(), return_type=list),
]
"""Numbers that are as `IntArray`'s are."""
Logged = int | float | str | None  # a value in a row of the training log
HistoryRow = dict[str, Logged | dict[str, Logged]]  # ``step``, loss terms by name, ``validation``: metric -> value


class Section(BaseModel):
    """A part of results; keys that are not known are ignored when they are read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Match(Section):
    """One retrieved video of an example."""

    video_id: str
    score: float
    correct: bool
    thumbnail: str | bytes | Sequence[str | bytes] | None = None
    """JPEG bytes or a ``data:image/...;base64,`` URI, or several of them: frames in the order of time."""


class Example(Section):
    """A text, the rank of its video, and the best videos for it."""

    query: str
    rank: float
    results: list[Match]


class Oracles(Section):
    """R@1 of retrieval by known attribute values: what a shortcut through them would score."""

    single: dict[str, float] = {}  # attribute -> R@1
    pair: dict[str, float] = {}  # ``"a+b"`` -> R@1


class AttributeAccuracy(Section):
    """How often the first video retrieved agrees with the right one in an attribute, and would by chance.

    ``ignoring`` is what an oracle scores that knows every attribute but this one (the others narrow the choice).
    """

    accuracy: float
    chance: float
    ignoring: float | None = None


class NormalisedColumn(Section):
    """One normalisation in one direction: secondary to the raw result, because it saw more than the query at hand."""

    name: str = ""  # key of the registry of normalisations
    label: str
    source: str  # publication or code
    saw: str  # what it was allowed to see, as a sentence
    direction: Direction
    metrics: Metrics


class WithoutLeaked(Section):
    """The same set scored without the videos of a list."""

    list: str  # address of the list
    note: str  # what was left out, as a sentence
    videos: int
    texts: int
    text_to_video: Metrics
    video_to_text: Metrics


class RelevantQueries(Section):
    """What every query with several relevant videos scores, for paired statistics."""

    captions: list[int]  # rows of the captions to which any video is relevant
    values: dict[str, FloatArray]  # `RELEVANT_SUMMARY` by name, in per cent


class SeveralRelevant(Section):
    """Text to video with every relevant video of a caption, as a list names them."""

    list: str  # address of the list
    note: str  # what it says of this set, as a sentence
    captions: int  # that have more than one relevant video
    relevant: float  # mean over all captions
    text_to_video: Metrics  # `measure_relevant`
    per_query: RelevantQueries | None = None  # kept where the ranks are


class RankBounds(Section):
    """Every query's rank with ties broken in its favour, and against it."""

    optimistic: IntArray
    pessimistic: IntArray


class QueryRanks(Section):
    """Every query's ranks in both directions, for paired statistics, and what the queries are."""

    text_to_video: RankBounds  # one per caption
    video_to_text: RankBounds  # one per captioned video
    owners: list[int]  # per caption: row of its video
    query_videos: list[int]  # per captioned video: its row
    top: IntArray  # per caption: rows of the five best videos
    video_ids: list[str]
    positions: list[int]  # per video: its index in the shard set
    captions: list[str]


class BadVideo(Section):
    """A video that could not be used."""

    part: str
    domain: str
    split: str
    set: str = ""  # address of the shard set
    shard: str = ""
    key: str = ""  # of the sample in its shard
    video_id: str
    reason: str


class Test(Section):
    """One test set."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    name: str  # tells it from the others: ``domain/split``, which it also is in files that have no name yet, or longer
    domain: str
    split: str
    relation: Literal["in-domain", "cross-domain"]
    shards: str = ""  # address of the set
    fingerprint: str = ""  # of the set's manifest
    videos: int
    texts: int
    captions_per_video: float
    max_frames: int
    max_words: int
    truncated_texts: int
    quarantined: int  # videos that could not be used
    quarantine: list[Entry] = []  # these videos
    rejected: int = 0  # videos left out when the shards were built
    repaired: list[Entry] = []  # the nearest picture stands for some that do not decode
    text_to_video: Metrics
    video_to_text: Metrics
    hubness_skewness: float
    oracles: Oracles | None = None
    attribute_accuracy: dict[str, AttributeAccuracy] | None = None
    normalised: list[NormalisedColumn] = []
    without_leaked: WithoutLeaked | None = None
    several_relevant: SeveralRelevant | None = None
    examples: list[Example] = []
    per_query: QueryRanks | None = None  # kept where paired statistics will be asked for
    towers_alpha: float | None = None  # of weights between the initial and the trained ones, where such were tested
    head_alpha: float | None = None
    frames: FrameOrder | None = None  # a control; None: the frames as they are

    def metrics(self, direction: Direction) -> Metrics:
        """Of one direction."""
        return self.text_to_video if direction == "text_to_video" else self.video_to_text

    def without_queries(self) -> Self:
        """The same without every query's ranks and figures."""
        several = self.several_relevant and self.several_relevant.model_copy(update={"per_query": None})
        return self.model_copy(update={"per_query": None, "several_relevant": several})

    @property
    def share(self) -> str:
        """``16 of 19``: its videos, wherever some are missing."""
        return describe_share(self.videos, self.videos + self.quarantined + self.rejected)

    def to_json(self) -> dict[str, object]:
        """As ``results.json`` holds it: without the examples' pictures, and without what there is none of."""
        values = self.model_dump(exclude={"examples": {"__all__": {"results": {"__all__": {"thumbnail"}}}}})
        if self.several_relevant and self.several_relevant.per_query is None:
            values["several_relevant"].pop("per_query")
        for name in ("per_query", "several_relevant", "towers_alpha", "head_alpha", "frames"):
            if values[name] is None:
                del values[name]
        return values

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: object) -> object:
        if isinstance(values, dict) and "name" not in values:
            return values | {"name": f"{values.get('domain')}/{values.get('split')}"}
        return values


class ScoredRun(Section):
    """Which model was scored, when, and by which command."""

    run: str
    verdict: str
    created: str  # ISO 8601
    head: str
    clip: str
    checkpoint_step: int
    seed: int
    git_commit: str | None
    command: str
    train_domains: list[str]


class Results(ScoredRun):
    """One run's evaluation in all its test domains."""

    validation: dict[str, float] = {}  # held-out metrics of the checkpoint
    tests: list[Test]
    incomplete: list[Incomplete] = []
    quarantine: list[BadVideo] = []
    history: list[HistoryRow] = []

    def to_json(self) -> dict[str, object]:
        """As ``results.json`` holds it."""
        without_tests = self.model_copy(update={"tests": []})
        return without_tests.model_dump() | {"tests": [test.to_json() for test in self.tests]}


def parse_results(results: Mapping[str, object] | Results) -> Results:
    """Check the structure of ``results``; raises as `parse` does."""
    return parse(Results, results, "results", "glscl eval")


def parse(kind: type[Model], values: Mapping[str, object] | Model, what: str, command: str) -> Model:
    """Check the structure of ``values``, called ``what`` in an error, as ``command`` writes them.

    Raises `UserError`: a key is missing or of another type; names the first one.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = first_mistake(error)
        wrong = f"{first.key}: {first.message.lower()}"
        raise UserError(f"{what}: {wrong}; was this file written by `{command}`?") from None
