"""Train on storage that misbehaves, and check that the weights are those of an undisturbed run.

    python stress/storage_faults.py

Trains a tiny run (two workers, ZeRO 2, shards and run directory on a storage server of its own, moto) once undisturbed
and once for each kind of fault, a fifth of all requests failing in that way, through the tests' proxy. Prints a table
in Markdown: requests, faults that happened, requests more than undisturbed, how many times as long it took, and whether
``model/weights.safetensors`` is the same, bit by bit. Ends with exit status 1 if one is not. Needs the ``dev`` extra;
about half a minute a run on two free cores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the proxy is one of the tests' modules

from tests.fault_proxy import KINDS, FaultProxy

RATE = 0.2
OPTIONS = {
    "data.validation": "",
    "data.test": "",
    "data.loader-workers": "0",
    "training.num-workers": "2",
    "training.zero-stage": "2",
    "training.max-steps": "24",
    "training.max-failures": "0",  # every fault has to be outlasted where it happens
    "checkpoint.every-steps": "3",
}


def main() -> None:
    """Run them all and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS, help="faults to try")
    kinds = parser.parse_args().kinds
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # one line per request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    upstream = f"http://{host}:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": upstream,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="bench")

    from glscl.data.toy.sets import toy_set

    shards = toy_set("s3://bench", "toy_clips", "train", 100)
    print("| fault | requests | faults | further requests | time | same weights |")
    print("|---|---|---|---|---|---|", flush=True)
    expected, base, normal, same = "", 0, 0.0, True
    for kind in ("none", *kinds):
        with FaultProxy(upstream, () if kind == "none" else (kind,), RATE, seed=1) as proxy:
            seconds = train(kind, shards, proxy.url)
        sha256 = hash_weights(kind)
        if kind == "none":
            expected, base, normal = sha256, proxy.requests, seconds
        same = same and sha256 == expected
        more = proxy.requests - base
        print(
            f"| {kind} | {proxy.requests} | {sum(proxy.injected.values())} | {more} | {seconds / normal:.2f} x "
            f"| {'yes' if sha256 == expected else 'NO'} |",
            flush=True,
        )
    server.stop()
    sys.exit(0 if same else 1)


def train(name: str, shards: str, endpoint: str) -> float:
    """One run from the command line; returns the seconds it took."""
    words = ["--config", "tiny", "--name", name, "--storage", "s3://bench/runs", "--data.train", shards]
    for key, value in OPTIONS.items():
        words += [f"--{key}", *([value] if value else [])]
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        status = subprocess.call(
            [sys.executable, "-m", "glscl", "train", *words],
            env=os.environ | {"AWS_ENDPOINT_URL": endpoint, "RAY_ADDRESS": "local"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        if status:
            output.seek(0)
            raise SystemExit(output.read().decode(errors="replace")[-5000:])
    return time.monotonic() - began


def hash_weights(name: str) -> str:
    """SHA-256 of the weights that a run handed on."""
    import boto3

    path = f"runs/{name}/model/weights.safetensors"
    return hashlib.sha256(boto3.client("s3").get_object(Bucket="bench", Key=path)["Body"].read()).hexdigest()


if __name__ == "__main__":
    main()
