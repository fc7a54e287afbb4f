"""Evaluation under shifts at test time: passes over a test set with its frames corrupted, with intervals and a page."""
