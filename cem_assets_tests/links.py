"""Links in the Markdown of the tree: every file, heading, path of code and module they name must exist.

`make docs` and `test_docs.py` ask this. It needs nothing but the standard library, so the environment of the site is enough.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_PATH = re.compile(r"`((?:cem_assets|cem_assets_tests|deploy|docs|examples|perf)/[A-Za-z0-9_./-]+)`")
_MODULE = re.compile(r"^::: ([A-Za-z0-9_.]+)$", re.MULTILINE)
"""A module whose docstrings the site shows at this place."""
_NOT_IN_THE_TREE = ("perf/results/", "deploy/.env", "cem_assets/fault", "cem_assets/version", "cem_assets/workers_divided_by")
"""What is written by commands or people and ignored by git, and tags of Dagster runs, which look like paths."""


def documents(root: Path) -> list[Path]:
    """List the Markdown files that people read."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/*.md"), *root.glob("perf/*.md")]
    return sorted(found)


def problems(root: Path) -> list[str]:
    """Name every broken link of the tree's Markdown, with its file and line."""
    return [problem for document in documents(root) for problem in _problems_of(document, root)]


def _problems_of(document: Path, root: Path) -> Iterator[str]:
    text = _FENCE.sub(lambda fence: "\n" * fence.group().count("\n"), document.read_text())
    name = document.relative_to(root)
    for match in _LINK.finditer(_CODE.sub(lambda code: "x" * len(code.group()), text)):
        target = match.group(1)
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        where = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        path, _, anchor = unquote(target).partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or not file.is_relative_to(root.resolve()):
            yield f"{where} links to {target}; there is no such file."
        elif anchor and file.suffix == ".md" and "." not in anchor and anchor not in anchors(file):
            yield f"{where} links to {target}; {file.name} has no such heading."
    for match in _PATH.finditer(text):
        path = match.group(1)
        if not (root / path).exists() and not path.startswith(_NOT_IN_THE_TREE):
            yield f"{name}:{text.count(chr(10), 0, match.start()) + 1} names {path}; there is no such file or folder."
    for match in _MODULE.finditer(text):
        module = root / match.group(1).replace(".", "/")
        if not module.with_suffix(".py").is_file() and not (module / "__init__.py").is_file():
            yield f"{name}:{text.count(chr(10), 0, match.start()) + 1} shows {match.group(1)}; there is no such module."


def anchors(document: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site and forges make them."""
    text = _FENCE.sub("", document.read_text())
    found: set[str] = set()
    for heading in _HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)))
    return found


if __name__ == "__main__":
    report = problems(Path(__file__).resolve().parents[1])
    for line in report:
        print(line)
    sys.exit(1 if report else 0)
