"""One package stands on private parts of Ray, and no code that runs in earnest stands on the tools of tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(r"\bray\.(_private|_raylet|\w+(\.\w+)*\._(internal|private))\b|\binternal_kv\b")


def production() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", ":!tests", ":!stress", ":!benchmarks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in tracked.stdout.splitlines()]


def test_one_package_stands_on_private_parts_of_ray() -> None:
    users = {path.relative_to(ROOT).parent for path in production() if PRIVATE.search(path.read_text(encoding="utf-8"))}
    assert users == {Path("glscl/system/ray_internals")}


def test_no_module_mocks_in_earnest() -> None:
    assert not [path for path in production() if "unittest.mock" in path.read_text(encoding="utf-8")]
