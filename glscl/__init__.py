"""Text-video retrieval: training, evaluation and cross-domain comparison on Ray."""

__version__ = "0.1.0"
