"""The report says what the run folders hold, whatever state the study is in."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from matmix.experiments.blocks import write_examples
from matmix.experiments.report import page, pictures, tables, write_report
from matmix.experiments.report.collect import collect
from matmix.experiments.runner import run_study
from matmix.experiments.study import Study, StudyArm, StudyTask
from tests.experiments.synthetic import MIXERS, write_run, write_study

FEW = ("identity", "attention", "aff", "ssd", "hydra")
ODD = str(Path(__file__).parent / "odd_mixers.py")


def made_up(**changes) -> Study:
    base = {"name": "made-up", "tasks": (StudyTask("digits"), StudyTask("recall")), "mixers": FEW}
    return Study(**{**base, **changes})


def levels(*settings: str) -> dict[str, dict[str, float]]:
    return {setting: {mixer: 0.6 + 0.02 * i for i, mixer in enumerate(MIXERS)} for setting in settings}


def text_of(root: Path) -> str:
    """The report in Markdown, without the time that pictures take."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cost_picture", "curves_picture"):
            patch.setattr(pictures, name, lambda setting, path: False)
        write_report(root, matrices=False)
    return (root / "report" / "report.md").read_text()


def rows_of(markdown: str, title: str) -> dict[str, dict[str, str]]:
    """The first table under a heading, by its first column."""
    part = markdown.split(f"\n## {title}\n", 1)[1]
    lines = list(itertools.takewhile(str.strip, part[part.index("\n|") + 1 :].splitlines()))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def with_arms(**changes) -> Study:
    arms = (StudyArm("near-16", "sep_conv(kernel=8)", window=16), StudyArm("bag", "identity", {"position": "none"}))
    return made_up(tasks=(StudyTask("digits", arms=arms),), mixers=("attention", "ssd"), **changes)


# ------------------------------------------------------------------ numbers


def test_solved_runs_are_counted_and_never_averaged(tmp_path):
    study = with_arms()
    scores = {
        "attention": (0.51, 0.95, 0.97),
        "ssd": (0.5, 0.49, 0.51),
        "near-16": (0.9, 0.93, 0.5),
        "bag": (0.5, 0.5, 0.5),
    }
    for run in study.runs():
        write_run(tmp_path, run, scores[run.mixer][run.seed], solved_above=0.53)
    (tmp_path / "study.json").write_text(json.dumps(study.to_json()))
    text = text_of(tmp_path)
    rows = rows_of(text, "digits")
    assert list(rows)[:2] == ["attention", "near-16"]
    assert rows["attention"]["solved"] == "2 of 3 seeds" and rows["ssd"]["solved"] == "0 of 3 seeds"
    assert rows["attention"]["median test accuracy of the solved"] == "0.9600"
    assert rows["ssd"]["median test accuracy of the solved"] == ""
    assert "At chance with every seed: ssd, bag." in text
    assert "±" not in text.split("## digits", 1)[1]
    assert "LOCAL: near-16, where a token hears 16 tokens over the whole depth, solves it as often as attention" in text
    assert "bag: identity, position=none." in text


@pytest.mark.parametrize(("near", "said"), [(0.9, "LOCAL: near-16"), (0.7, "Not local: no window of up to 16 tokens")])
def test_a_task_that_a_window_solves_is_local(tmp_path, near, said):
    level = {"attention": 0.9, "ssd": 0.8, "near-16": near, "bag": 0.4}
    write_study(tmp_path, with_arms(), {"digits": level})
    assert said in text_of(tmp_path)
    write_study(tmp_path / "one", with_arms(seeds=(0,)), {"digits": level})
    assert ("cannot be said with one seed" in text_of(tmp_path / "one")) is (near < 0.9) or near == 0.9


def test_published_scores_stand_apart(tmp_path):
    write_study(tmp_path, made_up(), levels("digits"))
    for path in tmp_path.rglob("result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "published": {"S4 (their paper)": {"accuracy": 0.8865}}}))
    rows = re.search(r"### Published\n\n(.*?)\n\n(.*?)\n\n", text_of(tmp_path), re.S)
    assert rows is not None and "under the settings" in rows[1] and "| S4 (their paper) | 0.8865 |" in rows[2]


def test_the_table_holds_what_the_runs_hold(tmp_path):
    study = made_up(tasks=(StudyTask("digits"),), mixers=("identity", "attention", "ssd"))
    scores = {"identity": (0.5, 0.6, 0.7), "attention": (0.8, 0.9, 0.7), "ssd": (0.9, 0.95, 0.88)}
    for run in study.runs():
        write_run(tmp_path, run, scores[run.mixer][run.seed], cost=3.0 if run.mixer == "ssd" else 1.0)
    (tmp_path / "study.json").write_text(json.dumps(study.to_json()))
    rows = rows_of(text_of(tmp_path), "digits")
    assert list(rows) == ["ssd", "attention", "identity"]
    assert rows["identity"]["test accuracy"] == "0.6000 ± 0.1000"
    # differences -0.3, -0.3, 0.0: mean -0.2, standard deviation 0.1732, t = 4.3027 over sqrt(3)
    assert rows["identity"]["minus attention"] == "-0.2000 [-0.6303, +0.2303]"
    assert rows["attention"]["minus attention"] == "reference"
    assert [rows[mixer]["rank"] for mixer in rows] == ["1.0", "2.2", "2.8"]
    assert (rows["ssd"]["parameters"], rows["ssd"]["MACs"]) == ("60 k", "3 M")
    assert rows["ssd"]["tokens/s"] == "34.1 k"  # 6400 / 3 examples of 16 tokens
    assert (rows["ssd"]["ms a step"], rows["ssd"]["peak MB"]) == ("30", "90")


def test_another_reference(tmp_path):
    write_study(tmp_path, made_up(), levels("digits", "recall"))
    write_report(tmp_path, reference="ssd", matrices=False)
    rows = rows_of((tmp_path / "report" / "report.md").read_text(), "recall")
    assert rows["ssd"]["minus ssd"] == "reference" and "minus attention" not in rows["ssd"]
    with pytest.raises(ValueError, match=r"reference must be a mixer of the study .* got 'mamba'"):
        write_report(tmp_path, reference="mamba")


def test_one_seed_has_no_interval(tmp_path):
    write_study(tmp_path, made_up(seeds=(0,)), levels("digits"))
    text = text_of(tmp_path)
    assert "no interval" in rows_of(text, "digits")["ssd"]["minus attention"]
    assert "±" not in rows_of(text, "digits")["ssd"]["test accuracy"]
    assert "One seed each" in text


def test_lower_can_be_better(tmp_path):
    study = made_up(tasks=(StudyTask("digits"),), mixers=("identity", "attention"))
    for run in study.runs():
        value = 0.002 if run.mixer == "attention" else 0.004 + 0.001 * run.seed
        write_run(tmp_path, run, value, metric="mse", higher_is_better=False, baselines={"last value": {"mse": 0.02}})
    text = text_of(tmp_path)
    rows = rows_of(text, "digits")
    assert list(rows) == ["attention", "identity"] and rows["attention"]["rank"] == "1.0"
    assert rows["attention"]["test mse"] == "0.002000 ± 0.000000"
    assert "83 % of the way from 'last value' (0.02) to the best mixer (attention, 0.002)" in text


def test_ten_tasks_are_tested_for_ranks(tmp_path):
    names = [f"task{i}" for i in range(10)]
    study = made_up(tasks=tuple(StudyTask("digits", label=name) for name in names), seeds=(0,))
    write_study(tmp_path, study, levels(*names), spread=0.001)
    text = text_of(tmp_path)
    assert "Friedman test, Wilcoxon signed-rank with Holm's correction for pairs, over 10 blocks; p = " in text
    # signed ranks of ten blocks that all agree have p = 2 / 2^10; Holm's largest factor is the number of pairs, 10
    told = text.split("Told apart at 5 %: ")[1].splitlines()[0]
    assert re.match(r"10 of 10 pairs; from attention: .*hydra \(p = 0.0[\d.]+\)", told)
    assert (tmp_path / "report" / "ranks.png").stat().st_size > 5000
    write_report(tmp_path, matrices=False, pictured=0, nemenyi=True)
    assert "Friedman test, Nemenyi for pairs, over 10 blocks" in (tmp_path / "report" / "report.md").read_text()
    # ten horizons of five data sets are five blocks
    tasks = tuple(dataclasses.replace(task, data=f"d{i // 2}") for i, task in enumerate(study.tasks))
    (tmp_path / "study.json").write_text(json.dumps(dataclasses.replace(study, tasks=tasks).to_json()))
    assert "5 blocks: average ranks only, a test needs at least 6" in text_of(tmp_path)


# ------------------------------------------------------------------ verdicts


def test_a_study_with_a_margin_is_answered_first(tmp_path):
    tasks = tuple(StudyTask("digits", label=f"{data} m", model="m", data=data) for data in ("d1", "d2"))
    study = made_up(tasks=tasks, margin=0.01)
    change = {"attention": 0.0, "identity": 0.0002, "aff": 0.02, "ssd": -0.03, "hydra": 0.004}
    generator = np.random.default_rng(1)
    for run in study.runs():
        noise = 0.0003 * generator.normal()
        lost = run.mixer == "hydra" and run.seed == 1 and run.setting == "d2 m"
        score = 0.4 + change[run.mixer] + noise
        write_run(
            tmp_path, run, score, metric="mse", higher_is_better=False, status="diverged" if lost else "finished",
            error="nan" if lost else None, baselines={},
        )  # fmt: skip
        if run.mixer in ("attention", "aff"):
            write_examples(tmp_path / run.folder, score + 0.001 * generator.normal(size=80), 1)
    (tmp_path / "study.json").write_text(json.dumps(study.to_json()))
    (tmp_path / "sessions").mkdir()
    session = {"started": "", "ended": "", "pending": 1, "ray": False, "jobs": 1, "threads": 1, "command": ""}
    (tmp_path / "sessions" / "1.json").write_text(json.dumps({**session, "margin": 0.05}))
    first, second, third = text_of(tmp_path).split("\n\n")[1:4]
    assert first.startswith("**Equivalent to attention within 1 % on all 2 models and data sets: identity. ")
    assert "Better: ssd. Worse: aff, hydra (1 of 2). Undecided: hydra (1 of 2)." in first
    assert second == "**identity mixes no tokens and is as good as attention: what that reaches here needs no mixing.**"
    assert third == "The margin was changed after runs had been made: it was 5 % then."
    table = pd.read_csv(tmp_path / "report" / "verdicts.csv").set_index(["arm", "data"])
    assert table.loc[("hydra", "d2"), "verdict"] == "undecided: 1 of 3 seeds diverged" and len(table) == 8
    runs = pd.read_csv(tmp_path / "report" / "runs.csv")
    assert len(runs) == 30 and (runs["status"] == "diverged").sum() == 1 and runs["command"].notna().all()
    text = (tmp_path / "report" / "report.md").read_text()
    by_arm = table.reset_index("data").groupby("arm")["on new data, %"].count()
    assert by_arm["aff"] == 2 and by_arm["ssd"] == 0 and "moving-block bootstrap" in text
    assert re.search(r"\| aff \| worse \| \+[\d.]+ \[[^]]*\] \| \[\+4\.\d+, \+5\.\d+\] \|", text)
    assert "Fewer than 6 data sets: no test" in text and re.search(r"\| ssd \| 2 \| -7\.\d+ \|  \| 7\.\d", text)
    assert set(pd.read_csv(tmp_path / "report" / "fev.csv")["model_name"]) == set(FEW)
    page_text = (tmp_path / "report" / "index.html").read_text()
    alt = re.search(r'<img alt="(Forest plot[^"]*)"', page_text)[1]
    assert "margin of 1 % shaded" in alt and "ssd on m, d1" in alt and "better" in alt
    assert page_text.count('type="search"') == 2  # verdicts, and all runs


def test_a_study_without_a_margin_has_no_verdicts(tmp_path):
    write_study(tmp_path, made_up(), levels("digits"))
    assert "Verdict" not in text_of(tmp_path) and not (tmp_path / "report" / "verdicts.csv").exists()


# ------------------------------------------------------------------ sentences


def test_what_the_control_says(tmp_path):
    found = dict.fromkeys(FEW, 0.26) | {"attention": 0.99, "ssd": 0.98}
    write_study(tmp_path, made_up(tasks=(StudyTask("recall"),)), {"recall": found}, spread=0.001)
    for folder in tmp_path.glob("runs/*/*/*/result.json"):
        folder.write_text(folder.read_text().replace('"chance": {"accuracy": 0.1}', '"guess": {"accuracy": 0.26}'))
    (setting,) = collect(tmp_path).settings
    said = " ".join(tables.hints(setting, "attention"))
    assert "reach, in accuracy: guess 0.26" in said
    near = re.search(r"Not clearly better than 'guess' \(0.26\): ([^.]*)\.", said)[1].split(", ")
    assert {"identity", "hydra"} <= set(near) and not {"attention", "ssd"} & set(near)
    control = np.mean(list(setting.scores("identity").values()))
    assert f"identity mixes no tokens and reaches {control:.3g}" in said
    better = said.split("clearly better than identity: ")[1].split(".")[0].split(", ")
    assert set(better) == {"attention", "ssd"}


def test_a_control_below_the_trivial_predictor(tmp_path):
    write_study(tmp_path, made_up(), {"digits": dict.fromkeys(FEW, 0.9) | {"identity": 0.05}})
    text = text_of(tmp_path)
    assert "which is not better than 'chance' (0.1): what comes above that, mixing did; clearly better" in text
    assert "% of the way" not in text


def test_identity_at_the_top_is_said(tmp_path):
    found = {"digits": {"identity": 0.99, "attention": 0.9}}
    write_study(tmp_path, made_up(mixers=("identity", "attention")), found)
    assert "nothing in this table shows that mixing helps" in text_of(tmp_path)


# ------------------------------------------------------------------ unfinished studies


def test_a_study_in_any_state(tmp_path):
    study = made_up()
    found = levels("digits", "recall")
    for mixer in ("aff", "hydra", "ssd"):
        del found["recall"][mixer]
    write_study(tmp_path, study, found)
    for run in study.runs():
        if run.setting == "recall" and run.mixer == "aff":
            status = ("diverged", "failed", "unfinished")[run.seed]
            write_run(tmp_path, run, 0.3, status=status, error={"failed": "RuntimeError: <b>"}.get(status))
    text = text_of(tmp_path)
    assert "30 runs (2 tasks, 5 mixers, 3 seeds): 21 finished, 6 missing, 1 diverged, 1 failed, 1 unfinished." in text
    assert "Not run yet: ssd on recall (3 seeds), hydra on recall (3 seeds)." in text
    assert "| recall | aff | 1 | failed | 120 | RuntimeError: \\<b> |" in text
    assert "Without a score: aff (diverged, failed, unfinished), ssd (missing), hydra (missing)." in text
    assert "aff" not in rows_of(text, "recall") and "aff" in rows_of(text, "digits")
    assert "aff" not in rows_of(text, "Ranks over tasks")
    page_text = (tmp_path / "report" / "index.html").read_text()
    assert "<b>" not in page_text and "&lt;b&gt;" in page_text


def test_a_study_that_has_not_begun(tmp_path):
    write_study(tmp_path, made_up(), {})
    write_report(tmp_path, matrices=False)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "30 missing" in text and text.count("No run is finished.") == 2
    assert [path.name for path in (tmp_path / "report").glob("*.png")] == []


def test_run_folders_without_a_study(tmp_path):
    study = made_up(tasks=(StudyTask("digits"), StudyTask("digits", {"dim": 8}, label="small")), mixers=("attention",))
    for run in study.runs():
        write_run(tmp_path, run, 0.5)
    assert {setting.name for setting in collect(tmp_path).settings} == {"digits", "digits #2"}
    assert "# Runs in " in text_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither"):
        write_report(tmp_path / "empty")
    with pytest.raises(ValueError, match="no folder"):
        write_report(tmp_path / "nowhere")


def test_runs_of_an_earlier_larger_study_stay_in_their_table(tmp_path):
    write_study(tmp_path, made_up(), levels("digits"))
    smaller = dataclasses.replace(made_up(), mixers=("attention",), tasks=(StudyTask("digits"),))
    (tmp_path / "study.json").write_text(json.dumps(smaller.to_json()))
    (setting,) = collect(tmp_path).settings
    assert setting.name == "digits" and len(setting.mixers) == len(FEW)


# ------------------------------------------------------------------ the page and its pictures


class Page(html.parser.HTMLParser):
    """Checks nesting, collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "col", "br", "input"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    write_study(tmp_path, made_up(), levels("digits", "recall"))
    path = write_report(tmp_path, matrices=False)
    assert path == tmp_path / "report" / "index.html"
    text = path.read_text()
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == []
    assert len(parsed.links) == 4 and all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert "@import" not in text and "url(" not in text
    markdown = (path.parent / "report.md").read_text()
    named = re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown)
    assert len(named) == 4 and all((path.parent / name).stat().st_size > 5000 for name in named)
    again = write_report(tmp_path, matrices=False).read_text()
    assert again == text and not list(tmp_path.glob(".tmp-*"))


def test_tables_in_both_formats():
    frame = pd.DataFrame([{"a|b": "x|y", "n": "1"}, {"a|b": "<i>", "n": "22"}])
    block = page.Table(frame, frozenset({"n"}))
    assert page.to_markdown([block]) == "| a\\|b | n |\n| --- | ---: |\n| x\\|y | 1 |\n| \\<i> | 22 |\n"
    text = page.to_html([block], "t")
    assert "&lt;i&gt;" in text and '<div class="wide r2">' in text


def test_a_picture_that_cannot_be_drawn_costs_itself_alone(tmp_path, monkeypatch):
    write_study(tmp_path, made_up(mixers=("identity", "attention")), levels("digits", "recall"))
    real = pictures.cost_picture

    def draw(setting, path):
        if setting.name == "digits":
            raise TypeError("no number")
        return real(setting, path)

    monkeypatch.setattr(pictures, "cost_picture", draw)
    write_report(tmp_path, matrices=False)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "1-digits-cost.png cannot be drawn: TypeError: no number" in text
    assert len(list((tmp_path / "report").glob("*.png"))) == 3


@pytest.mark.parametrize("kind", ["spread", "line", "one place", "two clusters"])
def test_labels_do_not_overlap(kind):
    generator = np.random.default_rng(0)
    count = 8 if kind == "one place" else 16
    x = np.exp(generator.normal(size=count)) * 1e6
    y = generator.random(count)
    if kind == "line":
        y = np.full(count, 0.25)
    if kind == "one place":
        x, y = np.full(count, 1e6), np.full(count, 0.5)
    if kind == "two clusters":
        y = np.where(np.arange(count) < 4, 0.99, 0.25) + 0.002 * generator.random(count)
    figure = Figure(figsize=(5.6, 4.9), dpi=110)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_xscale("log")
    axis.scatter(x, y)
    axis.set_xlim(x.min() / 1.6, x.max() * 1.6)
    axis.set_ylim(y.min() - 0.1, y.max() + 0.1)
    labels = [f"{MIXERS[i % len(MIXERS)]}{i}" for i in range(count)]
    texts = pictures.place_labels(axis, labels, x, y)
    assert sorted(text.get_text() for text in texts) == sorted(labels)
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axis.get_window_extent()
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)
    points = axis.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_learned_matrices_come_from_the_best_weights(tmp_path, monkeypatch):
    import torch

    from matmix.experiments.run import load_model
    from matmix.inspect import matrices

    tiny = StudyTask("digits", {"patch": 4, "dim": 8, "depth": 1}, {"steps": 12, "eval_every": 6, "batch_size": 32})
    study = Study("tiny", (tiny,), ("own", "fails", "identity"), (0,), imports=(ODD,))
    run_study(study, tmp_path, jobs=1, quiet=True)
    drawn = []
    import matmix.inspect.pictures as heat

    def spy(rows, *arguments, **options):
        drawn.extend(panel for row in rows for panel in row)
        return draw(rows, *arguments, **options)

    draw = heat.draw
    monkeypatch.setattr(heat, "draw", spy)
    path = write_report(tmp_path)
    assert (path.parent / "1-digits-matrices.png").stat().st_size > 5000
    by_mixer = {panel.title.split("\n")[0]: panel.entries for panel in drawn}
    assert set(by_mixer) == {"own", "identity"}
    task, model = load_model(tmp_path / "runs/digits/own/seed-0")
    (matrix,) = matrices(model, *task.example()).values()
    torch.testing.assert_close(by_mixer["own"], matrix.to_dense()[0, 0])
    text = (path.parent / "report.md").read_text()
    assert "RuntimeError: on purpose" in text and "matmix train digits --mixer own" in text
    assert f"torch {version('torch')}" in text

    (tmp_path / "runs/digits/own/seed-0/best.safetensors").unlink()
    write_report(tmp_path)
    assert "own: no matrix (ValueError: there is no file of weights" in (path.parent / "report.md").read_text()
