"""No secret leaves in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from glscl.cli import main
from glscl.errors import UserError
from glscl.system import storage
from glscl.system.redaction import HIDDEN, redact, redacted_errors, redacted_output
from glscl.training.driver.outputs import write_status

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_secret_access_key = secret-of-the-file\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET + "-and-more")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token-of-the-cluster")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/somewhere/auth_token")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {SECRET}.", f"key {HIDDEN}."),
        (f"session {SECRET}-and-more", f"session {HIDDEN}"),
        ("token-of-the-cluster", HIDDEN),
        ("secret-of-the-file", HIDDEN),
        ("AKIAIOSFODNN7EXAMPLE", HIDDEN),
        ("s3://key:word@bucket/a", f"s3://{HIDDEN}@bucket/a"),
        ("Authorization: Bearer abc.def-ghi", f"Authorization: Bearer {HIDDEN}"),
        ("https://b/k?X-Amz-Signature=ab12&X=1", f"https://b/k?X-Amz-Signature={HIDDEN}&X=1"),
        ("https://b/k?a=1&X-Amz-Credential=AK%2F2026", f"https://b/k?a=1&X-Amz-Credential={HIDDEN}"),
        ("msrvtt/test in eu-central-1 /somewhere/auth_token", "msrvtt/test in eu-central-1 /somewhere/auth_token"),
    ],
)
def test_what_is_hidden_and_what_is_not(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_whatever_a_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with redacted_output():
        print("out", SECRET)
        print("err", SECRET, file=sys.stderr)
    assert capsys.readouterr() == (f"out {HIDDEN}\n", f"err {HIDDEN}\n")
    assert main(["shards", "info", f"/nowhere/{SECRET.replace('/', '_')}", SECRET]) == 2
    assert SECRET not in capsys.readouterr().out


def test_errors_that_ray_would_write_down() -> None:
    def fail() -> None:
        with redacted_errors():
            raise ValueError(f"no access with {SECRET}")

    with pytest.raises(RuntimeError) as error:
        fail()
    assert f"no access with {HIDDEN}" in str(error.value)
    assert error.value.__suppress_context__, "Ray would print the first error too"
    with pytest.raises(UserError, match=r"no \[secret\]$"), redacted_errors():
        raise UserError(f"no {SECRET}")
    with pytest.raises(ValueError, match="plain"), redacted_errors():
        raise ValueError("plain")


def test_the_status_file(tmp_path: Path) -> None:
    write_status(str(tmp_path), state="failed", verdict=f"with {SECRET}")
    assert json.loads((tmp_path / "status.json").read_text())["verdict"] == f"with {HIDDEN}"


def test_credentials_in_an_address_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="credentials do not belong in an address") as error:
        storage.resolve("s3://mykey:myword@bucket/shards")
    assert "myword" not in str(error.value)
    words = ["train", "--config", "tiny", "--data.train", "s3://mykey:myword@bucket/shards"]
    assert main(words) == 2
    assert main(["submit", "--address", "http://127.0.0.1:1", "--", *words]) == 2
    assert main(["submit", "--address", "http://127.0.0.1:1", "--", "train", "--name", SECRET]) == 2
    printed = capsys.readouterr().out
    assert "myword" not in printed
    assert SECRET not in printed
    assert "a secret is part of the command, which the cluster keeps in its list of jobs" in printed
    assert printed.count("credentials do not belong in an address") == 2
