"""Trained models in use: loading one, encoding texts and videos, scores, searches, exports for other programs."""
