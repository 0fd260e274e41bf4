"""A page as data, written as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from matmix.experiments.text import markdown, paragraph, shown


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Answer:
    """A sentence that answers what the page was made for: it stands first and is set larger."""

    text: str


@dataclass(frozen=True)
class Items:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells are text already; the columns in ``numbers`` are set to the right."""

    frame: pd.DataFrame
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A file beside the page; its bytes go into the HTML."""

    path: Path
    alt: str


@dataclass(frozen=True)
class Fold:
    """Details that are closed at first."""

    title: str
    blocks: Sequence[Block]


Block = Heading | Text | Answer | Items | Table | Picture | Fold


def drawn(draw: Callable[[Path], bool], path: Path, alt: str) -> list[Block]:
    """The picture that a function draws into a file, nothing where it has nothing to draw. One that cannot be drawn, of
    numbers or names that a library does not take, costs nothing but itself.

    Raises:
        OSError: where the file cannot be written.
    """
    try:
        return [Picture(path, alt)] if draw(path) else []
    except OSError:
        raise
    except Exception as error:  # of matplotlib, or of a task's code: errors of any kind
        return [Text(f"{path.name} cannot be drawn: {type(error).__name__}: {error}")]


def to_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def to_csv(frame: pd.DataFrame) -> str:
    """A line a row: what would end one within a cell is shown as `text.shown` does."""
    cells = [[_cell(cell) for cell in row] for row in frame.to_numpy().tolist()]
    return pd.DataFrame(cells, columns=[shown(name) for name in frame.columns]).to_csv(index=False, lineterminator="\n")


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {paragraph(block.text)}"
        case Text():
            return paragraph(block.text)
        case Answer():
            return f"**{paragraph(block.text)}**"
        case Items():
            return "\n".join(f"- {paragraph(item)}" for item in block.items)
        case Picture():
            return f"![{markdown(block.alt, brackets=True)}]({block.path.name})"
        case Fold():
            return f"**{markdown(block.title)}**\n\n" + "\n\n".join(_markdown(inner) for inner in block.blocks)
        case Table():
            cells = [block.frame.columns.tolist(), *block.frame.to_numpy().tolist()]
            names, *rows = [[markdown(_cell(cell)) for cell in row] for row in cells]
            rule = ["---:" if name in block.numbers else "---" for name in block.frame.columns]
            return "\n".join("| " + " | ".join(row) + " |" for row in [names, rule, *rows])


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{_escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{_escape(block.text)}</p>"
        case Answer():
            return f'<p class="answer">{_escape(block.text)}</p>'
        case Items():
            return "<ul>" + "".join(f"<li>{_escape(item)}</li>" for item in block.items) + "</ul>"
        case Picture():
            data = base64.b64encode(block.path.read_bytes()).decode()
            return f'<img alt="{_escape(block.alt)}" src="data:image/png;base64,{data}">'
        case Fold():
            inner = "\n".join(_html(one) for one in block.blocks)
            return f"<details><summary>{_escape(block.title)}</summary>\n{inner}\n</details>"
        case Table():
            cells = [[_cell(cell) for cell in row] for row in block.frame.to_numpy().tolist()]
            frame = pd.DataFrame(cells, columns=[shown(name) for name in block.frame.columns])
            with pd.option_context("display.max_colwidth", None):
                text = frame.to_html(index=False, border=0, escape=True)
            # pandas gives cells no class of their column, so the style sheet counts columns.
            right = [f"r{index}" for index, name in enumerate(block.frame.columns, 1) if name in block.numbers]
            classes = " ".join(["wide", *right])
            many = len(block.frame) >= FILTERED
            find = f'<input type="search" class="find" placeholder="{HINT}" aria-label="{HINT}">' if many else ""
            return f'{find}<div class="{classes}">{text}</div>'


def _cell(cell: object) -> str:
    """A cell that a row has not is empty."""
    return "" if cell is None or cell != cell else shown(str(cell))


def _escape(text: str) -> str:
    return html.escape(shown(text))


FILTERED = 8
"""Rows from which on a table can be filtered."""
HINT = "show rows that hold ..."
# Without it the page is whole, in the order it was written in. A head that is clicked, or chosen by keyboard, sorts; a
# cell sorts by the first number in it where all have one ("12 k" by its unit too), else as text.
_SCRIPT = """
const units = {k: 1e3, M: 1e6, G: 1e9, T: 1e12};
function key(cell) {
  const found = cell.textContent.trim().match(/^[+-]?[0-9][0-9,.]*(?:e[+-]?[0-9]+)?(?: ([kMGT])(?![A-Za-z]))?/);
  return found ? parseFloat(found[0].replaceAll(",", "")) * (units[found[1]] || 1) : NaN;
}
for (const table of document.querySelectorAll(".wide table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [row, key(row.cells[column]), row.cells[column].textContent.trim()]);
      const numeric = rows.every((row) => row[2] === "" || !isNaN(row[1]));
      rows.sort((a, b) => {
        if ((a[2] === "") !== (b[2] === "")) return a[2] === "" ? 1 : -1;
        const order = numeric ? a[1] - b[1] : a[2].localeCompare(b[2], undefined, {numeric: true});
        return up ? order : -order;
      });
      body.append(...rows.map((row) => row[0]));
    };
    head.tabIndex = 0;
    head.title = "sort";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
for (const field of document.querySelectorAll(".find")) {
  const rows = [...field.nextElementSibling.querySelectorAll("tbody tr")];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
"""
_STYLE = """
body { margin: 0; background: #fff; color: #1b1f24; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 8px; } h2 { font-size: 21px; margin: 40px 0 8px; border-top: 1px solid #d5dae0;
padding-top: 20px; } h3 { font-size: 16px; margin: 24px 0 6px; }
p, ul { max-width: 860px; margin: 8px 0; } li { margin: 3px 0; }
.answer { font-size: 18px; line-height: 1.45; font-weight: 600; max-width: 900px; overflow-wrap: anywhere; }
p, li { overflow-wrap: anywhere; } .find { font: inherit; padding: 3px 8px; width: 260px; max-width: 100%;
box-sizing: border-box; } thead th[title] { cursor: pointer; } th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; } @media (max-width: 500px) { main { padding: 16px 12px 40px; }
h1 { font-size: 22px; } .answer { font-size: 16px; } }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: left; white-space: nowrap; border-bottom: 1px solid #e6e9ed; }
thead th { border-bottom: 2px solid #aab2bd; vertical-align: bottom; } tbody tr:hover { background: #f4f7fa; }
img { max-width: 100%; height: auto; display: block; margin: 12px 0; }
pre { background: #f4f6f8; padding: 10px 12px; overflow-x: auto; font-size: 13px; }
details { margin: 14px 0; } summary { cursor: pointer; font-weight: 600; }
""" + "\n".join(f".r{n} :is(th, td):nth-child({n}) {{ text-align: right; }}" for n in range(1, 16))
