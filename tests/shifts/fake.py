"""Results of an evaluation under shifts, made up."""

from __future__ import annotations

from typing import Any

from glscl.data.shifts import KINDS, STRENGTHS
from glscl.shifts.results import ShiftResults


def made_up(**changes: Any) -> ShiftResults:
    """Every kind of shift on two test sets."""
    values = {
        "run": "quickstart",
        "verdict": "run=quickstart step=500 toy_clips/test (in-domain) R@1=71.2, at worst 1.0 (darkness 5)",
        "created": "2025-06-01T12:30:00+00:00",
        "head": "glscl",
        "clip": "glscl-tiny",
        "checkpoint_step": 500,
        "seed": 1,
        "git_commit": "0123456789abcdef",
        "command": "glscl eval --shifts all",
        "train_domains": ["toy_clips"],
        "resamples": 10_000,
        "kinds": {name: kind.what for name, kind in KINDS.items()},
        "tests": [_test("toy_clips", "in-domain", 71.2), _test("toy_stories", "cross-domain", 8.5)],
    }
    return ShiftResults.model_validate(values | changes)


def _test(domain: str, relation: str, recall: float) -> dict[str, Any]:
    return {
        "name": f"{domain}/test",
        "domain": domain,
        "split": "test",
        "relation": relation,
        "shards": f"shards/{domain}",
        "fingerprint": domain,
        "videos": 200,
        "texts": 800,
        "quarantine": [],
        "rejected": 0,
        "plain": _strength("", 0, recall, recall),
        "shifted": [_strength(kind, s, recall * (1 - 0.15 * s), recall) for kind in KINDS for s in STRENGTHS],
    }


def _strength(kind: str, strength: int, recall: float, plain: float) -> dict[str, Any]:
    directions = ("text_to_video", "video_to_text")
    return {
        "shift": kind,
        "strength": strength,
        "value": KINDS[kind].values[strength - 1] if kind else None,
        "recall": {d: _estimate(recall) for d in directions},
        "change": {d: _estimate(recall - plain) for d in directions},
        "metrics": {d: {"R@1": recall, "MnR": 1.4 + strength, "queries": 800} for d in directions},
        "hubness_skewness": 0.1 + 0.3 * strength,
    }


def _estimate(value: float) -> dict[str, Any]:
    return {"estimate": value, "low": value - 3.0, "high": value + 3.0, "seeds": 1}
