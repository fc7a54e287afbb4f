"""Checkpoints: their format, their transfer, which are kept, and loading them on another number of workers."""
