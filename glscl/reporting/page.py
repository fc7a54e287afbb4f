"""Templates of the HTML pages: everything inserted is escaped, numbers have their formats, pictures are in the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from glscl.errors import UserError
from glscl.reporting import formats

_DATA_URI = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+=*\Z")


def environment(package: str) -> Environment:
    """Return the environment of a package's templates: the formats and functions of this kit are its filters.

    Args:
        package: whose ``templates`` folder holds the page's own; this package's holds what all pages include.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("glscl.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update({function.__name__: function for function in _FILTERS})
    return templates


def breakable(name: str) -> Markup:
    """A name that may be broken after its underscores, hyphens and slashes."""
    text = escape(name)
    for character in "_-/":
        text = text.replace(character, Markup(f"{character}<wbr>"))
    return text


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


_FILTERS = (
    formats.number,
    formats.signed,
    formats.interval,
    formats.p_value,
    formats.ratio,
    formats.si,
    formats.size,
    formats.duration,
    formats.short,
    formats.short_key,
    formats.when,
    breakable,
    thumbnails,
)
