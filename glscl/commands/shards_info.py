"""`glscl shards info`: print the manifest of a shard set."""

from glscl.data.shards import describe_manifest, open_shard_set
from glscl.options.flags import shard_set_argument
from glscl.reporting.console import start_panel

HELP = "print a manifest"
ORDER = 63


def run(words: list[str], program: str) -> str:
    """Open the set, which compares the tars' sizes with the manifest, and describe it."""
    uri = shard_set_argument(words, program, "print the manifest of a shard set")
    manifest = open_shard_set(uri).manifest
    start_panel(uri, describe_manifest(manifest))
    return f"{uri}: {manifest.share()} videos, {manifest.pairs} pairs in {len(manifest.shards)} shards"
