"""Retention: which checkpoints of a run directory are verified, kept and removed.

The run directory itself is the truth. A checkpoint is a folder ``step_...`` in which every file that the lists of its
ranks name is there, with its size; ``checkpoints.json`` says which ones were, so that a listing out of date hides none
and a folder deleted by hand is noticed. Ray Train's register is not used: it counts a damaged checkpoint as the
latest one, deletes the one before for it, refuses to start where a folder is gone, and can be torn on a local disk.

Rules:

1. An older checkpoint may go when a newer one has been verified, never before; what stays are the ``checkpoint.keep``
   best by the held-out score (the newest ones without one), and the newest.
2. What is not complete is never merged into another attempt's and is removed when a newer one has been verified, or at
   the start or end of a command, unless it was complete once.
3. What the storage will not delete stays behind, and a line says so; no run ends for it.
4. Only the directory's owner (`glscl.system.ownership`) writes or deletes: that is looked up before each time.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from glscl.errors import UserError
from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.training.checkpoint.format import SELECTION_METRIC, IncompleteCheckpointError, TrainState, check_files

INDEX = "checkpoints.json"
PREFIX = "step_"
RAY_REGISTER = "checkpoint_manager_snapshot.json"
ANOTHER = "delete the run directory to start again, or choose another --name"


@dataclass(frozen=True, slots=True)
class CompleteCheckpoint:
    """A complete checkpoint on storage."""

    name: str
    state: TrainState

    @property
    def score(self) -> tuple[float, int]:
        """What the best has most of; the newest where nothing was scored."""
        return self.state.metrics.get(SELECTION_METRIC, float("-inf")), self.state.step


class Retention:
    """The checkpoints of one run directory, of which the ``keep`` best stay. One that only reads needs no fence."""

    def __init__(self, run_directory: str, keep: int, fence: Fence | None = None) -> None:
        self.run_directory, self.keep = run_directory, keep
        self._fence = fence
        self._verified: dict[str, TrainState] = {}
        self._staying: set[str] = set()

    def known(self) -> list[str]:
        """Names that were complete once, as ``checkpoints.json`` says."""
        where = storage.join(self.run_directory, INDEX)
        try:
            names = json.loads(storage.read_bytes(where))["complete"]
            if not all(isinstance(name, str) and name.startswith(PREFIX) and "/" not in name for name in names):
                raise ValueError("names other things than checkpoints")
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            print(f"{where} is damaged ({error}): every checkpoint that lies beside it counts", flush=True)
            return self._listed()
        return list(names)

    def _listed(self) -> list[str]:
        return [name for name in storage.list_names(self.run_directory) if name.startswith(PREFIX)]

    def names(self) -> list[str]:
        """Every checkpoint folder, complete or not, the newest first."""
        return sorted({*self._listed(), *self.known(), *self._verified}, reverse=True)

    def verify(self, name: str) -> CompleteCheckpoint:
        """Look at a checkpoint's lists and the sizes of its files (see `check_files`)."""
        if name not in self._verified:
            self._verified[name] = check_files(storage.join(self.run_directory, name))
        return CompleteCheckpoint(name, self._verified[name])

    def complete(self) -> tuple[list[CompleteCheckpoint], dict[str, str]]:
        """Complete checkpoints, the newest first, and what is wrong with each of the others."""
        checkpoints, problems = [], {}
        for name in self.names():
            try:
                checkpoints.append(self.verify(name))
            except IncompleteCheckpointError as error:
                problems[name] = str(error)
        return checkpoints, problems

    def prune_at_start(self) -> list[CompleteCheckpoint]:
        """Register what can be resumed, remove what never was complete; a `UserError` if nothing is whole any more."""
        self._check_owner()
        register = storage.join(self.run_directory, RAY_REGISTER)  # from which Ray Train would go on
        try:
            storage.remove(register)
        except UserError:
            if storage.exists(register):
                raise
        known = self.known()
        checkpoints, problems = self.complete()
        for name, problem in problems.items():
            if name in known:
                print(f"checkpoint {name} is incomplete ({problem}): passed over", flush=True)
            else:
                self._delete(name)
        if known and not checkpoints:
            listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
            raise UserError(f"{self.run_directory}: none of its checkpoints is complete ({listed}); {ANOTHER}")
        self._write(checkpoints, [name for name in problems if name in known])
        self._verified.clear()  # another process, Ray Train's controller, removes some from now on
        return checkpoints

    def register(self, name: str) -> None:
        """A checkpoint has been uploaded: verify it, then let older ones go (rules 1 and 2)."""
        try:
            newest = self.verify(name)
        except IncompleteCheckpointError as error:
            print(f"checkpoint {name} is incomplete after its upload ({error}): those before it stay", flush=True)
            return
        checkpoints, problems = self.complete()
        self._check_owner()
        best = sorted(checkpoints, key=lambda item: item.score)[-self.keep :]
        kept = [item for item in checkpoints if item in best or item == newest or item.state.step > newest.state.step]
        going = [item.name for item in checkpoints if item not in kept]
        going += [bad for bad in problems if bad[: len(PREFIX) + 8] <= name[: len(PREFIX) + 8]]  # not what is under way
        self._write(kept, [])  # first: what it names is there
        for old in going:
            self._delete(old)

    def prune_at_end(self) -> None:
        """Remove what is not complete, after a run has ended well."""
        checkpoints, problems = self.complete()
        self._check_owner()
        if checkpoints:
            self._write(checkpoints, [])
            for name in problems:
                self._delete(name)

    def _delete(self, name: str) -> None:
        """Delete a checkpoint that no rule keeps; one that the storage will not delete stays, and is tried once."""
        self._verified.pop(name, None)
        if name not in self._staying and not storage.tidy(storage.join(self.run_directory, name)):
            self._staying.add(name)

    def best(self) -> list[CompleteCheckpoint]:
        """Complete checkpoints, the best first."""
        checkpoints, _ = self.complete()
        return sorted(checkpoints, key=lambda item: item.score, reverse=True)

    def _check_owner(self) -> None:
        if self._fence is not None:
            self._fence.check()

    def _write(self, complete: list[CompleteCheckpoint], damaged: list[str]) -> None:
        names = sorted([*(item.name for item in complete), *damaged])
        storage.write_json(storage.join(self.run_directory, INDEX), {"complete": names})


def cause_in(errors: Iterable[BaseException | None], kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first of these kinds among errors and what caused them, as Ray wraps them."""
    for error in errors:
        cause = error
        while cause is not None:
            if isinstance(cause, kinds):
                return cause
            cause = cause.__cause__ or getattr(cause, "cause", None) or getattr(cause, "_base_exc", None)
    return None
