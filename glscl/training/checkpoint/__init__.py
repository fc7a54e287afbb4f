"""Checkpoints: their format, what is kept of them, and loading them on another number of workers."""
