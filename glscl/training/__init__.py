"""Training: the loop (`worker`), which stands on ``checkpoint`` and ``health`` and imports nothing from ``driver``."""
