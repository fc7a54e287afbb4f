"""Templates of the HTML pages: everything inserted is escaped, numbers have their formats, pictures are in the page."""

import base64
import re
from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from glscl.errors import UserError
from glscl.reporting import formats

_FORMATS = (formats.number, formats.signed, formats.interval, formats.p_value, formats.ratio, formats.si, formats.size,
            formats.duration, formats.short, formats.short_key, formats.when)  # fmt: skip
_DATA_URI = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+=*\Z")


def environment(package: str) -> Environment:
    """Return the environment of the ``templates`` of a package and of this one, which holds what all pages include.

    The formats and functions of this kit are its filters.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("glscl.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update({function.__name__: function for function in (*_FORMATS, breakable, thumbnails)})
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
    uris = []
    for picture in [value] if isinstance(value, str | bytes) else value:
        if isinstance(picture, bytes):
            picture = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
        if not _DATA_URI.match(picture):
            raise UserError(f"thumbnail {picture[:40]!r} is not a 'data:image/jpeg;base64,' URI")
        uris.append(picture)
    return uris
