"""Hooks of mkdocs: they put the site together from the tree. `make docs` builds it.

The pages in docs/ stay as GitHub shows them. Of the site they become, with links rewritten,

- README.md, CONTRIBUTING.md and the READMEs of packages as pages beside those of docs/ (`PAGES`),
- a page for every file of code that a page links to, so that no link leaves the site,
- the reference pages, which tools/docs_reference.py writes from the commands, options and docstrings.

Entries of the navigation whose page is not in the tree are left out.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads a hook by its path

from mkdocs.structure.files import File  # noqa: E402

from tools import docs_reference  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "cluster/README.md": "cluster.md",
    "docs/index.md": "library.md",  # `index.md` is the site's first page, which is the README
}
"""Files of the tree, and the pages of the site that they become."""
SOURCES = "source/"
"""Where pages of code are."""
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def site_path(path: str) -> str:
    """The page or file of the site that a file of the tree becomes, both relative with ``/``."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{SOURCES}{path}.md"


def tree_path(page: str) -> str:
    """The file of the tree that a page of the site comes from."""
    return next((path for path, name in PAGES.items() if name == page), f"docs/{page}")


def linked_files(text: str, path: str) -> Iterator[tuple[str, str]]:
    """Links of a Markdown text to files of the tree: as they are written, and the files without their headings.

    Args:
        text: Markdown.
        path: of the text in the tree.
    """
    for part in _FENCE.split(text)[::2]:
        for target in _LINK.findall(part):
            if not re.match(r"[a-z]+:|#", target):
                yield target, posixpath.normpath(posixpath.join(posixpath.dirname(path), target.partition("#")[0]))


def rewrite_links(text: str, path: str) -> str:
    """The text with its links to the tree turned into links of the site."""
    here = posixpath.dirname(site_path(path))
    new = {}
    for target, file in linked_files(text, path):
        _, mark, heading = target.partition("#")
        new[target] = posixpath.relpath(site_path(file), here or ".") + mark + heading
    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(lambda link: f"]({new.get(link[1], link[1])})", part) for part in parts[::2]]
    return "".join(parts)


def show_code(path: str) -> str:
    """A page that shows a file of code, or lists those of a folder."""
    file = ROOT / path
    front = "---\nsearch: {exclude: true}\nhide: [toc]\n---\n\n"
    if file.is_dir():
        modules = sorted(file.glob("[!_]*.py")) or sorted(file.glob("*.py"))
        rows = [f"- [{module.name}]({module.name}.md): {first_line(module)}" for module in modules]
        return f"{front}# {path}\n\n{first_line(file / '__init__.py')}\n\n" + "\n".join(rows).replace(
            "](", f"]({file.name}/"
        )
    language = {".py": "python", ".toml": "toml", ".yaml": "yaml"}.get(file.suffix, "text")
    return f"{front}# {path}\n\n~~~~~~{language}\n{file.read_text(encoding='utf-8')}~~~~~~\n"


def first_line(module: Path) -> str:
    """The first line of a module's docstring; none where there is no module, in a folder of other files."""
    if not module.exists():
        return ""
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def code_pages(documents: dict[str, str]) -> Iterator[str]:
    """Files and folders of code that the ``documents`` (path to text) link to, and the files of those folders."""
    linked = {file for path, text in documents.items() for _, file in linked_files(text, path)}
    code = {file for file in linked if file not in PAGES and not file.startswith("docs/")}
    code |= {f"{folder}/{file.name}" for folder in code for file in (ROOT / folder).glob("*.py")}
    yield from sorted(code)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out of the navigation what is not in the tree."""
    config.nav = _present(config.nav or [], Path(config.docs_dir))
    return config


def _present(entries: list[Any], docs: Path) -> list[Any]:
    kept: list[Any] = []
    for entry in entries:
        ((title, page),) = entry.items()
        if isinstance(page, list):
            page = _present(page, docs)
        elif not ((ROOT / tree_path(page)).exists() or page in docs_reference.PAGES):
            continue
        kept.append({title: page})
    return kept


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    if home := files.get_file_from_path("index.md"):
        files.remove(home)
    for path, page in PAGES.items():
        if (ROOT / path).exists():
            files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    documents = {tree_path(page.src_uri): page.content_string for page in files.documentation_pages()}
    for path in code_pages(documents):
        files.append(File.generated(config, site_path(path), content=show_code(path)))
    for page, write in docs_reference.PAGES.items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page of the tree into links of the site."""
    uri = page.file.src_uri
    if uri.startswith(SOURCES) or uri in docs_reference.PAGES:
        return markdown
    return rewrite_links(markdown, tree_path(uri))
