"""The service under Ray Serve: a deployment for each partition, and one in front with the API and the page.

The front is the very application of one process. Its partitions are elsewhere: a text goes to all of them, and the best
of their answers are merged, as they are in one process.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from glscl.service.app import create_app
from glscl.service.guard import names_of
from glscl.service.library import Library, LocalPartition
from glscl.service.metrics import Meters
from glscl.service.options import Limits, Serve
from glscl.service.partition import Media, PartitionFacts, Refused, TextQuestion
from glscl.service.schemas import Result, Text, Video
from glscl.service.server import name_libraries, open_partition, write_line
from glscl.system.session import ray_session
from glscl.system.stopping import deferred

APPLICATION = "glscl"
WAITING = 2
"""Batches of texts that a replica of a partition holds beside its clips."""


class PartitionReplica(LocalPartition):
    """A partition in a process of its own, opened there; it lies under the same path on every node that may hold it."""

    def __init__(self, folder: str, name: str, device: str, limits: Limits) -> None:
        super().__init__(open_partition(folder, name, device, limits), limits.clips)


class RemotePartition:
    """A partition behind its deployment; Ray chooses the replica."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def facts(self) -> PartitionFacts:
        facts: PartitionFacts = await self._handle.facts.remote()
        return facts

    async def search_texts(self, questions: Sequence[TextQuestion]) -> list[list[Result] | Refused]:
        answers: list[list[Result] | Refused] = await self._handle.search_texts.remote(questions)
        return answers

    async def search_clip(self, data: bytes, k: int, where: tuple[str, ...]) -> list[Result] | Refused:
        answer: list[Result] | Refused = await self._handle.search_clip.remote(data, k, where)
        return answer

    async def find_texts(self, data: bytes, k: int) -> list[Text] | Refused:
        answer: list[Text] | Refused = await self._handle.find_texts.remote(data, k)
        return answer

    async def videos(self, first: int, count: int) -> list[Video]:
        videos: list[Video] = await self._handle.videos.remote(first, count)
        return videos

    async def entry(self, video_id: str) -> Video | None:
        entry: Video | None = await self._handle.entry.remote(video_id)
        return entry

    async def media(self, video_id: str) -> Media | Refused:
        media: Media | Refused = await self._handle.media.remote(video_id)
        return media

    async def read(self, video_id: str, first: int, last: int) -> bytes:
        data: bytes = await self._handle.read.remote(video_id, first, last)
        return data


@serve.ingress()
class Front:
    """The API and the page, before partitions in other processes."""

    def __init__(self, partitions: dict[str, list[DeploymentHandle]], options: Serve) -> None:
        self._partitions, self._options = partitions, options

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray calls it
        meters, options = Meters(), self._options
        libraries = [
            Library(name, [RemotePartition(handle) for handle in handles], options.limits, meters)
            for name, handles in self._partitions.items()
        ]
        names = names_of(options.host, options.allowed_hosts)
        return create_app(libraries, options.limits, meters, names, write_line)


def build(options: Serve) -> Application:
    """The application for `serve run glscl.service.deployment:build` and for Serve's configuration files.

    ``options`` are those of `glscl serve`: ``indexes``, ``replicas``, ``replica_cpus``, ``device``, ``allowed_hosts``,
    ``limits``. A replica on a GPU (``device`` cuda) reserves one.
    """
    limits = options.limits
    reserved = {"num_cpus": options.replica_cpus, "num_gpus": float(options.device.startswith("cuda"))}
    handles: dict[str, list[Application]] = {}
    for name, folders in name_libraries(options.indexes).items():
        for number, folder in enumerate(folders):
            deployment = serve.deployment(
                PartitionReplica,
                name=f"{name}-{number}",
                num_replicas=options.replicas,
                max_ongoing_requests=WAITING + limits.clips + 16,  # files and facts beside them
                ray_actor_options=reserved,
            )
            handles.setdefault(name, []).append(deployment.bind(folder, name, options.device, limits))
    front = serve.deployment(
        Front, name="front", max_ongoing_requests=2 * limits.requests, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(handles, options)


def serve_on_ray(options: Serve) -> str:
    """Serve on a Ray cluster until a signal; returns the verdict."""
    application = build(options)
    with ray_session(), deferred() as asked:
        serve.start(http_options={"host": options.host, "port": options.port})
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
            names = ", ".join(name_libraries(options.indexes))
            print(f"{names} at http://{options.host}:{options.port}/ on Ray Serve (Ctrl-C ends it)", flush=True)
            while not asked():
                time.sleep(0.1)
        finally:
            serve.shutdown()
        return f"ended by {signal.Signals(asked()).name}"
