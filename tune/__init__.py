"""Sweeps: Ray Tune searches over any keys of a run's configuration, with an objective across domains."""
