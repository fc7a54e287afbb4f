"""What can be said of every architecture of open_clip without building it."""

from dataclasses import dataclass
from importlib.util import find_spec

import open_clip
from open_clip.factory import get_model_config

from glscl.models.architectures import Architecture, refusal


@dataclass(frozen=True, slots=True)
class ArchitectureRow:
    """An architecture as `glscl towers` lists it."""

    name: str
    refusal: str | None
    """Why it cannot be used; None where it can."""
    tokens: str = ""
    """Whose tokens its text tower reads."""
    weights: tuple[str, ...] = ()
    """Tags of pretrained weights."""
    frame_size: int = 0
    width: int = 0
    words: int = 0
    """Most tokens of a caption."""

    def cells(self) -> list[str]:
        """The row of an accepted architecture, as text."""
        first, *others = self.weights or ("-",)
        tags = f"{first} and {len(others)} more" if others else first
        return [self.name, self.tokens, tags, *map(str, (self.frame_size, self.width, self.words))]


def describe_architectures() -> list[ArchitectureRow]:
    """One row for each architecture that open_clip and this package know by name."""
    rows = []
    for name in open_clip.list_models():
        config = get_model_config(name)
        reason = refusal(config)
        if reason:
            rows.append(ArchitectureRow(name, reason))
            continue
        architecture = Architecture(name, name, config)
        text = architecture.text
        foreign = text.hf_tokenizer_name or text.hf_model_name
        missing = " (install glscl[hf])" if foreign and find_spec("transformers") is None else ""
        rows.append(
            ArchitectureRow(
                name=name,
                refusal=None,
                tokens=f"{foreign or 'CLIP'}{missing}",
                weights=tuple(open_clip.list_pretrained_tags_by_model(name)),
                frame_size=architecture.frame_size,
                width=int(config["embed_dim"]),
                words=int(text.context_length),
            )
        )
    return rows
