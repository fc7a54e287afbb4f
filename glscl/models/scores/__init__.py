"""Scores that heads share, in tiles: plain torch on any device, Triton kernels on a CUDA GPU."""
