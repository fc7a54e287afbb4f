"""The blocks of a tower in the order of computation, and what comes after them, whichever library built it."""

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from glscl.errors import UserError

_LISTS = (
    *("transformer.resblocks",),  # open_clip's own towers
    *("trunk.blocks", "trunk.stages", "trunk.layers"),  # timm: transformers, convolutional and hierarchical towers
    # Hugging Face: BERT and RoBERTa, T5, M2M-100, DistilBERT
    *("transformer.encoder.layer", "transformer.block", "transformer.layers", "transformer.transformer.layer"),
    *("layer4", "trunk.layer4"),  # ResNets: the last of four stages
)
_RESNET = ("layer1", "layer2", "layer3", "layer4")
_LAST_PARAMETERS = ("proj", "text_projection")  # those of a tower's own that are used after its blocks


@dataclass(frozen=True)
class Blocks:
    """The parts of a tower. A block is a list of modules: a stage's downsampling counts to its first block.

    Attributes:
        blocks: in the order of computation.
        after: modules that follow the last block (norm, pooling, projection).
        projections: parameters that follow it and belong to no such module.
    """

    blocks: tuple[tuple[nn.Module, ...], ...]
    after: tuple[nn.Module, ...]
    projections: tuple[nn.Parameter, ...]


def find_blocks(tower: nn.Module, what: str, knob: str) -> Blocks:
    """Find the blocks of a tower, which messages call ``what``. Raises `UserError`: it has none that are known."""
    for path in _LISTS:
        chain = _follow(tower, path)
        if len(chain) == path.count(".") + 2 and isinstance(chain[-1], nn.ModuleList | nn.Sequential):
            stages = [getattr(chain[-2], name, nn.Sequential()) for name in _RESNET]
            items = list(chain[-1]) if path.rpartition(".")[2] != _RESNET[-1] else stages
            return _describe(tower, chain, path.split("."), [block for item in items for block in _blocks_of(item)])
    raise UserError(
        f"{knob}: {what} ({type(tower).__name__}) has no blocks that are known here; leave {knob} out, or choose "
        f"another model.clip"
    )


def token_width(block: tuple[nn.Module, ...]) -> int | None:
    """Width D of the tokens (..., D) that a block gives; None for a block of feature maps, which has convolutions."""
    parameters = list(block[-1].parameters())
    if any(parameter.ndim > 2 for parameter in parameters):
        return None
    return next((len(parameter) for parameter in parameters if parameter.ndim == 1), None)


def _follow(tower: nn.Module, path: str) -> list[nn.Module]:
    """The tower and the modules along a dotted path, as far as there are any."""
    chain = [tower]
    for name in path.split("."):
        child = getattr(chain[-1], name, None)
        if not isinstance(child, nn.Module):
            break
        chain.append(child)
    return chain


def _blocks_of(item: nn.Module) -> list[tuple[nn.Module, ...]]:
    """A block, or the blocks of a stage."""
    inner = getattr(item, "blocks", None)
    if not isinstance(inner, nn.ModuleList | nn.Sequential) or not len(inner):
        return [(block,) for block in item] if isinstance(item, nn.Sequential) and len(item) else [(item,)]
    first = tuple(child for child in item.children() if child is not inner)
    return [(*first, block) if index == 0 else (block,) for index, block in enumerate(inner)]


def _describe(
    tower: nn.Module, chain: list[nn.Module], names: list[str], blocks: list[tuple[nn.Module, ...]]
) -> Blocks:
    after: list[nn.Module] = []
    for (parent, _), name in zip(pairwise(chain), names, strict=True):
        children = dict(parent.named_children())
        after += list(children.values())[list(children).index(name) + 1 :]
    own = dict(tower.named_parameters(recurse=False))
    last = tuple(own[name] for name in _LAST_PARAMETERS if name in own)
    return Blocks(tuple(blocks), tuple(after), last)
