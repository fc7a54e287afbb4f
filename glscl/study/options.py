"""Options of a study: one YAML file, or a packaged one by name."""

from importlib import resources
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from glscl.data.frame_changes import FrameOrder
from glscl.errors import did_you_mean
from glscl.options import Options
from glscl.options.differences import differing_keys
from glscl.runs.options import UNION, RunsConfig, Values, check_names
from glscl.study.factors import OtherCells, check_factors
from glscl.system import storage

Group = Literal["consistency", "attention", "pooling", "ablation"]


class VariantOptions(Options):
    """A head with its options and losses."""

    group: Group
    """consistency: global-local consistency (GLSCL, GLCCL); attention: learned or token-wise, between text and frames;
    pooling: no interaction before the last dot product; ablation: a consistency head without its losses or a part."""
    what: str
    """In a few words, for the report."""
    run: Values
    """What makes it: model.head, its options, its losses."""
    tuned: str | None = None
    """A finished sweep of this head, by its name in the same storage or its directory: the winner's settings replace
    those of `run`. All tuned variants need sweeps of equal budgets."""


class LeaveOut(Options):
    """Test videos of one domain that were trained on, or nearly so, in another (or the same)."""

    test: str
    """Domain that the videos are tested in."""
    train: str
    """Domain whose training part holds them or near-duplicates of them."""
    list: str
    """File that names them; see `glscl eval`'s --leave-out."""


AMOUNTS = ("data.max_videos", "data.max_pairs", "training.max_steps", "training.epochs")
"""Keys of a run that say how much is learnt from."""


def check_matched(name: str, values: Values, of: str, others: Values) -> None:
    """Refuse, with a `ValueError`, two conditions that differ in other keys than `AMOUNTS`, or in none of these."""
    different = {text.partition(":")[0] for text in differing_keys(_spread(values), _spread(others), ())}
    if not different or not different <= set(AMOUNTS):
        found = ", ".join(sorted(different.difference(AMOUNTS))) or "nothing"
        raise ValueError(
            f"matched: conditions '{name}' and '{of}' may differ in {', '.join(AMOUNTS)} alone, and differ in {found}"
        )


def _spread(values: Values, prefix: str = "") -> Values:
    """Nested values by dotted key."""
    spread: Values = {}
    for key, value in values.items():
        spread |= _spread(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return spread


class StudyConfig(RunsConfig):
    """Heads × training domains × test domains × seeds. Each domain is trained on alone, and tested on by all; one
    without a part to train on is only tested on."""

    kind = "study"
    packaged = resources.files("glscl") / "presets" / "studies"

    name: str = "study"
    """Name of the study; the same name continues it."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of every variant's trainings. Intervals need three."""
    union: bool = True
    """Also train on all domains together."""
    union_run: Values = Field(default_factory=dict)
    """What differs in those runs."""
    zero_shot: bool = True
    """Also test the towers as they are before any training, pooling frames by their mean."""
    conditions: dict[str, Values]
    """By name: what differs, such as model.max_words and model.max_frames; everything is trained and tested in each."""
    variants: dict[str, VariantOptions]
    """By name, in the order of the report."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs of variants whose difference is asked for; empty: every consistency variant with every attention one. The
    claims begin with the first."""
    equivalence_margin: float | None = Field(default=None, gt=0, lt=100)
    """Points of R@1 within which two variants count as equal: fixed before the study, so that it can show that there is
    no difference. none asks nothing of the kind."""
    assumed_sd: float | None = Field(default=None, ge=0)
    """Standard deviation, in points, of a cell's R@1 from seed to seed: the plan then says what it can detect."""
    assumed_query_sd: float = Field(default=40.0, gt=0)
    """The same of the difference between two variants from test video to test video, means over seeds and captions."""
    pilot: str = ""
    """An earlier study, by its name in the same storage or its directory, from which both deviations are taken."""
    controls: tuple[FrameOrder, ...] = ()
    """Test every cell also with the middle frame of each video alone (single), with the frames in an order drawn from
    its id (shuffled), or backwards (reversed). Finished cells stay; their models, if kept, are tested."""
    wise_ft: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    """Test every cell also with towers between those before (0) and after (1) its training, at these shares of the
    trained ones. As with controls, finished cells stay; cells whose towers are not trained have no such rows."""
    matched: dict[str, str] = Field(default_factory=dict)
    """Condition: another one, of which it differs in the amount of training data alone (data.max_videos, max_pairs,
    training.max_steps, epochs); the report shows the differences between the two."""
    factors: dict[str, OtherCells] = Field(default_factory=dict)
    """By domain that is trained on: which tested domains differ from it in caption style, in visual style, and in both.
    The report then splits the change of R@1 from the one to the last into these two shifts and their interaction."""
    leave_out: tuple[LeaveOut, ...] = ()
    """Leaked test videos; the report gives results with and without them."""
    qrels: dict[str, str] = Field(default_factory=dict)
    """Tested domain: list of the videos that are relevant to each of its captions; see `glscl eval`'s --qrels."""
    gallery: Literal["smallest"] | Annotated[int, Field(ge=2)] | None = None
    """Videos in a gallery of equal size for every test set, in which recall is reported as well, as the expectation
    over all such galleries; `smallest`: as many as the smallest test set has. No test set may have fewer."""
    resamples: int = Field(default=10_000, ge=100)
    """Of the queries, for intervals and p-values."""
    examples: int = Field(default=6, ge=0)
    """Queries shown that one variant finds and another loses."""
    beside: str = ""
    """Another study of the same variants, by its name in the same storage or its directory: the report shows its means
    and claims beside these, such as those of trained towers beside frozen ones."""
    keep_models: bool = True
    """Keep each cell's model, for `glscl eval`; its checkpoints go once it is finished."""

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("give at least one seed, each once, none negative")
        return seeds

    @field_validator("controls")
    @classmethod
    def _distinct_controls(cls, controls: tuple[FrameOrder, ...]) -> tuple[FrameOrder, ...]:
        if len(set(controls)) < len(controls):
            raise ValueError("an order of frames is named twice")
        return controls

    @field_validator("wise_ft")
    @classmethod
    def _distinct_shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(shares)) < len(shares):
            raise ValueError("a number is given twice")
        return shares

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        check_names("variants", self.variants)
        check_names("conditions", self.conditions)
        for kind, known, used in (
            ("comparisons", self.variants, [name for pair in self.comparisons for name in pair]),
            ("qrels", self.tested, list(self.qrels)),
            ("matched", self.conditions, [name for pair in self.matched.items() for name in pair]),
            ("leave_out", self.domains, [name for item in self.leave_out for name in (item.test, item.train)]),
        ):
            for name in used:
                if name not in known:
                    raise ValueError(f"{kind}: '{name}' is none of {', '.join(known)}{did_you_mean(name, known)}")
        if not self.tested:
            raise ValueError("domains: none has a test set")
        if not self.trained:
            raise ValueError("domains: none is trained on")
        check_factors(self.factors, self.trained, self.tested)
        return self

    @model_validator(mode="after")
    def _fair_comparisons(self) -> "StudyConfig":
        for first, second in self.comparisons:
            if first == second:
                raise ValueError("comparisons: a variant is compared with itself")
            self._check_tuning(first, second)
        for name, of in self.matched.items():
            check_matched(name, self.conditions[name], of, self.conditions[of])
        return self

    def _check_tuning(self, *names: str) -> None:
        """A tuned head beats an untuned one for the tuning alone: only with itself is such a comparison a fair one."""
        one, two = (self.variants[name] for name in names)
        heads = [variant.run.get("model", {}).get("head") for variant in (one, two)]
        if bool(one.tuned) != bool(two.tuned) and heads[0] != heads[1]:
            tuned, other = names if one.tuned else reversed(names)
            raise ValueError(
                f"comparisons: {tuned} is tuned and {other} is not: compare tuned heads with tuned ones, or a head "
                f"with itself"
            )

    @property
    def tested(self) -> list[str]:
        """Domains that have a test set."""
        return [name for name, domain in self.domains.items() if domain.is_tested]

    @property
    def trained(self) -> list[str]:
        """Domains that are trained on."""
        return [name for name, domain in self.domains.items() if domain.is_trained]

    @property
    def trainings(self) -> list[str]:
        """Names of what is trained on: each domain, and their union where it is asked for."""
        return [*self.trained, *([UNION] if self.union and len(self.trained) > 1 else [])]

    @property
    def first_seed(self) -> int:
        """Seed of the pretraining and the towers."""
        return self.seeds[0]

    @property
    def beside_directory(self) -> str:
        """Directory of the study that is shown beside this one; empty if there is none."""
        return self.other_directory(self.beside)

    @property
    def pilot_directory(self) -> str:
        """Directory of the study from which deviations are taken; empty if there is none."""
        return self.other_directory(self.pilot)

    def other_directory(self, name: str) -> str:
        """Directory of a study or sweep by its name in the same storage, or its address."""
        return storage.join(storage.resolve(self.storage), name) if name and "/" not in name else name

    @property
    def leakage_lists(self) -> tuple[str, ...]:
        """Addresses of the lists of leaked test videos."""
        return tuple(self.address(item.list) for item in self.leave_out)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The comparisons, the default ones where none are named."""
        ours, others = ([n for n, v in self.variants.items() if v.group == g] for g in ("consistency", "attention"))
        tuned = {name for name, variant in self.variants.items() if variant.tuned}
        return self.comparisons or tuple(
            (first, second) for first in ours for second in others if (first in tuned) == (second in tuned)
        )
