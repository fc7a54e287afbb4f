"""What runs in the driver's process: checks before the start, the worker group, outputs."""
