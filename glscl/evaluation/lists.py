"""Files that an option names as ``DOMAIN=FILE``: a list about the test sets of one domain."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from glscl.errors import UserError, did_you_mean
from glscl.system import storage

List = TypeVar("List")


def read_by_domain(
    option: str, entries: Sequence[str], domains: Collection[str], read: Callable[[str], List]
) -> dict[str, tuple[str, List]]:
    """Read the files that ``entries`` name, by domain: address and content; ``domains`` has the test sets'.

    Raises `UserError`: not of that form, no test set of that domain, two files of one domain, or ``read`` refuses one.
    """
    lists: dict[str, tuple[str, List]] = {}
    for entry in entries:
        domain, _, file = entry.partition("=")
        if not domain or not file:
            raise UserError(f"{option} '{entry}': expected DOMAIN=FILE, a test domain and the list of its videos")
        if domain not in domains:
            known = ", ".join(sorted(set(domains))) or "none"
            raise UserError(
                f"{option} '{entry}': no test set of domain '{domain}'{did_you_mean(domain, domains)}; "
                f"test domains: {known}"
            )
        if domain in lists:
            raise UserError(f"{option} '{entry}': '{domain}' has a list already ({lists[domain][0]}); join the two")
        try:
            uri = storage.resolve(file)
            lists[domain] = uri, read(uri)
        except UserError as error:
            raise UserError(f"{option} '{domain}': {error}") from None
        except OSError as error:
            raise UserError(f"{option} '{domain}': {file} cannot be read ({error})") from None
    return lists


def read_text(uri: str) -> str:
    """Text of a file. Raises `UserError`: there is none, or it is not UTF-8."""
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}: not UTF-8 text ({error})") from None
