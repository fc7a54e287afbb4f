"""The model: clip towers, frame context, heads, and the retriever that joins them."""

from __future__ import annotations

from glscl.models.heads import Features, Head, head_class, head_names, register_head
from glscl.models.retriever import ModelConfig, Retriever
from glscl.models.tokenizer import tokenize

__all__ = ["Features", "Head", "ModelConfig", "Retriever", "head_class", "head_names", "register_head", "tokenize"]
