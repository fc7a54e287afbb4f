"""Options of the service: where it listens, and its limits."""

from __future__ import annotations

from pydantic import Field
from tyro.conf import Positional

from glscl.data.limits import MAX_DECODE_S
from glscl.options import Options


class Limits(Options):
    """What one server takes on at most."""

    queue: int = Field(default=256, ge=1)
    """Texts that wait for an index at most; the next one is answered 503."""
    batch: int = Field(default=32, ge=1)
    """Texts that are encoded at once at most."""
    batch_ms: float = Field(default=2.0, ge=0, le=1000)
    """Milliseconds that the first text of a batch waits for others."""
    requests: int = Field(default=512, ge=1)
    """Requests answered at once at most, videos that are played included; the next one is answered 503."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds from a question to its answer, for the body to arrive, and for the reader of a video to read on."""
    results: int = Field(default=100, ge=1)
    """Most results of one search."""
    words: int = Field(default=1000, ge=1)
    """Most characters of a text."""
    upload_mb: int = Field(default=64, ge=1, le=4096)
    """Largest clip to search by, in MB."""
    upload_seconds: float = Field(default=600.0, gt=0)
    """Longest clip to search by, in seconds."""
    decode_s: float = Field(default=20.0, gt=0, le=MAX_DECODE_S)
    """CPU seconds that decoding one clip may take."""
    clips: int = Field(default=2, ge=1)
    """Clips that are decoded at once; as many wait, the next one is answered 503."""
    clips_per_client: int = Field(default=2, ge=1)
    """Clips of one client (address) at once; its next one is answered 429."""


class Serve(Options):
    """Answer searches in indexes over HTTP, with a page at / and a description of the API at /openapi.json.

    Stop it with Ctrl-C or SIGTERM: it answers what it has begun, then ends.
    """

    indexes: Positional[tuple[str, ...]]
    """Folders of `glscl index build`. NAME=FOLDER names one; NAME=FOLDER,FOLDER is one library in several partitions.
    Two can be compared on the page."""
    host: str = "127.0.0.1"
    """Address to listen at. 127.0.0.1 is reached from this machine alone; 0.0.0.0 from everywhere, and there is no
    password: put a proxy in front."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen at; 0 takes one that is free."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which browsers may reach the server, such as search.example.org. Without it: this machine's own
    names where --host is a loopback address, any elsewhere."""
    device: str = "auto"
    """Where texts and clips are encoded: cpu, cuda, cuda:1; auto is the first GPU if there is one."""
    ray: bool = False
    """Run every partition of every index as a deployment of Ray Serve, on the cluster of RAY_ADDRESS or one of this
    command's own (extra: ray-serve)."""
    replicas: int = Field(default=1, ge=1)
    """With --ray: processes that hold each partition, which share its questions."""
    replica_cpus: float = Field(default=1.0, ge=0)
    """With --ray: CPUs that each of these processes reserves; the one in front reserves none."""
    limits: Limits = Limits()
