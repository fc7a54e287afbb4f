"""What a command leaves at its end: results, report, status and verdict."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from glscl.data.quarantine import Entry, Incomplete, describe_incomplete
from glscl.evaluation.metrics import MAIN_METRIC
from glscl.evaluation.results import RESULTS as RESULTS
from glscl.evaluation.results import BadVideo, HistoryRow, Logged, Results, ScoredRun, Test
from glscl.evaluation.saved import ModelCard
from glscl.system import storage
from glscl.system.ownership import Fence, TakenOverError
from glscl.system.redaction import redact

STATUS = "status.json"
REPORT = "report.html"


def build_results(
    card: ModelCard,
    tests: list[Test],
    log: Sequence[Mapping[str, Logged]],
    incomplete: Sequence[Incomplete] = (),
    quarantine: Sequence[Entry] = (),
) -> Results:
    """Put tests, provenance, training history (from rows of the log) and what is missing together."""
    return Results(
        **dict(describe_run(card, _verdict(card, tests, incomplete))),
        validation=card.validation,
        tests=tests,
        incomplete=list(incomplete),
        quarantine=[BadVideo.model_validate(entry) for entry in quarantine],
        history=_history(log),
    )


def describe_run(card: ModelCard, verdict: str) -> ScoredRun:
    """Say which model this command scores, now."""
    return ScoredRun(
        run=card.run,
        verdict=verdict,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        head=card.model.head,
        clip=card.model.clip,
        checkpoint_step=card.step,
        seed=card.seed,
        git_commit=git_commit(),
        command=redact(" ".join(["glscl", *sys.argv[1:]])),
        train_domains=list(card.train_domains),
    )


def _history(log: Sequence[Mapping[str, Logged]]) -> list[HistoryRow]:
    """The loss and its terms per logged step, and held-out recalls under ``validation``."""
    history: list[HistoryRow] = []
    for row in log:
        held_out = {k.removeprefix("validation/"): v for k, v in row.items() if k.startswith("validation/")}
        if held_out and history and history[-1]["step"] == row["step"]:
            history[-1]["validation"] = held_out
            continue
        losses = {key.removeprefix("loss/"): value for key, value in row.items() if key.startswith("loss")}
        history.append({"step": row["step"], **losses, **({"validation": held_out} if held_out else {})})
    return history


def _verdict(card: ModelCard, tests: Sequence[Test], incomplete: Sequence[Incomplete]) -> str:
    """One line: text-to-video R@1 per test set, and the sets of which videos are missing."""
    scores = [f"{test.name} ({test.relation}) {MAIN_METRIC}={test.text_to_video[MAIN_METRIC]:.1f}" for test in tests]
    missing = f"; incomplete: {describe_incomplete(incomplete)}" if incomplete else ""
    return f"run={card.run} step={card.step} " + (", ".join(scores) or "no test set") + missing


def write_results(results: Results, output: str) -> None:
    """Write ``results.json`` and ``report.html`` into a folder or prefix."""
    from glscl.evaluation.report import write_report

    storage.write_json(storage.join(output, RESULTS), results.to_json())
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

    Raises `TakenOverError` instead of what the block raised, where the directory belongs to another command by now.
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
