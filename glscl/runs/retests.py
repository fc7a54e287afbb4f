"""Testing a finished cell's model again: its frames in other orders, and towers between the initial and trained ones.

What is found lies beside the cell's result, in files of its own, so that a finished study can be asked for more. It
takes the model: that of a cell which ends is there, whatever becomes of it afterwards (``keep_models``).
"""

from collections.abc import Sequence
from dataclasses import replace

from glscl.errors import UserError
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.metrics import DIRECTIONS
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.results import RankBounds, Test
from glscl.evaluation.saved import CARD, FOLDER
from glscl.evaluation.wise_ft import Mix
from glscl.runs.cell import (
    RESULT,
    Cell,
    CellResult,
    ControlTest,
    WiseFtTest,
    missing_controls,
    missing_wise_ft,
    read_controls,
    read_wise_ft,
    write_controls,
    write_wise_ft,
)
from glscl.system import storage
from glscl.system.nodes import alive_nodes
from glscl.system.ownership import Fence
from glscl.training.driver.launch import share_of_actors
from glscl.training.driver.machines import with_machines

_PLAIN = {"frames": None, "normalisations": False, "leave_out": (), "qrels": (), "examples": 0}


def retest(cell: Cell, result: CellResult, fence: Fence, here: bool) -> None:
    """Test a finished cell with what it is asked for and lacks, and write it down; ``here`` as in `run_cell`.

    Raises `UserError`: its model was not kept, or other videos can be decoded by now.
    """
    if orders := missing_controls(cell):
        _check_model(cell, "controls", orders)
        config = cell.config.evaluation.model_copy(update=_PLAIN | {"frames": orders})
        tests = [test for test in _evaluate(cell, result, config, (), "controls", here) if test.frames is not None]
        fence.check()
        controls = [ControlTest.model_validate(dict(test) | _ranks(test)) for test in tests]
        write_controls(cell.directory, read_controls(cell.directory) + controls)
    if alphas := missing_wise_ft(cell):
        _check_model(cell, "wise_ft", alphas)
        config = cell.config.evaluation.model_copy(update=_PLAIN)
        mixes = [Mix(alpha, is_listed=True) for alpha in alphas]
        tests = _evaluate(cell, result, config, mixes, "wise_ft", here)
        fence.check()
        mixed = [WiseFtTest.model_validate(dict(test) | _ranks(test)) for test in tests]
        write_wise_ft(cell.directory, read_wise_ft(cell.directory) + mixed)


def without_untestable(cells: Sequence[Cell], kind: str) -> list[Cell]:
    """Ask no more of finished cells whose model was not kept than they have; prints how many there are."""
    left = []
    lost: dict[str, None] = {}
    count = 0
    for cell in cells:
        if (missing := _missing(cell)) and not _has_model(cell):
            lost |= dict.fromkeys(missing)
            count += 1
            controls, alphas = set(missing_controls(cell)), set(missing_wise_ft(cell))
            cell = replace(
                cell,
                controls=tuple(order for order in cell.controls if order not in controls),
                wise_ft=tuple(alpha for alpha in cell.wise_ft if alpha not in alphas),
            )
        left.append(cell)
    if count:
        print(
            f"{kind}: {count} finished cells cannot be tested with {', '.join(lost)}, because their models were not "
            f"kept (keep_models); they stay as they are. Delete a cell's folder to have it done again",
            flush=True,
        )
    return left


def _missing(cell: Cell) -> list[str]:
    """Names of what a finished cell lacks; none for one that is not finished."""
    if not (cell.controls or cell.wise_ft) or not storage.exists(storage.join(cell.directory, RESULT)):
        return []
    return [*missing_controls(cell), *(f"wise_ft {alpha:g}" for alpha in missing_wise_ft(cell))]


def _has_model(cell: Cell) -> bool:
    return storage.exists(storage.join(cell.directory, FOLDER, CARD))


def _check_model(cell: Cell, key: str, asked: Sequence[object]) -> None:
    """Refuse, with a `UserError`, to test a model that is gone."""
    if not _has_model(cell):
        raise UserError(
            f"{key}: {', '.join(map(str, asked))} cannot be tested, because the model of {cell.directory} was not kept "
            f"(keep_models); leave them out, or delete the cell's folder to have it done again"
        )


def _evaluate(
    cell: Cell, result: CellResult, evaluation: EvaluationConfig, mixes: Sequence[Mix], key: str, here: bool
) -> list[Test]:
    """Test a cell's model. Raises `UserError`: the queries are not those of its result."""
    config = with_machines(cell.config, alive_nodes, alone=False)
    share = share_of_actors(config)
    tests = evaluate_model(
        config.run_directory, config.data.test, evaluation, share, keep_ranks=True, mixes=mixes, here=here
    )
    owners = {test.fingerprint: test.per_query.owners for test in result.tests}
    for test in tests:
        assert test.per_query is not None
        if test.per_query.owners != owners[test.fingerprint]:
            raise UserError(
                f"{key}: other videos of {test.shards} can be decoded than when {cell.directory} was tested; delete "
                f"the cell's folder to have it done again"
            )
    return tests


def _ranks(test: Test) -> dict[str, RankBounds]:
    """Every query's ranks by direction, in place of a test's metrics."""
    return {direction: getattr(test.per_query, direction) for direction in DIRECTIONS}
