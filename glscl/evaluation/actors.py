"""The Ray actors of an evaluation: each holds the model, and embeds and scores its row shard.

Caches stay in Ray's object store, where the actor that made them has put them. The driver hands references around;
whoever scores reads the rows of one block at a time, from another node only once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from glscl.data.frame_changes import FrameChange
from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import BrokenRunError, UserError
from glscl.evaluation.caches import Cache, Layout, PairCaches, Piece
from glscl.evaluation.embed import Embeddings, RowShard, embed, own_scores_of_rows, rank_rows, similarity_of_rows
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import check_features, load_model, load_tokenizer
from glscl.evaluation.scoring import NO_PAIRS, RankedTexts, RelevantPairs, ScoringResult, merge
from glscl.evaluation.wise_ft import Interpolation, Mix
from glscl.models.heads.base import Features
from glscl.system.nodes import Share
from glscl.system.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from ray import ObjectRef
    from ray.exceptions import RayTaskError

    Bytes = dict[str, NDArray[np.uint8]]

POLL_S = 1.0  # seconds between two looks at how far the actors have come


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A piece in Ray's object store, as arrays of bytes (R, row bytes), which are read where they lie."""

    layout: Layout
    rows: int
    reference: ObjectRef[Bytes]

    @classmethod
    def put(cls, cache: Cache) -> StoredPiece:
        """Lay a cache down where every actor can read it, for as long as this process lives."""
        import ray

        stored = {
            name: tensor.unsqueeze(1).flatten(1).contiguous().view(torch.uint8).numpy()
            for name, tensor in cache.items()
        }
        return cls(Layout.of(cache), len(next(iter(cache.values()))), ray.put(stored))

    def __len__(self) -> int:
        return self.rows

    def read(self, rows: range, device: torch.device) -> Cache:
        """Views of the rows in this node's object store."""
        import ray

        stored = ray.get(self.reference)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that they cannot be written to
            return {
                name: torch.from_numpy(stored[name][rows.start : rows.stop]).view(dtype).view(len(rows), *shape)
                for name, dtype, shape in self.layout.tensors
            }


class Evaluator:
    """One Ray actor: holds the model, embeds and scores its row shard."""

    def __init__(self, model_uri: str, config: EvaluationConfig, use_gpu: bool, loader_workers: int) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self._uri = model_uri
        self._mix: Mix | None = None
        self._load(towers=False)
        self.tokenize = load_tokenizer(model_uri)
        self.config = config
        self.loader_workers = loader_workers
        self.done = 0

    def _load(self, *, towers: bool) -> None:
        model, self.card = load_model(self._uri, towers=towers)
        self.model = model.to(self.device)
        self._interpolation: Interpolation | None = None
        self._use(self._mix)

    def mix(self, mix: Mix, _: RowShard) -> None:
        """Score with weights between the initial and the trained ones from here on."""
        self._mix = mix
        self._use(mix)

    def _use(self, mix: Mix | None) -> None:
        """Let the model have such weights."""
        self._towers: str | None = None
        if mix is not None:
            self._interpolation = self._interpolation or Interpolation(self.model, self._uri)
            self._interpolation.set(mix)

    def _fingerprint(self, shard_set: ShardSet) -> str | None:
        """Fingerprint of the model's towers, if the set holds features."""
        if shard_set.manifest.features is None:
            return None
        if self._towers is None:
            from glscl.models.fingerprint import tower_fingerprint  # brings open_clip

            self._towers = self.card.towers or tower_fingerprint(self.model.towers)
        return self._towers

    def progress(self) -> int:
        """Videos embedded and pairs scored since the last task of this actor began; asked while it works."""
        return self.done

    def _note(self, count: int) -> None:
        self.done += count

    def _score(self, text: Features, video: Features) -> Tensor:
        self._note(len(next(iter(text.values()))) * len(next(iter(video.values()))))
        return self.model.score(text, video)

    def _keep(self, cache: Cache) -> Piece:
        return StoredPiece.put(cache)

    def embed(
        self, uri: str, videos: range, thumbnails: bool, change: FrameChange | None, texts: bool, shard: RowShard
    ) -> Embeddings:
        """Embed this shard of a set's ``videos``, their frames changed, and their captions or not."""
        rows = shard.rows(len(videos))
        first, last = videos.start + rows.start, videos.start + rows.stop
        shard_set = open_shard_set(uri)
        if shard_set.manifest.features is None and self.model.towers.dropped:
            self._load(towers=True)
        check_features(shard_set, self.card, self._fingerprint(shard_set))
        sampling = self.card.sampling(self.model.frame_size, shard_set)
        if change is not None:
            sampling = change.sampling(sampling)
        batch_size = self.config.batch_size
        gallery = Gallery(shard_set, first, last, sampling, self.tokenize, batch_size, change=change)
        self.done = 0
        return embed(self.model, gallery, self.loader_workers, self.device, thumbnails, self._note, self._keep, texts)

    @torch.no_grad()
    def own_scores(self, caches: PairCaches, shard: RowShard) -> Tensor:
        """What `score` must know of all shards: see `glscl.evaluation.scoring.own_scores`."""
        return own_scores_of_rows(self.model.score, caches, self.config, shard, self.device).cpu()

    @torch.no_grad()
    def score(self, caches: PairCaches, own: Tensor, relevant: RelevantPairs, shard: RowShard) -> RankedTexts:
        """Rank this shard's texts, and count what they are to the ranks of all videos."""
        self.done = 0
        return rank_rows(self._score, caches, self.config, shard, self.device, own, relevant)

    @torch.no_grad()
    def similarity(self, texts: PairCaches, videos: PairCaches, shard: RowShard) -> Tensor:
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
            raise readable(error) from None

    def mix(self, mix: Mix) -> None:
        """Let every actor score with weights between the initial and the trained ones."""
        self._each("mix", mix, progress=None)

    def embed(
        self,
        uri: str,
        videos: range,
        *,
        thumbnails: bool = False,
        change: FrameChange | None = None,
        texts: bool = True,
        progress: Progress | None = None,
    ) -> list[Embeddings]:
        """Embed ``videos`` of a set, with a ``change`` of their frames; one result per actor, in manifest order.

        ``texts`` says whether to embed their captions, too; without, `with_texts_of` completes the whole.
        """
        return self._each("embed", uri, videos, thumbnails, change, texts, progress=progress)

    def score(
        self, caches: PairCaches, relevant: RelevantPairs = NO_PAIRS, *, progress: Progress | None = None
    ) -> ScoringResult:
        """Rank all texts and videos of a set, and ``relevant`` pairs of them."""
        own = torch.stack(self._each("own_scores", caches, progress=None)).amax(0)
        return merge(self._each("score", caches, own, relevant, progress=progress), caches.text_to_video)

    def similarity(self, texts: PairCaches, videos: PairCaches, *, progress: Progress | None = None) -> Tensor:
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


def readable(error: RayTaskError) -> BaseException:
    """The error that an actor raised, where users are meant to read it; Ray's has a traceback in its text."""
    cause = error.cause
    return type(cause)(str(cause)) if isinstance(cause, UserError | BrokenRunError) else error
