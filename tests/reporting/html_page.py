"""A page as a reader and as a browser see it, for tests."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}
JOINER = "\u2060"
"""Stands among the words for a place where a name may be broken."""
HOSTILE = "a dog <script>alert(1)</script> \" onerror='x' & http://evil.example/x.png {{ 7 * 7 }}"
"""A caption that must come out as the text it is."""


class Page(HTMLParser):
    """Collects text, tags and attributes, and insists that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "wbr":
            self.words.append(JOINER)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)

    @property
    def text(self) -> str:
        """Words as a reader sees them, the same wherever a name may be broken."""
        return " ".join(" ".join(self.words).split()).replace(f" {JOINER} ", "")

    def having(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a class."""
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]

    def assert_loads_nothing_from_elsewhere(self) -> None:
        """Pictures are in the file, links lead within it, and the content security policy forbids the rest."""
        loaded = [a[key] for _, a in self.elements for key in ("src", "srcset", "data", "poster") if a.get(key)]
        assert loaded
        assert all((address or "").startswith("data:image/jpeg;base64,") for address in loaded)
        assert all((a["href"] or "").startswith("#") for _, a in self.elements if "href" in a)
        assert not re.search(r"url\(|@import", self.html)
        assert not {"script", "link", "iframe", "object", "embed", "form"} & {tag for tag, _ in self.elements}
        policies = [a["content"] for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]

    def assert_hostile_text_is_only_text(self) -> None:
        """`HOSTILE` is shown as it is, and the template language in it not run."""
        assert "<script" not in self.html
        assert HOSTILE in self.text
        assert not any(key.startswith("on") for _, attributes in self.elements for key in attributes)
