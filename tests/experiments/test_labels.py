"""Names of any characters stand as text wherever they are shown: terminals, pictures, Markdown, HTML, CSV, folders."""

from __future__ import annotations

import csv
import html.parser
import io
import json
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from rich.console import Console

from matmix.experiments.board import Board
from matmix.experiments.report import _plain_pictures, page, write_report
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyArm, StudyTask, run_folder
from matmix.experiments.text import folder_name, markdown, paragraph, shown
from tests.experiments.synthetic import write_run

NASTY = (
    "[/red]", "[bold]x", "$x^{$", "a_b*c*", "_a_", "**b**", "a|b", "<script>alert(1)</script>", "<!-- ", "two\nlines",
    "..", ".", "../../up", "/etc/passwd", "\u202eabc", "\u2066x", "🙂👩‍👩‍👧", "שלום", "\x00\x1b[31mred",
    "x" * 5000, "한" * 300, "&lt;", "# head", "1. list", "- item", "> quote", "`code`", "[a](http://b)", "[a]: http://b",
    "~~x~~", "a\\", "\\|", '"quoted", with comma', "=1+1", "---", "\ttab", "a\r\nb", ":smile:", "C:\\new", " padded ",
)  # fmt: skip
HALF = "a\ud800b"
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(
    "[]()_*`$|<>#&\\~!-+=.:/ \n\t1a", max_size=12
)


def nasty(test):
    for name in NASTY:
        test = example(name)(test)
    return given(ANY)(test)


def plain(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------ Markdown and HTML

READER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def read(source: str) -> tuple[list[str], str]:
    """Kinds of the blocks of a page of Markdown, and its text alone; any markup within a line is an error."""
    kinds, text = [], []
    for token in READER.parse(source):
        kinds.append(token.type)
        for child in token.children or ():
            if child.type == "image":
                text.append(child.content)
                assert not any(inner.type != "text" for inner in child.children), child
                text[-1] = "".join(inner.content for inner in child.children)
            else:
                assert child.type in ("text", "text_special", "strong_open", "strong_close"), (child, source)
                text.append(child.content)
    return kinds, "".join(text)


@nasty
def test_markdown_says_what_was_said(name):
    for block, kind in (
        (page.Text(f"{name}"), "paragraph_open"), (page.Heading(2, name), "heading_open"),
        (page.Items([name]), "bullet_list_open"), (page.Picture(Path("p.png"), f"a {name}"), "paragraph_open"),
    ):  # fmt: skip
        said = shown(name).strip()
        if not said:
            continue
        kinds, text = read(page.to_markdown([block]))
        assert kinds[0] == kind and kinds.count(kind) == 1
        assert plain(text) == plain(f"a {said}" if isinstance(block, page.Picture) else said)
    kinds, text = read(page.to_markdown([page.Answer(f"x{name}x")]))
    assert plain(text) == plain(shown(f"x{name}x"))


@nasty
def test_tables_say_what_was_said(name):
    frame = pd.DataFrame([["a", f"<{name}>"], [f"{name}!", "b"]], columns=["mixer", f"minus {name}."])
    expected = [plain(shown(text)) for text in ("mixer", f"minus {name}.", "a", f"<{name}>", f"{name}!", "b")]
    tokens = READER.parse(page.to_markdown([page.Table(frame)]))
    assert tokens[0].type == "table_open"
    assert [plain("".join(c.content for c in t.children)) for t in tokens if t.type == "inline"] == expected

    class Cells(html.parser.HTMLParser):
        tags: set[str] = set()  # noqa: RUF012
        cells: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            self.tags.add(tag)
            if tag in ("td", "th"):
                self.cells.append("")

        def handle_data(self, data):
            if self.cells:
                self.cells[-1] += data

    parser = Cells()
    parser.cells, parser.tags = [], set()
    parser.feed(page._html(page.Table(frame)))
    assert [plain(cell) for cell in parser.cells] == expected
    assert parser.tags == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    rows = list(csv.reader(io.StringIO(page.to_csv(frame), newline="")))
    assert len(rows) == 3 and rows[1:] == [["a", shown(f"<{name}>")], [shown(f"{name}!"), "b"]]


@nasty
def test_headings_and_texts_of_html(name):
    class Texts(html.parser.HTMLParser):
        found = ""
        tags: tuple[str, ...] = ()

        def handle_starttag(self, tag, attributes):
            self.tags += (tag,)

        def handle_data(self, data):
            self.found += data

    for block, tag in (
        (page.Text(name), "p"), (page.Heading(3, name), "h3"), (page.Answer(name), "p"), (page.Items([name]), "ul")
    ):  # fmt: skip
        parser = Texts()
        parser.feed(page._html(block))
        parser.close()
        assert parser.tags[0] == tag and set(parser.tags) <= {tag, "li"} and plain(parser.found) == plain(shown(name))


# ------------------------------------------------------------------ folders, terminals, pictures


@given(st.lists(ANY | st.sampled_from(NASTY), min_size=2, max_size=6, unique=True))
@example(list(NASTY))
def test_folders_stay_below_and_apart(names):
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert folder not in ("", ".", "..") and "/" not in folder and "\x00" not in folder
        assert len(folder.encode()) < 200  # with room for what is written beside it
        assert PurePosixPath(run_folder(folder, "m", 0)).parts[0] == "runs"
    path = PurePosixPath(run_folder(*(name for name in names[:2]), 0))
    assert len(path.parts) == 4 and ".." not in path.parts


def test_half_characters():
    """No table takes them: a study has none, and of a file they are read as what no font has."""
    with pytest.raises(ValueError, match=r"StudyTask.label must be .*whole characters.*, got 'a\\ud800b'"):
        StudyTask("digits", label=HALF)
    for changes in ({"mixers": (HALF,)}, {"note": HALF}):
        with pytest.raises(ValueError, match=r"must be .*whole characters.*, got .*'a\\ud800b'"):
            Study(**{"name": "s", "tasks": (StudyTask("digits"),), "mixers": ("identity",), **changes})
    for text in (markdown(HALF), paragraph(HALF), shown(HALF), folder_name(HALF)):
        text.encode()


def test_folders_of_plain_names_are_these_names():
    assert run_folder("digits", "hydra(expand=1)", 3) == "runs/digits/hydra-expand=1-d48e02/seed-3"
    assert run_folder("a.b_c", "ssd", 0, "slow") == "runs/a.b_c/ssd/slow/seed-0"


@settings(max_examples=30)
@nasty
def test_a_terminal_shows_names_as_they_are(name):
    out = io.StringIO()
    run = FakeRun(f"t{name}", name)
    board = Board([run], 1, 1)
    board.console = Console(file=out, force_terminal=True, width=6000, _environ={})
    board.progress.live.console = board.console
    with board:
        board.start(run)
        board.update(run, {"step": 1, "loss": 0.5})
        board.progress.refresh()
        board.end(run, "failed", f"error {name}")
    assert plain(shown(f"error {name}")) in plain(out.getvalue())
    assert "\x1b[31mred" not in out.getvalue()


class FakeRun:
    """What the board asks of a run."""

    def __init__(self, setting: str, mixer: str) -> None:
        self.setting, self.mixer, self.seed, self.trial, self.folder = setting, mixer, 0, "", "f"
        self.config = type("Config", (), {"recipe": {"steps": 2}})


@settings(max_examples=20, deadline=None)
@nasty
def test_pictures_take_any_name(name):
    with _plain_pictures():
        figure = Figure(figsize=(2, 1))
        axis = figure.subplots()
        axis.set_title(shown(name)[:40], fontsize=6)
        axis.text(0, 0, shown(name)[:40])
        figure.savefig(io.BytesIO())


def test_a_report_with_all_of_them(tmp_path):
    """Labels of tasks, names of arms, notes: one report, every name in it, nothing beside its folder."""
    root = tmp_path / "study"
    root.mkdir()
    study = Study(
        "named", tuple(StudyTask("digits", {"dim": 8 + 4 * i}, label=name, arms=(StudyArm(f"arm {name}", "pooling"),))
                       for i, name in enumerate(NASTY) if "\0" not in name and len(name) < 4000),
        ("identity", "attention"), seeds=(0, 1), note="Is <b> bold?\n- no", margin=0.05,
    )  # fmt: skip
    (root / "study.json").write_text(json.dumps(study.to_json()))
    for run in study.runs():
        write_run(root, run, 0.5 + 0.01 * len(run.mixer) % 0.1)
    write_report(root, matrices=False, pictured=0)
    text = (root / "report" / "report.md").read_text()
    for name in (name for name in NASTY if "\0" not in name and len(name) < 4000):
        assert f"\n## {paragraph(name)}\n" in text and f"| {markdown(f'arm {name}')} |" in text
    assert len(pd.read_csv(root / "report" / "runs.csv")) == len(study.runs())
    assert "<script>alert" not in (root / "report" / "index.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["study"] and "Is \\<b> bold? - no" in text


@pytest.mark.parametrize("name", ["..", "[/red]", "$x^{$", "x" * 400])
def test_a_study_with_such_a_label_runs_and_counts_once(tmp_path, name):
    task = StudyTask("digits", {"dim": 4, "depth": 1}, {"steps": 1, "eval_every": 1, "batch_size": 4}, label=name)
    out = tmp_path / "out"
    outcome = run_study(Study("s", (task,), ("identity",), seeds=(0,)), out, jobs=1, quiet=True)
    assert outcome.counts == {"finished": 1}
    write_report(out, matrices=False)
    assert len((out / "report" / "runs.csv").read_text().splitlines()) == 2
    assert len(list((out / "report").glob("*.png"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and len(list(out.rglob("result.json"))) == 1
