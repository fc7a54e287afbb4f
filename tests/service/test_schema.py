"""The server against its own description, by schemathesis: whatever the schema lets one send, no 5xx comes back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.conftest import Served

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method"
)


def test_no_answer_is_a_fault_of_the_server_and_all_are_described(served: Served, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}openapi.json"),
            *("--checks", CHECKS, "--max-examples", "25", "--seed", "1", "--no-color", "--workers", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counted = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counted is not None, done.stdout[-3000:]
    assert counted[1] == counted[2]
    assert int(counted[1]) > 300
    assert served.process.poll() is None
    assert not any("Traceback" in line for line in served.lines)
