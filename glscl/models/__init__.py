"""The model: clip towers, frame context, heads, and the retriever that joins them."""

from typing import TYPE_CHECKING

from glscl.models.heads import Features, Head, head_class, head_names, register_head
from glscl.models.options import ModelConfig
from glscl.models.tokenizer import tokenize

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever

__all__ = ["Features", "Head", "ModelConfig", "Retriever", "head_class", "head_names", "register_head", "tokenize"]


def __getattr__(name: str) -> object:
    """Import the model when it is asked for: it brings open_clip, which takes seconds."""
    if name == "Retriever":
        from glscl.models.retriever import Retriever

        return Retriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
