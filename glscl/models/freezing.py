"""Freezing of towers: what of a model is trained, and the fingerprint of what is not."""

import hashlib

import torch
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.adapters import ADAPTERS, add_adapters
from glscl.models.blocks import Blocks, find_blocks
from glscl.models.options import ModelConfig

FROZEN_TOWERS: dict[str, tuple[str, ...]] = {
    "none": (),
    "towers": ("visual", "text"),
    "image": ("visual",),
    "text": ("text",),
}
"""By ``model.freeze``: attributes of `glscl.models.towers.Towers`."""
_WORDS = {"visual": "image tower", "text": "text tower"}


class FrozenTower:
    """A tower that is not trained, but for some parts: it stays in evaluation mode.

    Without gradients there is no graph: autograd begins at the first trained parameter.
    """

    def __init__(self, tower: nn.Module, trained: tuple[nn.Module, ...]) -> None:
        self._tower, self._trained = tower, trained

    def set_mode(self, training: bool) -> None:
        """Put the tower into evaluation mode, and its trained parts into this one."""
        self._tower.eval()
        for part in self._trained:
            part.train(training)


def freeze_towers(towers: nn.Module, config: ModelConfig) -> list[FrozenTower]:
    """Freeze what ``model.freeze`` names, but for the last blocks that are trained, and add the adapters.

    Raises `UserError`: the keys contradict each other; a tower has no such blocks, or nowhere to put an adapter.
    """
    _check_keys(config)
    frozen, places = [], {}
    for name in FROZEN_TOWERS[config.freeze]:
        tower = getattr(towers, name)
        what = f"the {_WORDS[name]} of {config.clip}"
        learnable = [parameter for parameter in tower.parameters() if parameter.requires_grad]
        tower.requires_grad_(False)
        last = config.unfreeze_blocks
        parts = find_blocks(tower, what, "model.unfreeze_blocks") if last else None
        trained = _last_parts(parts, last, what) if parts and last else ()
        kept = {id(p) for part in trained for p in part.parameters()} | set(map(id, parts.projections if parts else ()))
        for parameter in learnable:
            parameter.requires_grad_(id(parameter) in kept)
        places[what] = tower, trained
        frozen.append(FrozenTower(tower, trained))
    if config.adapters.are_on:
        add_adapters(places, config.adapters)
    return frozen


def _check_keys(config: ModelConfig) -> None:
    if config.freeze == "none":
        if (key := config.trained_key) != "freeze":
            raise UserError(f"model.{key} is for frozen towers: set model.freeze to towers, image or text")
    elif config.trust_pickle:
        raise UserError(
            "model.freeze leaves weights out of the saved model, and who opens it must not have to trust a pickle: "
            "give model.pretrained as safetensors, and leave model.trust_pickle out"
        )


def _last_parts(parts: Blocks, count: int, what: str) -> tuple[nn.Module, ...]:
    if count > len(parts.blocks):
        raise UserError(f"model.unfreeze_blocks: {count} is more than the {len(parts.blocks)} blocks of {what}")
    return (*(module for block in parts.blocks[-count:] for module in block), *parts.after)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What a file must hold to make the model whole beside the frozen weights: trained parameters and all buffers."""
    parameters = dict(model.named_parameters())
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in parameters or parameters[name].requires_grad
    }


def frozen_fingerprint(model: nn.Module, config: ModelConfig) -> str | None:
    """SHA-256 over the names, shapes and float32 numbers of the frozen parameters; None where there are none.

    Of a model as it was built, before an engine changes its precision or cuts it up. One that is without its towers has
    no frozen parameter: `glscl.models.fingerprint` is of the towers whose features it is given.
    """
    frozen = [(name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if config.freeze == "none" or not frozen:
        return None
    digest = hashlib.sha256()
    for name, parameter in frozen:
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def group_of(name: str, config: ModelConfig) -> str:
    """The optimiser's group of a parameter, by its name: towers, adapters or head.

    The logit scale counts to the towers, as does a logit bias that came with them.
    """
    of_towers = ("towers.", "logit_scale", *(("logit_bias",) if config.logit_bias is None else ()))
    if not name.startswith(of_towers):
        return "head"
    return "adapters" if ADAPTERS.intersection(name.split(".")) else "towers"


def describe_training(model: nn.Module, config: ModelConfig) -> str:
    """``0.61 M of 151.89 M parameters (head 0.12 M, ...); frozen: image tower ...``, for the log."""
    counts: dict[str, int] = {}
    total = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            group = group_of(name, config)
            counts[group] = counts.get(group, 0) + parameter.numel()
    parts = ", ".join(f"{group} {count / 1e6:.2f} M" for group, count in counts.items())
    frozen = " and ".join(_WORDS[name] for name in FROZEN_TOWERS[config.freeze])
    last = config.unfreeze_blocks
    but = f" but for the last {last} block{'s' if last > 1 else ''}" if last else ""
    return f"{sum(counts.values()) / 1e6:.2f} M of {total / 1e6:.2f} M parameters ({parts}); frozen: {frozen}{but}"
