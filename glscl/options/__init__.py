"""Validated sections of a configuration, read from YAML and from a command line."""

from glscl.options.base import MAX_LAYERS, MAX_SIZE, Options

__all__ = ["MAX_LAYERS", "MAX_SIZE", "Options"]
