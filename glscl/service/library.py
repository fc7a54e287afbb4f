"""A library as the service answers for it: a bounded queue of texts, and partitions whose answers are merged."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

from glscl.service.metrics import Meters
from glscl.service.options import Limits
from glscl.service.partition import Media, Partition, PartitionFacts, Refused, TextQuestion
from glscl.service.refusals import Refusal
from glscl.service.schemas import Index, Result, Text, Video

T = TypeVar("T")
P = ParamSpec("P")
Ranked = TypeVar("Ranked", Result, Text)


class AsyncPartition(Protocol):
    """A partition, wherever it is: the methods of `Partition`, to be awaited."""

    async def facts(self) -> PartitionFacts: ...
    async def search_texts(self, questions: Sequence[TextQuestion]) -> list[list[Result] | Refused]: ...
    async def search_clip(self, data: bytes, k: int, where: tuple[str, ...]) -> list[Result] | Refused: ...
    async def find_texts(self, data: bytes, k: int) -> list[Text] | Refused: ...
    async def videos(self, first: int, count: int) -> list[Video]: ...
    async def entry(self, video_id: str) -> Video | None: ...
    async def media(self, video_id: str) -> Media | Refused: ...
    async def read(self, video_id: str, first: int, last: int) -> bytes: ...


class LocalPartition:
    """A partition in this process: texts in a thread of their own, clips and files in others."""

    def __init__(self, partition: Partition, clips: int) -> None:
        self._partition = partition
        self._texts = ThreadPoolExecutor(1, "texts")
        self._clips = ThreadPoolExecutor(clips, "clips")
        self._files = ThreadPoolExecutor(4, "files")

    def close(self) -> None:
        """End the threads, once they have done what they do."""
        for threads in (self._texts, self._clips, self._files):
            threads.shutdown(wait=False, cancel_futures=True)

    async def facts(self) -> PartitionFacts:
        return await _in(self._files, self._partition.facts)

    async def search_texts(self, questions: Sequence[TextQuestion]) -> list[list[Result] | Refused]:
        return await _in(self._texts, self._partition.search_texts, questions)

    async def search_clip(self, data: bytes, k: int, where: tuple[str, ...]) -> list[Result] | Refused:
        return await _in(self._clips, self._partition.search_clip, data, k, where)

    async def find_texts(self, data: bytes, k: int) -> list[Text] | Refused:
        return await _in(self._clips, self._partition.find_texts, data, k)

    async def videos(self, first: int, count: int) -> list[Video]:
        return await _in(self._files, self._partition.videos, first, count)

    async def entry(self, video_id: str) -> Video | None:
        return await _in(self._files, self._partition.entry, video_id)

    async def media(self, video_id: str) -> Media | Refused:
        return await _in(self._files, self._partition.media, video_id)

    async def read(self, video_id: str, first: int, last: int) -> bytes:
        return await _in(self._files, self._partition.read, video_id, first, last)


def _in(threads: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
    return asyncio.get_running_loop().run_in_executor(threads, partial(function, *args, **kwargs))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A text in the queue, and where its answer goes."""

    question: TextQuestion
    answer: asyncio.Future[list[Result]]


class Library:
    """A library under one name.

    Args:
        name: of the index, in the API and on the page.
        partitions: each holds a part of the videos; answers are merged by score, which is exact and so comparable.
        limits: of the queue, of a batch, and of the time that an answer takes.
        meters: what is counted.
    """

    def __init__(self, name: str, partitions: Sequence[AsyncPartition], limits: Limits, meters: Meters) -> None:
        self.name = name
        self._partitions, self._limits, self._meters = partitions, limits, meters
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(limits.queue)
        self._clips = asyncio.Semaphore(limits.clips)
        self._clips_waiting = 0
        self._facts: Index | None = None
        self._sizes: list[int] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer the queue in this block. Raises what a partition raises that cannot be opened."""
        await self.describe()
        worker = asyncio.create_task(self._answer_queue(), name=f"queue of {self.name}")
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    async def describe(self) -> Index:
        """The index of all partitions, as it was when it was first asked for."""
        if self._facts is None:
            facts = await asyncio.gather(*(partition.facts() for partition in self._partitions))
            self._sizes = [one.videos for one in facts]
            self._facts = _join_facts(self.name, facts)
            self._meters.videos.labels(self.name).set(self._facts.videos)
        return self._facts

    async def search_text(self, question: TextQuestion) -> list[Result]:
        """The videos most similar to a text. Raises `Refusal`: the queue is full, it takes too long, or a condition."""
        waiting = _Waiting(question, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise Refusal(503, f"{self._limits.queue} texts wait already; ask again in a moment") from None
        self._meters.queue.labels(self.name).set(self._queue.qsize())
        return await self._within_time(waiting.answer)

    async def search_clip(self, data: bytes, k: int, where: tuple[str, ...]) -> list[Result]:
        """The videos most similar to a clip. Raises `Refusal`: too many clips, too long, or what is wrong with it."""
        return await self._with_clip(lambda partition: partition.search_clip(data, k, where), k)

    async def search_like(self, video_id: str, k: int, where: tuple[str, ...]) -> list[Result]:
        """The videos most similar to one of the library, itself left out. Raises `Refusal`, as `search_clip` does."""
        found = await self.search_clip(await self._read_whole(video_id), k + 1, where)
        return [result for result in found if result.id != video_id][:k]

    async def find_texts(self, video_id: str, k: int) -> list[Text]:
        """The library's captions most similar to a video of it. Raises `Refusal`, as `search_clip` does."""
        data = await self._read_whole(video_id)
        return await self._with_clip(lambda partition: partition.find_texts(data, k), k)

    async def videos(self, first: int, count: int) -> list[Video]:
        """Some videos, partition after partition."""
        await self.describe()
        videos: list[Video] = []
        for partition, size in zip(self._partitions, self._sizes, strict=True):
            if first < size and len(videos) < count:
                videos += await partition.videos(first, count - len(videos))
            first = max(0, first - size)
        return videos

    async def entry(self, video_id: str) -> Video:
        """A video of the library. Raises `Refusal`: there is none of that id."""
        for video in await asyncio.gather(*(partition.entry(video_id) for partition in self._partitions)):
            if video is not None:
                return video
        raise Refusal(404, f"index {self.name} has no video of that id")

    async def media(self, video_id: str) -> tuple[AsyncPartition, Media]:
        """Size and type of a video's file, and the partition that reads it. Raises `Refusal`: there is none."""
        answers = await asyncio.gather(*(partition.media(video_id) for partition in self._partitions))
        for partition, answer in zip(self._partitions, answers, strict=True):
            if isinstance(answer, Media):
                return partition, answer
        reasons = [answer.reason for answer in answers if isinstance(answer, Refused)]
        raise Refusal(404, next((reason for reason in reasons if "no such" not in reason), reasons[0]))

    async def _read_whole(self, video_id: str) -> bytes:
        partition, media = await self.media(video_id)
        if media.size > self._limits.upload_mb << 20:
            raise Refusal(413, f"that video has more than {self._limits.upload_mb} MB, too many to search by")
        return await partition.read(video_id, 0, media.size)

    async def _with_clip(
        self, ask: Callable[[AsyncPartition], Awaitable[list[Ranked] | Refused]], k: int
    ) -> list[Ranked]:
        if self._clips_waiting >= 2 * self._limits.clips:
            raise Refusal(503, f"{self._clips_waiting} clips are decoded or wait already; ask again in a moment")
        self._clips_waiting += 1
        try:
            async with self._clips:
                answers = await self._within_time(asyncio.gather(*map(ask, self._partitions)))
        finally:
            self._clips_waiting -= 1
        return _merge(answers, k)

    async def _within_time(self, answer: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(answer, self._limits.timeout_s)
        except TimeoutError:
            raise Refusal(503, f"no answer within {self._limits.timeout_s:g} s; ask again in a moment") from None

    async def _answer_queue(self) -> None:
        """Answer what waits in the queue, batch by batch."""
        while True:
            batch = [one for one in await self._next_batch() if not one.answer.done()]  # who waits no more is passed by
            if not batch:
                continue
            outcomes = await self._answer_batch([one.question for one in batch])
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(outcome, Exception):
                    waiting.answer.set_exception(outcome)
                else:
                    waiting.answer.set_result(outcome)

    async def _answer_batch(self, questions: Sequence[TextQuestion]) -> Sequence[list[Result] | Exception]:
        """The answer to each question, or why it has none."""
        self._meters.batch.labels(self.name).observe(len(questions))
        try:
            answers = await asyncio.gather(*(one.search_texts(questions) for one in self._partitions))
        except Exception as error:  # it is each question's error; the queue goes on
            return [error for _ in questions]
        return [_outcome([answer[at] for answer in answers], one.k) for at, one in enumerate(questions)]

    async def _next_batch(self) -> list[_Waiting]:
        """What waits, at most a batch; the first waits so long for others."""
        batch = [await self._queue.get()]
        if self._queue.qsize() + 1 < self._limits.batch:
            await asyncio.sleep(self._limits.batch_ms / 1000)
        while len(batch) < self._limits.batch and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        self._meters.queue.labels(self.name).set(self._queue.qsize())
        return batch


def _outcome(column: Sequence[list[Result] | Refused], k: int) -> list[Result] | Exception:
    try:
        return _merge(column, k)
    except Refusal as refusal:
        return refusal


def _merge(answers: Iterable[list[Ranked] | Refused], k: int) -> list[Ranked]:
    """The best of all partitions, the first of equals first. Raises `Refusal`: a partition has refused."""
    lists: list[list[Ranked]] = []
    for answer in answers:
        if isinstance(answer, Refused):
            raise Refusal(answer.status, answer.reason)
        lists.append(answer)
    return list(itertools.islice(heapq.merge(*lists, key=lambda one: -one.score), k))


def _join_facts(name: str, facts: Sequence[PartitionFacts]) -> Index:
    first = facts[0]
    keys = dict.fromkeys(key for one in facts for key in one.metadata)
    return Index(
        name=name,
        videos=sum(one.videos for one in facts),
        segments=sum(one.segments for one in facts),
        partitions=len(facts),
        head=first.head,
        towers=first.towers,
        run=first.run,
        step=first.step,
        train_domains=list(first.train_domains),
        metadata={key: list(dict.fromkeys(v for one in facts for v in one.metadata.get(key, []))) for key in keys},
        examples=list(dict.fromkeys(text for one in facts for text in one.examples))[:6],
    )
