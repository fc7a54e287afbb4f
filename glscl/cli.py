"""The ``glscl`` command: finds the command, runs it, prints the verdict as the last line.

Exit status: 0 done, 2 bad input (one line says what, where and which knob), 143 and 130 stopped by SIGTERM and Ctrl-C
(the same command continues), 1 anything else; `submit` and `jobs logs` end with that of their job.

The commands are the modules of `glscl.commands`.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence

from glscl.commands import find_command, format_usage
from glscl.errors import BrokenRunError, CommandFailed, Stopped, UserError, full_disk
from glscl.system.environment import check_working_folder, first_answer_due
from glscl.system.redaction import OutputClosedError, prepare_streams, redacted_output
from glscl.system.stopping import ends_by_signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    with ends_by_signal():
        try:
            with redacted_output():
                status = _run_command(words)
                sys.stdout.flush()
            return status
        except OutputClosedError:  # as other tools end: `glscl train --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
            return 128 + signal.SIGPIPE


def _run_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(format_usage())
        return 0
    try:
        check_working_folder()
        first_answer_due.set()
        command, rest = find_command(words)
        text = command.run(rest)
    except SystemExit as leaving:  # --help
        return int(leaving.code or 0)
    except OutputClosedError:
        raise
    except (Exception, Stopped) as error:
        return _report_failure(error)
    if text:
        _verdict(True, text)
    return 0


def _report_failure(error: Exception | Stopped) -> int:
    """Print what ended the command; returns the exit status."""
    status, text = 1, str(error)
    if isinstance(error, UserError):
        status = 2
    elif isinstance(error, CommandFailed):
        status = error.status
    elif isinstance(error, Stopped):
        status = 128 + error.signum
    elif not isinstance(error, BrokenRunError):
        if full := full_disk(error, "a disk"):
            status, text = 2, str(full)
        else:
            traceback.print_exception(error)
            text = f"{type(error).__name__}: {' '.join(text.split())[:500]}"
    _verdict(False, text)
    return status


def _verdict(ok: bool, text: str) -> None:
    from glscl.reporting.console import verdict  # lazy: `glscl --help` needs no console

    verdict(ok, text)


if __name__ == "__main__":
    sys.exit(main())
