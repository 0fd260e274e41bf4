"""What the site does besides Markdown.

A line `[[modules matmix/mixers]]` on a page becomes the documentation of every file of that folder, so a new mixer,
matrix or model is on its page by being there. A line `[[refused optimizers]]` becomes the list that recipes refuse by.
Docstrings announce code by two colons, as reStructuredText has it; the
pages show one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# The base and the registry stand on the page by name.
LEFT_OUT = {"__init__", "base", "registry", "algebra"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    markdown = re.sub(r"^\[\[modules (\S+)\]\]$", lambda found: modules(found[1]), markdown, flags=re.M)
    return re.sub(r"^\[\[refused optimizers\]\]$", lambda _: refused_optimizers(), markdown, flags=re.M)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for each page, once it is HTML."""
    return re.sub(r"::</p>", ":</p>", html)


def modules(folder: str) -> str:
    """One directive a file, under the name of the module."""
    package = folder.replace("/", ".")
    names = sorted(path.stem for path in (ROOT / folder).glob("*.py") if path.stem not in LEFT_OUT)
    return "\n\n".join(f"::: {package}.{name}\n    options:\n      heading_level: 3" for name in names)


def refused_optimizers() -> str:
    """A row for each reason: the names, and why they are refused."""
    from matmix.experiments.recipe import ELSEWHERE, UNFIT  # on this page alone: it brings torch

    rows = {", ".join(f"`{name}`" for name, why in UNFIT.items() if why == reason): reason for reason in UNFIT.values()}
    rows |= {f"`{begin}...`": f"needs a GPU and {library}; refused where one is absent" for begin, library in
             ELSEWHERE.items()}  # fmt: skip
    return "\n".join(["| optimiser | why |", "|---|---|", *(f"| {names} | {why} |" for names, why in rows.items())])
