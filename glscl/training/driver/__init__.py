"""The driver's process: checks before the start, the worker group, outputs."""
