"""Searches over loss weights, temperatures and learning rates with Ray Tune will live here; nothing does yet.

This package sits on top of glscl and may import it, never the reverse.
"""
