"""Training: the loop that every worker runs (`worker`) and the arithmetic of its steps.

Three subjects have rooms of their own: ``checkpoint`` and ``health``, on which the loop stands, and ``driver``, which
starts the loop and knows nothing of its steps. The loop imports nothing from ``driver``.
"""
