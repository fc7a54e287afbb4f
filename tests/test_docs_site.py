"""The site of the documentation: it builds without a warning, fetches nothing from elsewhere, and holds every page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glscl.commands import list_commands
from glscl.options.mistakes import keys_of
from glscl.training.config import RunConfig
from tools import docs_reference, docs_site

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return folder


class _Assets(HTMLParser):
    """What a page loads by itself, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.names.add(values.get("id") or "")
        if tag in ("script", "img", "iframe", "source", "video") and values.get("src"):
            self.loaded.append(str(values["src"]))
        if tag == "link" and values.get("rel") != "canonical" and values.get("href"):
            self.loaded.append(str(values["href"]))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))


def read_page(page: Path) -> _Assets:
    assets = _Assets()
    assets.feed(page.read_text(encoding="utf-8"))
    return assets


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert [asset for asset in read_page(page).loaded if re.match(r"(https?:)?//", asset)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_every_page_is_there_and_every_link_leads_to_one(site: Path) -> None:
    pages = {docs_site.site_path(f"docs/{page.name}") for page in (ROOT / "docs").glob("*.md")}
    pages |= set(docs_site.PAGES.values()) & {
        docs_site.site_path(path) for path in docs_site.PAGES if (ROOT / path).exists()
    }
    for name in pages | set(docs_reference.PAGES):
        assert (site / name.replace(".md", ".html")).is_file(), name
    assert (site / "toy-study.html").read_bytes() == (ROOT / "docs/toy-study.html").read_bytes()
    read = {page: read_page(page) for page in site.rglob("*.html")}
    for page, assets in read.items():
        if page.name in ("404.html", "toy-study.html", "toy-sweep.html"):
            continue
        for link in assets.links:
            path, _, name = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if re.match(r"[a-z]+:", link) or link == ".":
                continue
            assert target.exists(), (page, link)
            assert not name or target not in read or name in read[target].names, (page, link)


def test_the_reference_has_every_key_and_command(site: Path) -> None:
    configuration = (site / "reference/configuration.html").read_text(encoding="utf-8")
    for key in keys_of(RunConfig):
        assert f"<code>{key}</code>" in configuration, key
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    for name in list_commands():
        assert f'id="glscl-{name.replace(" ", "-")}"' in commands, name
    assert "<code>--hold-out</code>" in commands
    python = (site / "reference/python.html").read_text(encoding="utf-8")
    for name in ("load", "RetrievalModel", "encode_video", "Head", "LossInputs", "register_term"):
        assert re.search(rf'id="glscl[\w.]*\.{name}"', python), name


def test_links_of_the_tree_become_links_of_the_site() -> None:
    text = "[a](docs/heads.md#x) [b](glscl/losses) [c](#here) [d](https://x.org/y)\n```\n[e](docs/heads.md)\n```\n"
    assert docs_site.rewrite_links(text, "README.md") == (
        "[a](heads.md#x) [b](source/glscl/losses.md) [c](#here) [d](https://x.org/y)\n```\n[e](docs/heads.md)\n```\n"
    )
    assert (
        docs_site.rewrite_links("[a](../README.md) [b](index.md)", "docs/heads.md") == "[a](index.md) [b](library.md)"
    )


def test_an_entry_without_its_page_is_left_out() -> None:
    nav: list[Any] = [{"Use": [{"Heads": "heads.md"}, {"Later": "no-such-page.md"}]}, {"First": "index.md"}]
    assert docs_site._present(nav, ROOT / "docs") == [{"Use": [{"Heads": "heads.md"}]}, {"First": "index.md"}]


def every_type() -> Iterator[tuple[str, str]]:
    fields = {
        name: docs_reference.describe_type(field) for name, field in RunConfig().training.__class__.model_fields.items()
    }
    yield from fields.items()


def test_types_are_said_in_words() -> None:
    types = dict(every_type())
    assert types["zero_stage"] == "`0` or `1` or `2` or `3`"
    assert types["num_workers"] == "integer or list of integer or `auto`"
    assert types["max_steps"] == "integer or none, ≥ 1"
    assert types["use_gpu"] == "yes or no or `auto`"
    assert types["betas"] == "list of number"
