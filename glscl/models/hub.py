"""Hugging Face's hub: a repository's small files, from the cache on this machine or, where that is allowed, fetched."""

import os
from collections.abc import Sequence

from glscl.errors import UserError

DESCRIPTION = "open_clip_config.json"
"""Description of an architecture and of its pictures' colours, in the folders and repositories that open_clip loads."""
TEXT_CONFIG = "config.json"
"""Description of a Hugging Face model."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
)  # fmt: skip
"""Files of which a tokenizer has one, whatever its kind."""
SMALL_FILES = (
    DESCRIPTION, TEXT_CONFIG, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    *TOKENIZER_FILES,
)  # fmt: skip
"""What may be needed of a repository beside weights."""


def holds_any(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder has one of these files."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def find_repository(repository: str, needed: Sequence[str], *, fetch: bool) -> str | None:
    """Local folder of a repository's small files that has one of those ``needed``.

    What is in the cache is not looked for anywhere else. Returns None where it is not and nothing is to be fetched.
    Raises `UserError`: it cannot be fetched, or has none of those needed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder: str = snapshot_download(repository, allow_patterns=list(SMALL_FILES), local_files_only=True)
        if holds_any(folder, needed):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise UserError(f"'{repository}' is no name of a repository on Hugging Face's hub ({error})") from None
    if not fetch:
        return None
    try:
        folder = snapshot_download(repository, allow_patterns=list(SMALL_FILES))
    except Exception as error:  # of the network, of the hub, or of the client
        detail = str(error).strip()[:300]
        raise UserError(
            f"{repository} cannot be fetched from Hugging Face ({type(error).__name__}: {detail})"
        ) from None
    if not holds_any(folder, needed):
        raise UserError(f"{repository} on Hugging Face has none of {', '.join(needed)}")
    return folder
