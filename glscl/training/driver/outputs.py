"""What a command says at its end: results, report, status and verdict."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from glscl.data.quarantine import describe_incomplete
from glscl.evaluation.evaluate import without_thumbnails
from glscl.evaluation.saved import ModelCard
from glscl.system import storage
from glscl.system.ownership import Fence, TakenOverError
from glscl.system.redaction import redact

STATUS = "status.json"
RESULTS = "results.json"
REPORT = "report.html"


def results_of(
    card: ModelCard,
    entries: list[dict[str, Any]],
    history: list[dict[str, Any]],
    incomplete: Sequence[Mapping[str, Any]] = (),
    quarantine: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    """Put test entries, provenance, training history and what is missing together.

    Args:
        card: of the model.
        entries: of `evaluate_model`.
        history: rows of ``metrics.jsonl``.
        incomplete: sets of which videos are missing (`glscl.data.quarantine.find_incomplete`).
        quarantine: the videos of all sets that could not be used.
    """
    return {
        "run": card.run,
        "verdict": verdict_of(card, entries, incomplete),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "head": card.model.head,
        "clip": card.model.clip,
        "checkpoint_step": card.step,
        "seed": card.seed,
        "git_commit": git_commit(),
        "command": redact(" ".join(["glscl", *sys.argv[1:]])),
        "train_domains": list(card.train_domains),
        "validation": card.validation,
        "tests": entries,
        "incomplete": list(incomplete),
        "quarantine": list(quarantine),
        "history": _history(history),
    }


def _history(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the report plots them: the loss and its terms, and held-out recalls under ``validation``."""
    out: list[dict[str, Any]] = []
    for row in rows:
        entry: dict[str, Any] = {"step": row["step"]}
        entry |= {key.removeprefix("loss/"): value for key, value in row.items() if key.startswith("loss")}
        held_out = {k.removeprefix("validation/"): v for k, v in row.items() if k.startswith("validation/")}
        if held_out and out and out[-1]["step"] == row["step"]:
            out[-1]["validation"] = held_out
        else:
            out.append(entry | ({"validation": held_out} if held_out else {}))
    return out


def verdict_of(card: ModelCard, entries: list[dict[str, Any]], incomplete: Sequence[Mapping[str, Any]] = ()) -> str:
    """One line: text-to-video R@1 per test set, and the sets of which videos are missing."""
    scores = [f"{entry['name']} ({entry['relation']}) R@1={entry['text_to_video']['R@1']:.1f}" for entry in entries]
    missing = f"; incomplete: {describe_incomplete(incomplete)}" if incomplete else ""
    return f"run={card.run} step={card.step} " + (", ".join(scores) or "no test set") + missing


def write_results(results: dict[str, Any], output: str) -> None:
    """``results.json`` and ``report.html`` in a folder or prefix."""
    from glscl.evaluation.report import write_report

    small = results | {"tests": without_thumbnails(results["tests"])}
    storage.write_json(storage.join(output, RESULTS), small)
    write_report(results, storage.join(output, REPORT))


def git_commit() -> str | None:
    """Commit of the code that runs, if it runs from a checkout."""
    folder = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )
    return done.stdout.strip() or None if done.returncode == 0 else None


@contextmanager
def status_on_failure(fence: Fence) -> Iterator[None]:
    """Let ``status.json`` of an owned directory say how this block ended, if it does not end well.

    Raises:
        TakenOverError: instead of what the block raised, where the directory belongs to another command by now.
    """
    try:
        yield
    except TakenOverError:
        raise
    except BaseException as error:
        state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            fence.check()
            write_status(fence.directory, state=state, verdict=str(error) or type(error).__name__)
        except TakenOverError as taken:
            raise taken from error
        except Exception as second:  # the first error is the one to hear of
            print(f"{STATUS} cannot be written ({type(second).__name__}: {second})", file=sys.stderr, flush=True)
        raise


def write_status(run_directory: str, *, state: str, verdict: str) -> None:
    """``status.json``: the verdict for machines."""
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    values = {"state": state, "verdict": redact(verdict), "updated": stamp}
    storage.write_json(storage.join(run_directory, STATUS), values)
