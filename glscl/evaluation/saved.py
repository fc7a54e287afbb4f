"""Trained models on disk: weights as safetensors, and a card with the configuration they need; no pickles."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from pydantic import Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from glscl.data.clips import Sampling
from glscl.data.features import FeatureSampling
from glscl.data.limits import MAX_DECODE_S
from glscl.data.shards import ShardSet
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation.locate import CARD as CARD
from glscl.evaluation.locate import FOLDER as FOLDER
from glscl.evaluation.locate import find_model
from glscl.evaluation.weight_files import WEIGHTS, main_file, read_shapes, read_weights
from glscl.models.caption_tokenizer import Tokenize, build_tokenizer
from glscl.models.freezing import frozen_fingerprint, trained_state
from glscl.models.hub import DESCRIPTION, SMALL_FILES
from glscl.models.options import ModelConfig
from glscl.options import Options
from glscl.options.mistakes import first_mistake
from glscl.system import storage

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever

TOWERS = "towers"
"""Folder of what towers need beside weights (`glscl.models.portable`), if their architecture's name does not say it."""


class ModelCard(Options):
    """What must be known to use the weights, and where they come from."""

    model: ModelConfig
    sample_fps: float
    decoder: str
    max_decode_s: float = Field(default=MAX_DECODE_S, gt=0)
    train_domains: tuple[str, ...]
    step: int
    seed: int
    run: str
    validation: dict[str, float]
    frozen: str | None = None
    """Fingerprint of the weights that were not trained and that the file lacks: they come from where the run began,
    ``model.pretrained`` or the seed. None where the file is whole."""
    towers: str | None = None
    """The same of a model that was trained on features: fingerprint of their towers, which the file lacks."""

    def sampling(self, frame_size: int, shard_set: ShardSet | None = None) -> Sampling:
        """What the model is given of a video: frames as in training; or of the samples of a set, features if it is."""
        if shard_set is not None and shard_set.manifest.features is not None:
            return FeatureSampling.of([shard_set.manifest.features])
        frames, decoder = self.model.max_frames, self.decoder
        return FrameSampling(frames, self.sample_fps, frame_size, decoder, self.max_decode_s)  # type: ignore[arg-type]


def check_features(shard_set: ShardSet, card: ModelCard, fingerprint: str | None) -> None:
    """Refuse a set of features of other lengths than a model's, or of other towers (None: which are not known yet)."""
    facts, model = shard_set.manifest.features, card.model
    if facts is not None:
        if model.adapters.are_on:
            raise UserError(
                f"{shard_set.uri}: holds features of towers without adapters, and this model has model.adapters: "
                f"test it on the videos"
            )
        facts.check_run(shard_set.uri, model.max_words, model.max_frames, card.sample_fps)
        if fingerprint is not None:
            facts.check_towers(shard_set.uri, fingerprint, f"{model.clip}, {model.weights}")


def save_model(uri: str, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write weights, what towers need beside them, and the card into a folder or prefix; the card comes last."""
    from glscl.models.portable import write_folder  # with open_clip, seconds to import

    with tempfile.TemporaryDirectory(prefix="glscl-model-") as folder:
        path = os.path.join(folder, WEIGHTS)
        save_file({name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in weights.items()}, path)
        storage.upload(path, storage.join(uri, WEIGHTS))
        for name in write_folder(card.model, os.path.join(folder, TOWERS)):
            storage.upload(os.path.join(folder, TOWERS, name), storage.join(uri, TOWERS, name))
    storage.write_json(storage.join(uri, CARD), card.model_dump(mode="json"))


def read_card(uri: str) -> tuple[str, ModelCard]:
    """Folder and card of a model, given its folder or a run directory. Raises `UserError`: none, or no such card."""
    folder = find_model(uri)
    where = storage.join(folder, CARD)
    try:
        return folder, ModelCard.model_validate(storage.read_json(where))
    except ValidationError as error:
        mistake = first_mistake(error, "top level")
        raise UserError(f"{where}: not a model card of this version ({mistake})") from None
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def check_weights(uri: str) -> tuple[str, ModelCard]:
    """Compare a weights file's header with the card's model, built without memory; returns what `read_card` does.

    Raises `UserError`: no model, a torn file, or weights of another architecture.
    """
    folder, card = read_card(uri)
    where = storage.join(folder, main_file(folder))
    shapes = read_shapes(folder)
    with torch.device("meta"):
        empty = _build(folder, card, load_weights=False, towers=card.towers is None)
    described = empty.state_dict() if card.frozen is None else trained_state(empty)
    for name, tensor in described.items():
        shape = shapes.pop(name, None)
        if shape != list(tensor.shape):
            says = f"'{name}' is {'missing' if shape is None else shape}"
            raise UserError(f"{where}: weights of another architecture than {CARD} says: {says}, not {[*tensor.shape]}")
    if shapes:
        raise UserError(f"{where}: weights of another architecture than {CARD} says: '{min(shapes)}' has no place")
    return folder, card


def load_model(uri: str, *, towers: bool = True) -> "tuple[Retriever, ModelCard]":
    """Load a trained model in evaluation mode, on the CPU, in fp32.

    Without ``towers``, a model that was trained on features comes without them, for features. Raises `UserError`: as
    `check_weights`, or as `initial_model` where the file lacks frozen weights or towers.
    """
    folder, card = check_weights(uri)
    lacks = card.frozen is not None or (towers and card.towers is not None)
    model = initial_model(uri) if lacks else _build(folder, card, load_weights=False, towers=card.towers is None)
    model.load_state_dict(read_weights(folder), strict=not lacks)  # `check_weights` has compared the names
    return model.eval(), card


def initial_model(uri: str) -> "Retriever":
    """The model as its training began: pretrained towers, and a head of the run's seed.

    A card may be anybody's, so no pickle is trusted on its word, and nothing but weights is fetched. Raises
    `UserError`: no model, no such towers, or they are not those of the fingerprint that the card has.
    """
    folder, card = read_card(uri)
    card = card.model_copy(update={"model": card.model.model_copy(update={"trust_pickle": False})})
    with torch.random.fork_rng():
        torch.manual_seed(card.seed)
        model = _build(folder, card, load_weights=True).eval()
    _check_frozen(model, card, storage.join(folder, CARD))
    return model


def _check_frozen(model: "Retriever", card: ModelCard, where: str) -> None:
    """Refuse an initial model whose weights that were not trained are others than those of the card."""
    expected, found = card.frozen, None
    if card.towers is not None:
        from glscl.models.fingerprint import tower_fingerprint  # brings open_clip

        expected, found = card.towers, tower_fingerprint(model.towers)
    elif expected is not None:
        found = frozen_fingerprint(model, card.model)
    if found != expected:
        raise UserError(
            f"{where}: its frozen weights, those of {card.model.clip} with model.pretrained {card.model.pretrained}, "
            f"are others by now (fingerprint {expected}, found {found}): put the original ones back"
        )


def load_tokenizer(uri: str) -> Tokenize:
    """The tokenizer of a trained model. Raises `UserError`: no model, or its tokenizer is not on this machine."""
    folder, card = read_card(uri)
    with towers_found(folder, card) as config:
        return build_tokenizer(config, fetch=False)


def _build(folder: str, card: ModelCard, *, load_weights: bool, towers: bool = True) -> "Retriever":
    from glscl.models.retriever import Retriever  # with open_clip, seconds to import

    # The random numbers of the run stay as they are.
    with torch.random.fork_rng(), towers_found(folder, card, load_weights=load_weights) as config:
        model = Retriever(config, load_weights=load_weights, towers=towers, fetch=False)
    model.config = card.model
    return model


@contextmanager
def towers_found(folder: str, card: ModelCard, *, load_weights: bool = False) -> Iterator[ModelConfig]:
    """The configuration of a model whose towers are described beside it, where they are. Of errors, the card is named.

    With ``load_weights``, the weights are where the card says. A card may be a stranger's: what else it names on a
    network is not fetched.
    """
    from glscl.models.portable import read_from  # with open_clip, seconds to import

    places = (storage.join(folder, TOWERS), folder)  # of a run's model, of an export
    try:
        where = next((place for place in places if storage.exists(storage.join(place, DESCRIPTION))), None)
        if where is None:
            yield card.model
        elif not storage.is_remote(where):
            yield read_from(card.model, where, load_weights=load_weights)
        else:
            with tempfile.TemporaryDirectory(prefix="glscl-towers-") as scratch:
                for name in set(storage.list_names(where)).intersection(SMALL_FILES):
                    storage.download(storage.join(where, name), os.path.join(scratch, name))
                yield read_from(card.model, scratch, load_weights=load_weights)
    except UserError as error:
        remedy = ""
        if load_weights and storage.exists(storage.join(folder, DESCRIPTION)):
            remedy = "; an export does not say where on a disk its training began: mix the run itself"
        raise UserError(f"{storage.join(folder, CARD)}: {error}{remedy}") from None
