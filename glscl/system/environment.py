"""Checks of the environment before anything slow starts: Ray's address and token, temporary folders, S3 variables.

Every check raises a `UserError` that names the variable and what to set it to. All of them take milliseconds.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from glscl.errors import UserError, did_you_mean

TOKEN_KNOB = (
    "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, "
    "or in ~/.ray/auth_token"
)
ANSWER_S = 5.0  # seconds that a cluster is given for its first answer
SESSION = "session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path that Ray makes for a socket under its temporary folder."""
LONGEST_SOCKET = 107  # bytes of the path of a Unix socket (Linux)
LEAST_FREE = 64 << 20  # bytes that have to be free for Ray's logs and for temporary files
_MODES = ("disabled", "token")
first_answer_due = threading.Event()
"""Set by a command that starts, cleared by the first answer of an S3 endpoint. Until then an endpoint that cannot be
reached is a typing error, not an outage."""
_ASKS = "/ray.rpc.NodeInfoGcsService/CheckAlive"


class NoAnswerError(UserError):
    """Nobody answers at a cluster's address."""


def check_working_folder() -> None:
    """See that the folder that the command was started in still exists."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("the current folder has been deleted or moved away; change to another (`cd`)") from None


def check_environment() -> None:
    """See that a Ray cluster can be used or started from here."""
    mode, path = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode is not None and mode.lower() not in _MODES:
        raise UserError(f"RAY_AUTH_MODE={mode}: not one of {' and '.join(_MODES)}{did_you_mean(mode, _MODES)}")
    if path and not os.environ.get("RAY_AUTH_TOKEN") and not _read_text(path):
        raise UserError(f"RAY_AUTH_TOKEN_PATH={path}: no token can be read there; correct it, or unset it")
    address = named_cluster()
    if address and address not in ("local", "auto"):
        check_cluster(address)
    if address in (None, "local"):
        check_temporary_folder(temporary_folder(), "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR")


def named_cluster() -> str | None:
    """``RAY_ADDRESS`` as ``host:port``, "local" or "auto"; None if it names none."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if not named or named in ("local", "auto"):
        return named or None
    shown = f"RAY_ADDRESS={named}"
    if "@" in named:
        raise UserError(f"RAY_ADDRESS: credentials in an address are refused; for Ray's token, {TOKEN_KNOB}")
    if named.startswith(("http://", "https://")):
        raise UserError(
            f"{shown}: that is a dashboard's address, with which jobs are sent: `glscl submit --address {named} -- "
            f"COMMAND`. To run here, on a node of the cluster, set RAY_ADDRESS=HEAD:6379, or unset it"
        )
    if named.startswith("ray://"):
        raise UserError(
            f"{shown}: Ray Client, through which nothing can be trained; on a node of the cluster set "
            f"RAY_ADDRESS=HEAD:6379, from outside use `glscl submit --address http://HEAD:8265 -- COMMAND`"
        )
    match = re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})", named)
    if not match or not 0 < int(match["port"]) < 65536:
        meant = did_you_mean(named, ("local", "auto"))
        raise UserError(
            f"{shown}: expected HOST:PORT of the cluster's head (6379 unless it says otherwise), or local{meant}"
        )
    return named


def check_cluster(address: str, shown: str = "") -> None:
    """See that a Ray cluster answers at ``host:port`` and takes the token that is set.

    Ray itself sends no token to a named address unless ``RAY_AUTH_MODE`` says so: that is set where it is needed.
    """
    shown = shown or f"RAY_ADDRESS={address}"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise NoAnswerError(
            f"no Ray cluster answers at {shown} ({error}); start it, correct the address, or unset "
            f"RAY_ADDRESS for a local one"
        ) from None
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # certificates are Ray's to check
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    token = ray_token() if mode in ("", "token") else None
    answer = _ask(address, token)
    if answer == "UNAUTHENTICATED":
        problem = "refuses this token" if token else "demands a token and got none"
        raise UserError(f"{shown}: the cluster {problem}; {TOKEN_KNOB}")
    if answer in ("UNAVAILABLE", "UNIMPLEMENTED"):
        raise UserError(
            f"{shown}: something answers there, but not the head of a Ray cluster (its dashboard, "
            f"perhaps); set RAY_ADDRESS=HEAD:6379"
        )
    if token and not mode and _ask(address, None) == "UNAUTHENTICATED":
        os.environ["RAY_AUTH_MODE"] = "token"


def _ask(address: str, token: str | None) -> str:
    """Name of the gRPC status with which a cluster's head answers."""
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    headers = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            channel.unary_unary(_ASKS)(b"", timeout=ANSWER_S, metadata=headers)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def ray_token() -> str | None:
    """The token that Ray would send: of ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``."""
    return os.environ.get("RAY_AUTH_TOKEN") or token_in_file() or None


def token_in_file() -> str:
    """The token of ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``; empty if there is none."""
    return _read_text(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")


def can_keep_token() -> bool:
    """Whether Ray can write the token of a cluster that it starts into the home folder."""
    home = Path(os.path.expanduser("~"))
    folder = home / ".ray"
    return os.access(folder if folder.is_dir() else home, os.W_OK | os.X_OK)


def _read_text(path: str) -> str:
    try:
        return Path(os.path.expanduser(path)).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def temporary_folder() -> str:
    """The folder in which a local cluster's folder is made; Ray chooses it in the same way."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def check_temporary_folder(folder: str, knob: str) -> None:
    """See that a local cluster fits into a folder: writable, with free space, and a path short enough for sockets."""
    socket_path = os.path.join(os.path.abspath(folder), "glscl-ray-12345678", SESSION.format(pid=os.getpid()))
    over = len(os.fsencode(socket_path)) - LONGEST_SOCKET
    if over > 0:
        raise UserError(
            f"{knob}={folder}: too long by {over} characters for the Unix sockets that Ray makes under it; set "
            f"RAY_TMPDIR to a folder with a shorter path, such as /tmp"
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"glscl")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"{knob}={folder}: temporary files cannot be written there ({error.strerror or error}); set {knob} to a "
            f"folder that can be written"
        ) from None
    if free < LEAST_FREE:
        raise UserError(
            f"{knob}={folder}: {free >> 20} MB are free, too few for Ray's logs and temporary files; free some, or "
            f"set RAY_TMPDIR and TMPDIR to another disk"
        )


def check_s3() -> None:
    """See that the variables of S3 clients make sense together."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        given = os.environ.get(name, "")
        url = urlsplit(given)
        if given and (url.scheme not in ("http", "https") or not url.hostname):
            raise UserError(f"{name}={given}: an endpoint begins with http:// or https://; set {name}=http://{given}")
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    if profile:
        files = (read_aws_file("AWS_SHARED_CREDENTIALS_FILE"), read_aws_file("AWS_CONFIG_FILE"))
        known = {name.removeprefix("profile ").strip() for file in files for name in file.sections()}
        if profile not in known:
            raise UserError(
                f"AWS_PROFILE={profile}: no such profile{did_you_mean(profile, known)} (known: "
                f"{', '.join(sorted(known)) or 'none'}); correct it, or unset it"
            )


def read_aws_file(variable: str) -> configparser.RawConfigParser:
    """What can be read of AWS's file: of ``AWS_CONFIG_FILE`` or of ``AWS_SHARED_CREDENTIALS_FILE``."""
    default = "~/.aws/config" if variable == "AWS_CONFIG_FILE" else "~/.aws/credentials"
    parser = configparser.RawConfigParser(strict=False)
    with suppress(configparser.Error):
        parser.read_string(_read_text(os.environ.get(variable) or default))
    return parser
