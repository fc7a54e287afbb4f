"""The README.md of an exported model: what it is, how it scores in each domain, its limits, how it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, MEDIAN_RANK, RECALLS, SHORT_DIRECTIONS
from glscl.evaluation.results import Test
from glscl.evaluation.saved import ModelCard
from glscl.models.options import HUB
from glscl.reporting.formats import number
from glscl.retrieval.record import Record

_TASK = "feature-extraction"  # the nearest of the tasks that the hub has; it has none of text-video retrieval
_TAGS = ("text-video-retrieval", "video-retrieval", "glscl", "open_clip")


def write_model_card(card: ModelCard, record: Record, size: int, *, hub: bool, usage: str = "") -> str:
    """The page as Markdown; with ``hub``, headed by the metadata that Hugging Face's hub reads.

    ``size`` is height and width of a frame, ``usage`` another section on how the model is used. Names of domains and
    runs are strangers' text: they cannot end a table's cell, nor begin an element of HTML.
    """
    tests = [test for test in record.tests if test.frames is None and test.towers_alpha is None]
    parts = [_metadata(card, tests)] if hub else []
    parts += [
        _heading(card),
        usage or _usage(card),
        _results(record, tests),
        _limits(card, tests),
        _origin(card, record, size),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(card: ModelCard, tests: Sequence[Test]) -> str:
    """The YAML block at the top of the page, with the results as a ``model-index``."""
    values: dict[str, object] = {"library_name": "glscl", "pipeline_tag": _TASK, "tags": list(_TAGS)}
    if card.model.clip.startswith(HUB):
        values["base_model"] = card.model.clip.removeprefix(HUB)
    if tests:
        values["model-index"] = [{"name": card.run, "results": list(map(_index_entry, tests))}]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _index_entry(test: Test) -> dict[str, object]:
    metrics = [
        {"type": name, "name": f"{title} {name}", "value": round(float(test.metrics(direction)[name]), 4)}
        for direction, title in DIRECTIONS.items()
        for name in RECALLS
        if name in test.metrics(direction)
    ]
    return {
        "task": {"type": _TASK, "name": "Text-video retrieval"},
        "dataset": {"type": test.domain, "name": test.name, "split": test.split},
        "metrics": metrics,
    }


def _heading(card: ModelCard) -> str:
    model = card.model
    domains = (
        ", ".join(map(_plain, card.train_domains)) or "nothing: its weights are those that training would begin with"
    )
    return (
        f"# {_plain(card.run)}\n\n"
        f"A text-video retrieval model: the head `{model.head}` on the towers `{_plain(model.clip)}`, trained on "
        f"{domains} (step {card.step}, seed {card.seed}). It gives a similarity for a text and a video."
    )


def _usage(card: ModelCard) -> str:
    text = """## How to use it

```python
import glscl

model = glscl.load("FOLDER")  # this folder
videos = model.encode_video(["a.mp4", "b.mp4"])
print(model.search("a dog catches a frisbee", videos, k=2))
```

`model.json` is the configuration, `preprocessing.json` what is made of a video and a text before the model,
`record.json` how it was trained and scored. Weights are safetensors; nothing here is a pickle."""
    if card.model.adapters.bottleneck is not None:
        return text + " Its towers have bottlenecks, which open_clip has no place for."
    return text + (
        " `model.safetensors` has the towers under open_clip's names, and `head.safetensors` the rest: "
        "`open_clip.create_model_and_transforms('local-dir:FOLDER')` loads the towers alone."
    )


def _results(record: Record, tests: Sequence[Test]) -> str:
    lines = ["## Results", ""]
    if not tests:
        return "\n".join([*lines, "It was not tested: no results lay beside the model when it was exported."])
    columns = ["test set", "relation", "videos", "texts", "direction", *RECALLS, MEDIAN_RANK, f"chance {MAIN_METRIC}"]
    lines += [
        "Similarities as they are, without any normalisation over queries. Recalls are in per cent.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(row for test in tests for row in _rows(test)),
    ]
    if record.git_commit:
        lines += ["", f"Scored by glscl at commit `{_plain(record.git_commit)}`."]
    return "\n".join(lines)


def _rows(test: Test) -> Iterator[str]:
    for direction, short in SHORT_DIRECTIONS.items():
        metrics = test.metrics(direction)
        recalls = [number(metrics.get(name)) for name in RECALLS]
        candidates = test.videos if direction == "text_to_video" else int(metrics["queries"])
        cells = [_plain(test.name), test.relation, test.share, number(test.texts, 0), short, *recalls]
        yield f"| {' | '.join([*cells, number(metrics.get(MEDIAN_RANK)), number(100 / max(candidates, 1))])} |"


def _limits(card: ModelCard, tests: Sequence[Test]) -> str:
    model = card.model
    lines = [
        f"- It sees at most {model.max_frames} frames of a video, at most {card.sample_fps:g} a second, and no sound.",
        f"- It reads at most {model.max_words} tokens of a text; the rest is cut.",
        "- Similarities order videos for a text, or texts for a video. They are no probabilities, and those of two "
        "models cannot be compared.",
    ]
    here, elsewhere = ([test for test in tests if test.relation == kind] for kind in ("in-domain", "cross-domain"))
    if here and elsewhere:
        best = max(test.text_to_video[MAIN_METRIC] for test in here)
        worst = min(test.text_to_video[MAIN_METRIC] for test in elsewhere)
        lines.append(
            f"- Text-to-video {MAIN_METRIC} is {number(best)} where it was trained and {number(worst)} in the hardest "
            f"other domain that was tested. Expect the lower of both of videos unlike those it was trained on."
        )
    elif tests:
        known = "its training domain" if here else "domains it was not trained on"
        lines.append(f"- It was tested in {known} only. What it does elsewhere is not known.")
    lines += _missing(tests)
    lines.append("- What its training data lack or distort, it lacks and distorts. Their licences may bind its use.")
    return "\n".join(["## Limits", "", *lines])


def _missing(tests: Sequence[Test]) -> list[str]:
    """What of the test sets was not tested."""
    cut = sum(test.truncated_texts for test in tests)
    bad = sum(test.quarantined + test.rejected for test in tests)
    lines = [f"- {number(cut, 0)} texts of the test sets were cut."] if cut else []
    if bad:
        lines.append(f"- {number(bad, 0)} videos of the test sets could not be used and are not among the candidates.")
    return lines


def _origin(card: ModelCard, record: Record, size: int) -> str:
    weights = f"`{_plain(card.model.pretrained)}`" if card.model.pretrained else "random or those of the architecture"
    held_out = ", ".join(f"{_plain(name)} {number(value)}" for name, value in card.validation.items()) or "none"
    return "\n".join(
        [
            "## Where it comes from",
            "",
            f"- Initial weights of the towers: {weights}.",
            f"- Frames of {size} x {size} pixels; frame context: {card.model.frame_context}.",
            f"- Held-out scores of this checkpoint: {held_out}.",
            f"- Exported {record.exported} by glscl {_plain(record.glscl)}.",
        ]
    )


def _plain(text: str) -> str:
    """Text that is one line, ends no cell of a table and begins no element."""
    line = " ".join(text.split())
    return "".join(f"&#{ord(c)};" if c in "|<>`[]" else c for c in line)
