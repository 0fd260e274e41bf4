"""The documentation holds: the site builds without a warning, the code of its pages and examples runs."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import run_script
from tests.test_readme import check_command

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Where the code of a page is run: what it asks for by name is what a reader would have by then.
RUN = """
import re, sys, types
from pathlib import Path
root = Path(sys.argv[1])
for page in sys.argv[2:]:
    module = types.ModuleType("page")
    sys.modules["page"] = module
    for index, code in enumerate(re.findall(r"```python\\n(.*?)```", Path(page).read_text(), re.S)):
        code = re.sub(r'--8<-- "(.*)"', lambda found: (root / found[1]).read_text(), code)
        try:
            exec(compile(code, f"{page}, block {index + 1}", "exec"), module.__dict__)
        except BaseException as error:
            raise SystemExit(f"{page}, block {index + 1}: {type(error).__name__}: {error}")
"""


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_code_of_every_page_runs(tmp_path: Path) -> None:
    """In a process of its own: pages register mixers and tasks, and the registry stays clean here."""
    run(sys.executable, "-c", RUN, str(ROOT), *map(str, PAGES), cwd=tmp_path)


def commands() -> list[str]:
    blocks = (block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S))
    return sorted({line.split("#")[0].strip() for block in blocks for line in block.splitlines() if "matmix " in line})


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("matmix ")])
def test_the_commands_of_the_pages_parse(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    check_command(command, capsys)


LONG = ("study", "hydra_in_a_vit")


@pytest.mark.parametrize(
    "example",
    [pytest.param(path, marks=pytest.mark.slow) if path.stem in LONG else path for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    """As a user runs them: by file, in a folder of one's own."""
    status, said = run_script(example, tmp_path)
    assert status == 0 and said.strip(), said


def test_every_example_says_how_it_is_run() -> None:
    for example in EXAMPLES:
        assert f"python examples/{example.name}" in example.read_text(), example


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkdocs", path=Path(sys.executable).parent) is None, reason="mkdocs: matmix[docs]")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = run(*words, cwd=ROOT)
    assert "WARNING -" not in done.stderr
    pages = {page.stem for page in PAGES} | {f"api/{page.stem}" for page in (ROOT / "docs" / "api").glob("*.md")}
    assert all((tmp_path / "site" / f"{page}.html").is_file() for page in pages)


def test_no_page_loads_anything_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings and not re.search(r"https?://", settings)


@pytest.mark.parametrize("example", sorted((ROOT / "examples/clusters").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_of_clusters_start_workers(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read, and their command is one that this command line knows."""
    yaml = pytest.importorskip("yaml")
    found = re.search(r"matmix\W+study\W+/shared.*?--worker", json.dumps(yaml.safe_load(example.read_text())))
    assert found is not None
    words = re.findall(r"[\w./-]+", found[0])
    assert words == ["matmix", "study", "/shared/mine.toml", "--out", "/shared/mine", "--worker"]
    check_command(" ".join(words), capsys)


def test_shell_lines_of_examples_name_files_that_exist() -> None:
    for page in (*PAGES, *EXAMPLES):
        for name in re.findall(r"examples/\w+\.py", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"


def test_a_page_lists_every_optimizer_that_is_refused() -> None:
    from matmix.experiments.recipe import ELSEWHERE, UNFIT

    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    rows = hooks["on_page_markdown"]((ROOT / "docs" / "add-a-task.md").read_text()).splitlines()
    reasons = {**UNFIT, **{f"{begin}...": library for begin, library in ELSEWHERE.items()}}
    for name, why in reasons.items():
        assert [row for row in rows if f"`{name}`" in row and why in row], name
