"""The API: what can be asked, and how its answers look."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, File, Form, Header, Query, Request, UploadFile
from fastapi.responses import StreamingResponse

from glscl.service.library import Library
from glscl.service.media import send_media
from glscl.service.options import Limits
from glscl.service.partition import TextQuestion
from glscl.service.refusals import Refusal, describe_problems
from glscl.service.schemas import Indexes, Results, Texts, TextSearch, Video, Videos

CLIP = "/api/search/clip"
CLIP_TYPES = ("video/", "image/gif", "application/octet-stream")
CONDITIONS = 20  # at once
PAGE = 100  # videos listed at once
PASSED = 10_000  # of a list, which is walked through

Name = Annotated[str | None, Query(alias="index", description="Name of the index; the first one if it is left out.")]
VideoId = Annotated[str, Query(alias="id", min_length=1, max_length=4096, description="The video's id.")]
Count = Annotated[int, Query(ge=1, description="Number of results.")]
Conditions = Annotated[
    list[str],
    Query(description="Conditions on the videos' metadata, all of which hold: `lang=en`, `year>2020`."),
]


class Api:
    """The routes under ``/api``.

    Args:
        libraries: that are served, by name; the first one is asked where none is named.
        limits: of the server.
    """

    def __init__(self, libraries: Mapping[str, Library], limits: Limits) -> None:
        self._libraries, self._limits = libraries, limits
        self._clips_of: Counter[str] = Counter()

    def router(self) -> APIRouter:
        """The routes, with their descriptions."""
        router = APIRouter(prefix="/api")
        asked = describe_problems(404, 422)
        decoded = describe_problems(404, 422, 429)
        add = router.add_api_route
        add("/indexes", self.indexes, summary="The indexes that are served", responses=describe_problems())
        add("/search", self.search, methods=["POST"], summary="Find videos by a text", responses=asked)
        add("/search", self.search_by_address, summary="Find videos by a text, in the address", responses=asked)
        add(
            CLIP.removeprefix("/api"),
            self.search_by_clip,
            methods=["POST"],
            summary="Find videos like a clip",
            responses=describe_problems(404, 415, 422, 429),
        )
        add("/similar", self.similar, summary="Find videos like one of the library", responses=decoded)
        add("/texts", self.texts, summary="Captions that describe a video best", responses=decoded)
        add("/videos", self.videos, summary="List the videos", responses=asked)
        add("/video", self.video, summary="One video", responses=asked)
        add(
            "/media",
            self.media,
            summary="The file of a video, or a part of it",
            response_class=StreamingResponse,
            responses={
                **describe_problems(404, 416, 422),
                200: {"description": "The file.", "content": {"*/*": {}}},
                206: {"description": "The part.", "content": {"*/*": {}}},
            },
        )
        return router

    async def indexes(self) -> Indexes:
        """The indexes, their models, and the limits of the server."""
        limits = self._limits
        return Indexes(
            indexes=[await library.describe() for library in self._libraries.values()],
            max_results=limits.results,
            max_characters=limits.words,
            max_upload_bytes=limits.upload_mb << 20,
            max_upload_seconds=limits.upload_seconds,
        )

    async def search(self, asked: TextSearch) -> Results:
        """The videos most similar to a text, best first, each with the moment that the text attended to."""
        library = self._find(asked.index)
        self._check_count(asked.k)
        if not asked.query.strip():
            raise Refusal(422, "query is empty; say what happens in the video")
        if len(asked.query) > self._limits.words:
            raise Refusal(422, f"query has {len(asked.query)} characters; at most {self._limits.words} are taken")
        began = time.perf_counter()
        found = await library.search_text(TextQuestion(asked.query, asked.k, self._conditions(asked.where)))
        return Results(index=library.name, seconds=time.perf_counter() - began, results=found)

    async def search_by_address(
        self,
        q: Annotated[str, Query(min_length=1, description="What happens in the video.")],
        index: Name = None,
        k: Count = 10,
        where: Conditions = [],  # noqa: B006  # FastAPI copies it
    ) -> Results:
        """The same as a link that can be shared."""
        return await self.search(TextSearch(query=q, index=index, k=k, where=where))

    async def search_by_clip(
        self,
        request: Request,
        file: Annotated[UploadFile, File(description="A video file.")],
        index: Annotated[str | None, Form()] = None,
        k: Annotated[int, Form(ge=1)] = 10,
        where: Annotated[list[str], Form()] = [],  # noqa: B006
    ) -> Results:
        """The videos most similar to a clip, which is decoded within limits in a process of its own, and not kept."""
        library = self._find(index)
        self._check_count(k)
        kind = (file.content_type or CLIP_TYPES[-1]).partition(";")[0].strip().lower()
        if not kind.startswith(CLIP_TYPES):
            raise Refusal(415, f"{kind[:80]} is no video; send video/* or {CLIP_TYPES[-1]}")
        conditions = self._conditions(where)
        async with self._one_more_clip(request):
            data = await file.read()
            began = time.perf_counter()
            if not data:
                raise Refusal(422, "the clip cannot be used: empty file")
            found = await library.search_clip(data, k, conditions)
        return Results(index=library.name, seconds=time.perf_counter() - began, results=found)

    async def similar(
        self,
        request: Request,
        video_id: VideoId,
        index: Name = None,
        k: Count = 10,
        where: Conditions = [],  # noqa: B006
    ) -> Results:
        """The videos most similar to one of the library, which is not among them."""
        library = self._find(index)
        self._check_count(k)
        conditions = self._conditions(where)
        async with self._one_more_clip(request):
            began = time.perf_counter()
            found = await library.search_like(video_id, k, conditions)
        return Results(index=library.name, seconds=time.perf_counter() - began, results=found)

    async def texts(self, request: Request, video_id: VideoId, index: Name = None, k: Count = 10) -> Texts:
        """Captions of the library, its own and others', most similar to a video."""
        library = self._find(index)
        self._check_count(k)
        async with self._one_more_clip(request):
            began = time.perf_counter()
            found = await library.find_texts(video_id, k)
        return Texts(index=library.name, seconds=time.perf_counter() - began, results=found)

    async def videos(
        self,
        index: Name = None,
        first: Annotated[int, Query(ge=0, le=PASSED, description="How many to pass over.")] = 0,
        count: Annotated[int, Query(ge=1, le=PAGE)] = 20,
    ) -> Videos:
        """Some videos of an index, in its order."""
        library = self._find(index)
        total = (await library.describe()).videos
        return Videos(index=library.name, total=total, videos=await library.videos(first, count))

    async def video(self, video_id: VideoId, index: Name = None) -> Video:
        """What the index knows of a video."""
        return await self._find(index).entry(video_id)

    async def media(
        self, video_id: VideoId, index: Name = None, byte_range: Annotated[str | None, Header(alias="range")] = None
    ) -> StreamingResponse:
        """The file of a video of the index. Takes one ``Range`` of bytes."""
        partition, media = await self._find(index).media(video_id)
        return send_media(partition, video_id, media, byte_range, self._limits.timeout_s)

    def _find(self, name: str | None) -> Library:
        if name is None:
            return next(iter(self._libraries.values()))
        if name not in self._libraries:
            raise Refusal(404, f"no such index; there is {', '.join(self._libraries)}")
        return self._libraries[name]

    def _check_count(self, k: int) -> None:
        if k > self._limits.results:
            raise Refusal(422, f"k is {k}; at most {self._limits.results} results are given")

    def _conditions(self, where: list[str]) -> tuple[str, ...]:
        if len(where) > CONDITIONS:
            raise Refusal(422, f"where has {len(where)} conditions; at most {CONDITIONS} are taken")
        return tuple(where)

    @asynccontextmanager
    async def _one_more_clip(self, request: Request) -> AsyncIterator[None]:
        """Count the clips of a client. Raises `Refusal`: it has as many as it may."""
        client = request.client.host if request.client else ""
        if self._clips_of[client] >= self._limits.clips_per_client:
            raise Refusal(429, f"{self._limits.clips_per_client} clips of this client are worked on already")
        self._clips_of[client] += 1
        try:
            yield
        finally:
            self._clips_of[client] -= 1
            if not self._clips_of[client]:
                del self._clips_of[client]
