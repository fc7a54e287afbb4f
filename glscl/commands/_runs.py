"""What commands that train share: a run from its first worker to its report, and the options of many runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from glscl.options import Options
from glscl.system import storage
from glscl.system.ownership import ANOTHER_NAME, owned
from glscl.system.session import ray_session

if TYPE_CHECKING:
    from glscl.runs.options import RunsConfig
    from glscl.system.ownership import Owner
    from glscl.training.config import RunConfig
    from glscl.training.driver.preflight import Preflight


def train_and_report(config: RunConfig, ready: Preflight) -> str:
    """Train, test, report; ``status.json`` follows what happens. Returns the verdict."""
    from glscl.evaluation.console import print_results
    from glscl.training.driver.launch import train
    from glscl.training.driver.outputs import REPORT, status_on_failure, write_results, write_status

    where = config.run_directory
    storage.check_writable(where, "--storage")
    with owned(where, ANOTHER_NAME) as owner:
        write_status(where, state="running", verdict="")
        # Also inside the session: to end a cluster takes seconds, and who sent a signal may not wait.
        with status_on_failure(owner.fence), ray_session(), status_on_failure(owner.fence):
            results = train(config, ready, owner)
            owner.fence.check()
            write_results(results, where)
        write_status(where, state="finished", verdict=results.verdict)
    print_results(results)
    return f"{results.verdict} report={storage.join(where, REPORT)}"


class ManyRuns(Options):
    """Options of a command that does many runs; ``{kind}`` in a help text is what the command calls them."""

    kind: ClassVar[str]

    config: str
    """Packaged {kind} (`glscl presets`) or a YAML file."""
    name: str = ""
    """Name of the {kind}; empty is the configuration's."""
    storage: str = ""
    """Folder or s3:// prefix in which the {kind}'s directory is made; empty is the configuration's."""
    root: str = ""
    """Folder or s3:// prefix of the shard sets that have relative paths; empty is the configuration's."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        for field in cls.model_fields.values():
            field.description = str(field.description).format(kind=cls.kind)

    def changed_keys(self) -> dict[str, str]:
        """The keys of the configuration that the command line replaces."""
        given = {"name": self.name, "storage": self.storage, "root": self.root}
        return {key: value for key, value in given.items() if value}


@contextmanager
def open_session(runs: RunsConfig) -> Iterator[Owner]:
    """Check the shard sets and the storage, own the directory, and have Ray running in this block."""
    from glscl.runs.sets import check_given_sets

    check_given_sets(runs)
    storage.check_writable(runs.directory, "--storage")
    with owned(runs.directory, ANOTHER_NAME) as owner, ray_session(quiet=True):
        yield owner
