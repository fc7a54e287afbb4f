"""The Ray actors of an evaluation: each holds the model, and embeds and scores its row shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
from torch import Tensor

from glscl.data.gallery import Gallery
from glscl.data.shards import open_shard_set
from glscl.errors import BrokenRunError, UserError
from glscl.evaluation.embed import Embeddings, RowShard, embed, score_rows, similarity_of_rows
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import load_model, load_tokenizer
from glscl.evaluation.scoring import ScoringResult, merge
from glscl.models.heads.base import Features
from glscl.system.nodes import Share
from glscl.system.progress import Progress

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.exceptions import RayTaskError

    Shared: TypeAlias = ObjectRef[Embeddings] | Embeddings  # or where they lie

POLL_S = 1.0  # seconds between two looks at how far the actors have come


class Evaluator:
    """One Ray actor: holds the model, embeds and scores its row shard."""

    def __init__(self, model_uri: str, config: EvaluationConfig, use_gpu: bool, loader_workers: int) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        model, self.card = load_model(model_uri)
        self.model = model.to(self.device)
        self.tokenize = load_tokenizer(model_uri)
        self.config = config
        self.loader_workers = loader_workers
        self.done = 0

    def progress(self) -> int:
        """Videos embedded and pairs scored since the last task of this actor began; asked while it works."""
        return self.done

    def _note(self, count: int) -> None:
        self.done += count

    def _score(self, text: Features, video: Features) -> Tensor:
        self._note(len(next(iter(text.values()))) * len(next(iter(video.values()))))
        return self.model.score(text, video)

    def embed(self, uri: str, videos: range, thumbnails: bool, shard: RowShard) -> Embeddings:
        """Embed this shard of a set's ``videos`` and their captions."""
        rows = shard.rows(len(videos))
        first, last = videos.start + rows.start, videos.start + rows.stop
        sampling = self.card.sampling(self.model.frame_size)
        gallery = Gallery(open_shard_set(uri), first, last, sampling, self.tokenize, self.config.batch_size)
        self.done = 0
        return embed(self.model, gallery, self.loader_workers, self.device, thumbnails=thumbnails, note=self._note)

    @torch.no_grad()
    def score(self, embeddings: Embeddings, shard: RowShard) -> ScoringResult:
        """Rank this shard's texts and this shard's videos."""
        self.done = 0
        return score_rows(self._score, embeddings, self.config, shard, self.device)

    @torch.no_grad()
    def similarity(self, texts: Embeddings, videos: Embeddings, shard: RowShard) -> Tensor:
        """Similarities (a, N) of this shard's texts of one set with all videos of the same or another set."""
        self.done = 0
        return similarity_of_rows(self._score, texts, videos, self.config, shard, self.device)


class Evaluators:
    """All actors of an evaluation, as one; a context that ends them."""

    def __init__(self, folder: str, config: EvaluationConfig, share: Share) -> None:
        import ray

        # Of the two calls at once, one asks how far the other has come.
        remote = ray.remote(num_cpus=share.cpus, num_gpus=int(share.use_gpu), max_concurrency=2)(Evaluator)
        self._shards = [RowShard(index, share.workers) for index in range(share.workers)]
        self._actors = [remote.remote(folder, config, share.use_gpu, share.loaders) for _ in self._shards]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if isinstance(error, ray.exceptions.RayTaskError):
            raise _readable(error) from None

    def share(self, embeddings: Embeddings) -> Shared:
        """Lay embeddings down where every actor can read them."""
        import ray

        return ray.put(embeddings)  # type: ignore[no-any-return]

    def embed(
        self, uri: str, videos: range, *, thumbnails: bool = False, progress: Progress | None = None
    ) -> list[Embeddings]:
        """Embed ``videos`` of a set; one result per actor, in manifest order."""
        return self._each("embed", uri, videos, thumbnails, progress=progress)

    def score(self, embeddings: Shared, *, progress: Progress | None = None) -> ScoringResult:
        """Rank all texts and videos of a set."""
        return merge(self._each("score", embeddings, progress=progress))

    def similarity(self, texts: Shared, videos: Shared, *, progress: Progress | None = None) -> Tensor:
        """Similarities (A, N) of all texts of one set with all videos of the same or another set."""
        return torch.cat(self._each("similarity", texts, videos, progress=progress))

    def _each(self, method: str, *arguments: object, progress: Progress | None) -> list[Any]:
        """What a method of `Evaluator` returns for each shard."""
        import ray

        calls = [getattr(a, method).remote(*arguments, s) for a, s in zip(self._actors, self._shards, strict=True)]
        waiting = calls
        while progress is not None and waiting:
            ended, waiting = ray.wait(calls, num_returns=len(calls), timeout=POLL_S)
            ray.get(ended)  # an actor that failed is not waited for any longer
            progress.reach(
                sum(ray.get([actor.progress.remote() for actor in self._actors])) if waiting else progress.total
            )
        return list(ray.get(calls))


def _readable(error: RayTaskError) -> BaseException:
    """The error that an actor raised, where users are meant to read it; Ray's has a traceback in its text."""
    cause = error.cause
    return type(cause)(str(cause)) if isinstance(cause, UserError | BrokenRunError) else error
