"""`glscl study`: train every head on every domain, test each on every domain, compare them."""

from glscl.commands._runs import ManyRuns, open_session
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel
from glscl.system.environment import check_environment

HELP = "heads x training domains x test domains x seeds, with intervals and a report:  --config NAME|FILE.yaml"
ORDER = 40


class Study(ManyRuns):
    """Train every head on every domain, test each on every domain, and say what the differences are worth.

    The same command goes on with what is not finished; finished cells are not done again.
    """

    kind = "study"

    dry_run: bool = False
    """Check the configuration, list the cells and how many are finished, start nothing."""
    report_only: bool = False
    """Write the report of what is finished, and train nothing."""


def run(words: list[str], program: str) -> str:
    """Do what is not finished, then write the report."""
    options = parse_options(Study, words, program)
    if not (options.dry_run or options.report_only):
        check_environment()

    from glscl.study.options import StudyConfig

    study = StudyConfig.load(options.config, **options.changed_keys())

    from glscl.study.plan import describe, plan_study
    from glscl.study.run import report, run_study
    from glscl.study.tuning import with_tuned_settings

    study = with_tuned_settings(study)

    cells, finished = plan_study(study)
    start_panel(program, describe(study, cells, finished))
    if options.dry_run:
        return f"dry run: {len(cells)} cells, {finished} of them finished; nothing was started"
    if options.report_only:
        return report(study)
    with open_session(study) as owner:
        return run_study(study, owner)
