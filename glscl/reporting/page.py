"""What every page is made with: templates that escape what is inserted, and pictures that come with the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from glscl.errors import UserError

_DATA_URI = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+=*\Z")


def environment(package: str, **filters: Callable[..., Any]) -> Environment:
    """Where the templates of a page are found and how they are read: all that is inserted is escaped.

    Args:
        package: whose ``templates`` folder holds the page's own; this package's holds what all pages include.
        filters: by the name that templates know them by.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("glscl.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    return made


def thumbnails(value: str | bytes | Sequence[str | bytes] | None) -> list[str]:
    """Return pictures as ``data:`` URIs.

    Raises:
        UserError: one is neither bytes nor a ``data:`` URI of a picture (an address would be loaded from the network).
    """
    if not value:
        return []
    pictures = [value] if isinstance(value, str | bytes) else list(value)
    uris = []
    for picture in pictures:
        if isinstance(picture, bytes):
            picture = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
        if not _DATA_URI.match(picture):
            raise UserError(f"thumbnail {picture[:40]!r} is not a 'data:image/jpeg;base64,' URI")
        uris.append(picture)
    return uris
