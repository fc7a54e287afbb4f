"""`glscl sweep`: search over keys of a run's configuration across domains."""

from glscl.commands._runs import ManyRuns, open_session
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel
from glscl.system.environment import check_environment

HELP = "search loss weights, temperature, rates ... across domains:  --config NAME|FILE.yaml  [--dry-run]"
ORDER = 50


class Sweep(ManyRuns):
    """Search over any keys of a run's configuration, scored across domains on held-out parts.

    The same command goes on with what is not finished; finished trials are not done again.
    """

    kind = "sweep"

    dry_run: bool = False
    """Check the configuration, say what would be done and how many trials the cluster takes at once, start none."""
    report_only: bool = False
    """Write the report of the trials that have ended, and train nothing."""


def run(words: list[str], program: str) -> str:
    """Do the trials that are not finished, then write the report. A dry run starts Ray, to count what fits at once."""
    options = parse_options(Sweep, words, program)
    if not options.report_only:
        check_environment()

    from tune.options import SweepConfig

    sweep = SweepConfig.load(options.config, **options.changed_keys())

    from glscl.system.session import ray_session
    from tune.plan import describe, plan_sweep
    from tune.search import concurrent_trials
    from tune.sweep import report, run_sweep

    default = plan_sweep(sweep)
    start_panel(program, describe(sweep, default))
    if options.report_only:
        return report(sweep)
    if options.dry_run:
        with ray_session(quiet=True):
            at_once = concurrent_trials(sweep, default)
        return f"dry run: {sweep.trials} trials, {at_once} at once on this cluster; none was started"
    with open_session(sweep) as owner:
        return run_sweep(sweep, owner)
