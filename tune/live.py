"""The progress of a sweep while it runs: a table on a terminal, a line per event anywhere else."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune import Callback
from rich.live import Live
from rich.table import Table
from rich.text import Text

from glscl.errors import UserError
from glscl.reporting.console import console
from glscl.system.progress import time_left
from tune.objective import Score, Setup
from tune.trials import Trial, best_of, from_ray

SEARCH = "search"
"""Folder of Ray Tune's state."""

_MOST_FAILURES = 5


class SweepCallback(Callback):
    """Follows Ray Tune's trials, prints what happens and has it kept.

    The trials that are ``known`` ended before this start of the driver; ``keep`` is given the sweep's trials whenever
    one has ended; ``check`` is called at each turn of Ray Tune, and raises where it has to end.
    """

    def __init__(
        self, setup: Setup, known: Sequence[Trial], keep: Callable[[list[Trial]], None], check: Callable[[], None]
    ) -> None:
        self._setup = setup
        self._total = setup.sweep.trials
        self._known = {trial.name: trial for trial in known}
        self._reported: dict[str, dict[int, Score]] = {}
        self._ending: dict[str, str] = {}
        self._keep, self._check = keep, check
        out = console()
        self._began = time.monotonic()
        self._live = Live(console=out, auto_refresh=False) if out.is_terminal else None

    def setup(self, **info: Any) -> None:
        """Ray Tune is about to begin."""
        if self._live is not None:
            self._live.start()

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Ray Tune goes on: with the trials that ended before, or it could not read its state and would begin anew."""
        self._check()
        if lost := self._known.keys() - {trial.trial_id for trial in trials}:
            raise UserError(
                f"{self._setup.sweep.directory}/{SEARCH}: Ray Tune cannot go on from its state there ({len(lost)} "
                f"ended trials are not in it); choose another --name, or delete the sweep's directory to begin anew"
            )

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on."""
        self._ending.pop(trial.trial_id, None)
        if trial.trial_id in self._known:
            return  # had ended, which Ray Tune had not yet written down: it only reports that again
        short = {key: f"{value:.3g}" if isinstance(value, float) else str(value) for key, value in trial.config.items()}
        values = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in short.items())
        self._event(trials, f"trial {trial.trial_id} starts: {values}")

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """A trial has scored a step."""
        if trial.trial_id in self._known:
            return
        score = Score(result["step"], result["objective"], dict(result["domains"]))
        self._reported.setdefault(trial.trial_id, {})[score.step] = score
        domains = ", ".join(f"{name} {value:.1f}" for name, value in score.domains.items())
        self._event(trials, f"trial {trial.trial_id} step {score.step}: {score.objective:.2f} ({domains})")

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """A trial has finished, or was stopped."""
        if trial.trial_id not in self._known:
            self._ended(trials, trial.trial_id, "TERMINATED")

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good."""
        self._ended(trials, trial.trial_id, "ERROR")
        so_far = self.trials(trials)
        failed = [item for item in so_far if item.state == "failed"]
        if len(failed) >= _MOST_FAILURES and not any(item.has_ended for item in so_far):
            raise UserError(f"the first {len(failed)} trials failed; the first of: {failed[0].error}")

    def close(self) -> None:
        """Leave the terminal as it was; the table stays."""
        if self._live is not None:
            self._live.stop()

    def trials(self, trials: Sequence[Any]) -> list[Trial]:
        """Convert Ray Tune's trials."""
        return from_ray(self._setup, trials, self._known, self._reported, self._ending)

    def _ended(self, trials: Sequence[Any], name: str, state: str) -> None:
        self._ending[name] = state
        so_far = self.trials(trials)
        self._keep(so_far)
        (ended,) = [trial for trial in so_far if trial.name == name]
        at = f" at step {ended.last.step}: {ended.last.objective:.2f}" if ended.last else ""
        self._event(trials, f"trial {name} {ended.state}{at}{f' ({ended.error})' if ended.error else ''}")

    def _event(self, trials: Sequence[Any], text: str) -> None:
        so_far = self.trials(trials)
        ended = sum(trial.state != "running" for trial in so_far) - len(self._known)
        summary = summarise(so_far, self._total)
        summary += time_left(time.monotonic() - self._began, ended, self._total - len(self._known))
        if self._live is not None:
            self._live.update(build_table(so_far, summary), refresh=True)
            return
        print(f"sweep: {text}; {summary}", flush=True)


def summarise(trials: Sequence[Trial], total: int) -> str:
    """Count the trials by state and name the best so far, in one line."""
    states = Counter(trial.state for trial in trials)
    text = ", ".join(f"{states[state]} {state}" for state in ("running", "finished", "stopped", "failed"))
    best = best_of(trials)
    return f"{text} of {total}" + (f"; best {best.score():.2f} ({best.name})" if best else "")


def build_table(trials: Sequence[Trial], title: str) -> Table:
    """Build a table of the trials, the best first."""
    domains = next((list(trial.last.domains) for trial in trials if trial.last), [])
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for name in ("trial", "state", "step", "objective", *domains):
        table.add_column(Text(name), justify="left" if name in ("trial", "state") else "right")
    for trial in sorted(trials, key=Trial.score, reverse=True)[:20]:
        last = trial.last
        numbers = (
            [str(last.step), f"{last.objective:.2f}", *(f"{last.domains[n]:.1f}" for n in domains)] if last else []
        )
        table.add_row(*map(Text, (trial.name, trial.state, *numbers)))
    return table
