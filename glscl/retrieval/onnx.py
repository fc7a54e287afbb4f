"""Export to ONNX: a graph for texts, one for videos, one for scores; each compared with torch by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.evaluation.caches import Cache
from glscl.evaluation.saved import ModelCard, load_tokenizer, read_card, towers_found
from glscl.models.hub import DESCRIPTION
from glscl.options import Options
from glscl.retrieval.export import Exportable, read_exportable, write_page
from glscl.system import storage

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever

FACTS = "onnx.json"
TOLERANCE = 1e-4
"""Most that a graph may differ from torch, relative to the largest number where that is above 1."""
SCORED = (1, 32)
"""Texts and videos that the graph of scores takes: heads work in tiles, whose number depends on these."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_EXAMPLES = ("a red square moves up and then stops", "a dog runs on a beach", "two people talk")
_SEED = 0
_USAGE = """## How to use it

`onnx.json` lists the graphs with the names and sizes of what they take and give. `text.onnx` takes token ids,
`video.onnx` uint8 frames (any number of videos, padded to the same number of frames) and their mask;
`preprocessing.json` says how both are made. `score.onnx`, where it is there, takes what these give for a fixed number
of texts and videos, and gives their similarities: fill a smaller number up with any. Every graph was compared with
torch when it was written."""


class Graph(Options):
    """One ONNX file, and by name the sizes of what it takes and gives; a size that is a word may be any number."""

    file: str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    largest_difference: float
    """From torch, of everything that was compared, relative to the largest number where that is above 1."""


class OnnxFacts(Options):
    """The file ``onnx.json``."""

    text: Graph
    """From token ids to what the head keeps of texts."""
    video: Graph
    """From uint8 frames and their mask, padding being false, to what the head keeps of videos."""
    score: Graph | None
    """From these to similarities; a smaller number of videos is filled up with any."""
    why_no_score: str = ""
    torch: str
    tolerance: float = TOLERANCE


class _Text(nn.Module):
    def __init__(self, model: Retriever) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_text(token_ids).values())


class _Video(nn.Module):
    def __init__(self, model: Retriever) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_video(frames, frame_mask).values())


class _Score(nn.Module):
    def __init__(self, model: Retriever, text: Sequence[str], video: Sequence[str]) -> None:
        super().__init__()
        self.model, self.text, self.video = model, tuple(text), tuple(video)

    def forward(self, *caches: Tensor) -> Tensor:
        text, video = caches[: len(self.text)], caches[len(self.text) :]
        return self.model.score(dict(zip(self.text, text, strict=True)), dict(zip(self.video, video, strict=True)))


def export_onnx(uri: str, output: str) -> tuple[ModelCard, OnnxFacts]:
    """Write a model as ONNX graphs with its preprocessing, tokenizer, record and page; ``onnx.json`` comes last.

    Raises `UserError`: as `load_model`; a package is missing; a tower or the head's encoders cannot be exported, or a
    graph computes something else than torch.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"--to onnx needs the packages {', '.join(missing)}; pip install 'glscl[onnx]'")
    folder, card = read_card(uri)
    with towers_found(folder, card) as towers, tempfile.TemporaryDirectory(prefix="glscl-onnx-") as scratch:
        whole = read_exportable(uri, towers, folder)
        ids, _ = load_tokenizer(uri)(_EXAMPLES)
        facts = write_graphs(whole.retriever, ids, scratch)
        _write_rest(whole, scratch)
        output = storage.resolve(output)
        for name in sorted(os.listdir(scratch)):
            storage.upload(os.path.join(scratch, name), storage.join(output, name))
        storage.write_json(storage.join(output, FACTS), facts.model_dump(mode="json"))
    return whole.card, facts


def _write_rest(whole: Exportable, folder: str) -> None:
    """What a user of the graphs needs beside them."""
    from glscl.models.portable import write_folder  # with open_clip, seconds to import

    write_folder(whole.towers, folder, whole=True)
    os.remove(os.path.join(folder, DESCRIPTION))  # of the towers, which are in the graphs; a tokenizer stays
    write_page(whole, folder, hub=False, usage=_USAGE)


@torch.no_grad()
def write_graphs(model: Retriever, ids: Tensor, folder: str) -> OnnxFacts:
    """Write the graphs of a model into a local folder, and compare each with torch, also at other sizes than traced.

    ``ids`` are token ids (A, W) of some texts. Raises `UserError`: as `export_onnx`.
    """
    model = model.eval()
    frames, mask = _example_frames(model, len(ids))
    text, video = model.encode_text(ids), model.encode_video(frames, mask)
    any_texts, any_videos = ({0: torch.export.Dim(name)} for name in ("texts", "videos"))
    of_text = _Export("text.onnx", _Text(model), {"token_ids": ids}, _named("text", text), (any_texts,))
    inputs = {"frames": frames, "frame_mask": mask}
    of_video = _Export("video.onnx", _Video(model), inputs, _named("video", video), (any_videos, any_videos))
    texts, videos = SCORED
    some, many = _filled(text, texts), _filled(video, videos)
    similarity = {"similarity": model.score(some, many)}
    caches = _named("text", some) | _named("video", many)
    of_score = _Export("score.onnx", _Score(model, list(text), list(video)), caches, similarity, None)
    graphs = [of_text.write(folder), of_video.write(folder)]
    score, why = None, ""
    try:
        score = of_score.write(folder)
    except UserError as error:
        why = str(error)
    return OnnxFacts(text=graphs[0], video=graphs[1], score=score, why_no_score=why, torch=torch.__version__)


def _example_frames(model: Retriever, videos: int) -> tuple[Tensor, Tensor]:
    """Frames (B, F, 3, S, S) of videos of different lengths, and their mask."""
    length, size = model.config.max_frames, model.frame_size
    generator = torch.Generator().manual_seed(_SEED)
    frames = torch.randint(0, 256, (videos, length, 3, size, size), generator=generator, dtype=torch.uint8)
    return frames, torch.arange(length) <= torch.arange(videos).unsqueeze(1) % length


def _named(side: str, cache: Cache) -> dict[str, Tensor]:
    return {f"{side}_{name}": tensor for name, tensor in cache.items()}


def _filled(cache: Cache, rows: int) -> Cache:
    """So many rows, those there are again and again."""
    return {name: tensor[torch.arange(rows) % len(tensor)] for name, tensor in cache.items()}


@dataclass(frozen=True, slots=True)
class _Export:
    """A graph to be written."""

    file: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    dynamic: tuple[Mapping[int, object], ...] | None  # sizes that may change, of each input

    def write(self, folder: str) -> Graph:
        """Write it, and compare it with torch. Raises `UserError`: neither may be."""
        import onnxruntime

        path = os.path.join(folder, self.file)
        try:
            with _quiet():
                program = torch.onnx.export(
                    self.module.eval(),
                    tuple(self.inputs.values()),
                    dynamo=True,
                    dynamic_shapes=self.dynamic if self.dynamic else None,
                    input_names=list(self.inputs),
                    output_names=list(self.outputs),
                    verbose=False,
                )
                assert program is not None
                program.save(path)
                session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # of torch's exporter, of onnxscript, of onnxruntime
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise UserError(f"{self.file}: cannot be exported ({type(error).__name__}: {reason})") from None
        difference = max(self._compare(session, rows) for rows in self._rows())
        if not difference <= TOLERANCE:
            os.remove(path)
            raise UserError(f"{self.file}: onnxruntime and torch differ by {difference:.1e}, more than {TOLERANCE:g}")
        sizes = [{put.name: list(put.shape) for put in puts} for puts in (session.get_inputs(), session.get_outputs())]
        return Graph(file=self.file, inputs=sizes[0], outputs=sizes[1], largest_difference=difference)

    def _rows(self) -> list[int | None]:
        """Numbers of rows that are compared: one where that may change, and all."""
        return [None] if self.dynamic is None else [1, None]

    def _compare(self, session: object, rows: int | None) -> float:
        known = {put.name for put in session.get_inputs()}  # type: ignore[attr-defined]
        given = {name: tensor[:rows].numpy() for name, tensor in self.inputs.items() if name in known}
        found = session.run(list(self.outputs), given)  # type: ignore[attr-defined]
        differences = [0.0]
        for values, expected in zip(found, self.outputs.values(), strict=True):
            theirs, ours = values.astype(np.float64), expected[:rows].double().numpy()
            if theirs.shape != ours.shape:
                return float("inf")
            scale = max(1.0, float(np.abs(ours).max(initial=0.0)))
            differences.append(float(np.abs(theirs - ours).max(initial=0.0)) / scale)
        return max(differences)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter prints and warns of away; what goes wrong it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        away = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(away), contextlib.redirect_stderr(away):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
