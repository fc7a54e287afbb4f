"""`glscl quickstart`: make two toy domains, train on one, test on both."""

from pydantic import Field

from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel
from glscl.system import storage
from glscl.system.environment import check_environment

HELP = "make two toy domains, train GLSCL on one, test it on both (no data, no GPU; minutes)"
ORDER = 10

TOY_SETS = (
    ("toy_clips", "train", 800),
    ("toy_clips", "dev", 100),
    ("toy_clips", "test", 200),
    ("toy_stories", "test", 200),
)
"""Domain, split and number of videos of the shard sets that are made, in ``toy/`` under the storage."""


class Quickstart(Options):
    """Make two toy domains, train GLSCL on one with two workers, test it on both."""

    storage: str = "runs"
    """Folder of the run directory and of the toy data."""
    name: str = Field(default="quickstart", pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run; the same name continues."""


def run(words: list[str], program: str) -> str:
    """Make the toy sets and train on them; Ray's tasks write the sets, so it runs from the beginning."""
    options = parse_options(Quickstart, words, program)
    check_environment()
    storage.check_writable(storage.resolve(options.storage), "--storage")

    from glscl.commands._runs import train_and_report
    from glscl.data.toy.sets import toy_set
    from glscl.system.nodes import alive_nodes
    from glscl.system.session import ray_session
    from glscl.training.config import load_config
    from glscl.training.driver.machines import with_machines
    from glscl.training.driver.preflight import preflight

    with ray_session():
        root, config = options.storage, load_config("quickstart")
        shards = {(domain, split): toy_set(root, domain, split, count) for domain, split, count in TOY_SETS}
        data = config.data.model_copy(
            update={
                "train": (shards["toy_clips", "train"],),
                "validation": (shards["toy_clips", "dev"],),
                "test": (shards["toy_clips", "test"], shards["toy_stories", "test"]),
            }
        )
        config = config.model_copy(update={"data": data, "name": options.name, "storage": root}).resolved()
        config = with_machines(config, alive_nodes)
        ready = preflight(config)
        start_panel(program, ready.facts)
        return train_and_report(config, ready)
