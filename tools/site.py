"""Prepares the pages of the documentation site: `python tools/site.py`, which `make docs` runs before zensical.

The pages are read on GitHub, too, so they are ordinary Markdown with links between files of the repository. Here they
are copied into build/docs, together with the pages at the root of the repository. A link to any other file, such as
source code or an example, leads to a page that shows it. The Python interface gets a reference, made from docstrings.
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
import re
import shutil
from pathlib import Path

import rmd

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "docs"
ELSEWHERE = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "README.md": "project/readme.md",
    "SECURITY.md": "project/report.md",
    "examples/quickstart.ipynb": "notebook.md",
    "research/README.md": "project/research.md",
}
"""Pages outside docs/, and where they are on the site."""
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yaml": "yaml", ".md": "markdown"}
LINK = re.compile(r"(!?\[)((?:[^\]\[`]|`[^`]*`)*)(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^( *)```.*?^ *```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->\n?(?=```)|<!--.*?-->", re.DOTALL)
"""Marks for the scripts that fill and test the pages. At the beginning of a line, one would end its paragraph."""
REFERENCE = "<!-- reference -->"
"""Mark in docs/api.md where the reference begins."""
CSS = """
.md-typeset img { border-radius: .2rem; background: white; }
.md-typeset table:not([class]) { font-size: .68rem; }
.md-typeset .doc-heading { margin-top: 2.2em; }
/* On a phone, wide pictures keep a size at which their labels can be read, and scroll. */
@media screen and (max-width: 44.9375em) {
  .md-typeset p:has(> img:only-child) { overflow-x: auto; }
  .md-typeset p > img:only-child { max-width: none; height: 13rem; }
}
"""


def prepare(out: Path = OUT) -> dict[str, str]:
    """Write all pages and what they link to; return where the pages are on the site, by path in the repository."""
    shutil.rmtree(out, ignore_errors=True)
    names = pages()
    shown: set[str] = set()
    for source, name in names.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text = notebook(text, out)
        write(out / name, rewritten(with_reference(text), source, names, shown))
    for path in sorted(shown):
        copy(path, out)
    write(out / "assets" / "site.css", CSS)
    return names


def pages() -> dict[str, str]:
    """Return the site's pages: their paths in the repository, and under docs."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("**/*.md"))
    return {path: path.removeprefix("docs/") for path in found} | ELSEWHERE


def rewritten(text: str, source: str, names: dict[str, str], shown: set[str]) -> str:
    """Return a page with its links to files replaced by links to their places on the site.

    A link that is called by the name of its file, as those for GitHub are, gets the title of the page instead.

    Args:
        text: the page.
        source: its path in the repository.
        names: the pages, as `pages` returns them.
        shown: receives the paths of files and folders that are linked to and are no pages.
    """

    def replace(match: re.Match[str]) -> str:
        target, _, anchor = match[4].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if target.startswith("notebook-"):
            return match[0]  # a picture that `notebook` wrote
        if path not in names:
            shown.add(path)
        place = names.get(path, place_of(path))
        link = posixpath.relpath(place, posixpath.dirname(names[source]) or ".")
        label = title(path) if path.endswith(".md") and path in names and path.endswith(match[2]) else match[2]
        return match[1] + label + match[3] + link + (f"#{anchor}" if anchor else "") + match[5]

    parts, last = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(replace, COMMENT.sub("", text[last : fence.start()])), fence[0]]
        last = fence.end()
    return "".join([*parts, LINK.sub(replace, COMMENT.sub("", text[last:]))])


def notebook(text: str, out: Path) -> str:
    """Return a Jupyter notebook as a page, and write the pictures among its outputs."""
    parts = []
    for index, cell in enumerate(json.loads(text)["cells"]):
        content = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(content)
            continue
        parts.append(f"```python\n{content}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                write_picture(out / f"notebook-{index}.png", data["image/png"])
                parts.append(f"![The picture that the cell above displays](notebook-{index}.png)")
            elif lines := output.get("text", data.get("text/plain")):
                parts.append(f"```text\n{''.join(lines).rstrip()}\n```")
    return "\n\n".join([*parts, ""])


def write_picture(path: Path, encoded: str) -> None:
    """Write a file from its base64 text, and the folder that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(encoded))


def title(page: str) -> str:
    """Return the heading of a page up to its first comma or colon, to name it in a link."""
    heading = (ROOT / page).read_text(encoding="utf-8").partition("\n")[0]
    return re.split("[,:]", heading.removeprefix("# "))[0]


def place_of(path: str) -> str:
    """Return where a file or a folder that is no page is on the site; pictures and notebooks stay what they are."""
    if path.endswith((".png", ".webp", ".svg")):
        return path.removeprefix("docs/")
    return f"files/{path}.md"


def copy(path: str, out: Path) -> None:
    """Put a picture on the site, or a page that shows a file or the files of a folder."""
    place, source = out / place_of(path), ROOT / path
    if place.suffix != ".md":
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        return
    files = sorted(each for each in source.iterdir() if each.is_file()) if source.is_dir() else [source]
    shown = [listing(each, heading=source.is_dir()) for each in files]
    write(place, "\n\n".join([f"# {path}", *shown]) + "\n")


def listing(path: Path, *, heading: bool) -> str:
    """Return a file as a block of code, below its name if wanted."""
    text = path.read_text(encoding="utf-8").rstrip()
    block = f"~~~~{LANGUAGES.get(path.suffix, 'text')}\n{text}\n~~~~"
    return f"## {path.name}\n\n{block}" if heading else block


def with_reference(text: str) -> str:
    """Return a page with the reference of all public names at its mark, if it has one."""
    names = sorted((name for name in rmd.__all__ if not name.startswith("_")), key=str.lower)
    return text.replace(REFERENCE, "## Reference\n\n" + "\n\n".join(f"::: rmd.{name}" for name in names))


def write(path: Path, text: str) -> None:
    """Write a text file, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.chdir(ROOT)
    prepare()
