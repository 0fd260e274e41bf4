"""Imports point down only, and the core is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up: a layer imports itself and those below it. "matmix" is the package itself and what stands on the
# mixers: adapters, inspect, cost, published, sampling, testing; on these stands surgery.
LAYERS = (
    "matmix.ranges",
    "matmix.spec",
    "matmix.arguments",
    "matmix.ops",
    "matmix.matrices",
    "matmix.mixers",
    "matmix",
    "matmix.surgery",
    "matmix.experiments",
)
CORE = {"torch", "numpy", "matmix", *sys.stdlib_module_names}
# What else a module below the experiments may import, inside the function that needs it.
MAY = {
    "matmix.inspect": {"matplotlib"},
    "matmix.surgery.storage": {"safetensors"},
    "matmix.adapters.transformers_interface": {"transformers"},  # which a model that is given has loaded already
    "matmix.adapters.transformers_cache": {"transformers"},
    "matmix.testing.strategies": {"hypothesis"},
    "matmix.ops.scan_triton": {"triton"},  # kernels: modules that no other imports but inside a function
    "matmix.ops.diagonal_scan_triton": {"triton"},
    "matmix.ops.depthwise_triton": {"triton"},
    "matmix.ops.unit_lower_triton": {"triton"},
    "matmix.ops.channel_scan_triton": {"triton"},
    "matmix.ops.gated_triton": {"triton"},
}
# Modules that may know each other: a kernel and its reference, which hands over to it on a GPU; and the base class of
# the matrices, whose operators (+, @, permuted) make objects of the algebra. All within functions.
CIRCLES = (
    {"matmix.ops.diagonal_scan", "matmix.ops.diagonal_scan_triton"},
    {"matmix.ops.channel_scan", "matmix.ops.channel_scan_triton"},
    {"matmix.ops.depthwise", "matmix.ops.depthwise_triton"},
    {"matmix.matrices.base", "matmix.matrices.algebra", "matmix.matrices.dense", "matmix.matrices.permutation"},
)
HEAVY = (
    "timm", "accelerate", "pandas", "matplotlib", "tyro", "rich", "sklearn", "ray", "transformers", "hypothesis",
    "triton",
)  # fmt: skip


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, package: bool) -> Iterator[str]:
    """Every module that a source names in an import, at any depth; ``from a import b`` as ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + (1 if package else 0)]
                base = ".".join([*above, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int:
    """The layer that a module of matmix stands in, by its index."""
    return max((i for i, name in enumerate(LAYERS) if within(module, name)), key=lambda i: len(LAYERS[i]))


def complaint(module: str, imported: str) -> str | None:
    """Why a module may not import another, or None."""
    top = imported.split(".")[0]
    home = module.split(".")[0]
    if top in ("tests", "benchmarks") and top != home:
        return f"{module} imports {imported}: nothing imports {top}"
    if home in ("vision", "sequence") and top in ("vision", "sequence") and top != home:
        return f"{module} imports {imported}: vision and sequence never import each other"
    if home != "matmix":
        return None
    if top in ("vision", "sequence"):
        return f"{module} imports {imported}: matmix finds tasks by entry point"
    if layer(module) < LAYERS.index("matmix.experiments"):
        extra = {name for package, names in MAY.items() if within(module, package) for name in names}
        if top not in CORE | extra:
            return f"{module} imports {imported}: the core knows torch, numpy and the standard library"
        if top == "matmix" and layer(imported) > layer(module):
            return f"{module} imports {imported}: the arrow points up"
    return None


def complaints() -> list[str]:
    found = []
    for package in ("matmix", "vision", "sequence"):
        for path in files(package):
            module = module_of(path)
            for imported in imports(path.read_text(), module, path.name == "__init__.py"):
                problem = complaint(module, imported)
                if problem:
                    found.append(problem)
    return found


def test_no_arrow_points_up() -> None:
    assert complaints() == []


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("matmix.spec", "from matmix.ops.fft import rfft", "the arrow points up"),
        ("matmix.ops.fft", "from matmix.matrices import Dense", "the arrow points up"),
        ("matmix.ops.fft", "import matmix", "the arrow points up"),
        ("matmix.matrices.dense", "from ..mixers.base import Mixer", "the arrow points up"),
        ("matmix.mixers.ssd", "from matmix.inspect import show", "the arrow points up"),
        ("matmix.mixers.ssd", "from matmix.testing import close", "the arrow points up"),
        ("matmix.mixers.ssd", "def f():\n    import timm", "the core knows torch"),
        ("matmix.matrices.dense", "import scipy.fft", "the core knows torch"),
        ("matmix.inspect", "from matmix.experiments.task import Task", "the arrow points up"),
        ("matmix.cost", "from matmix import experiments", "the arrow points up"),
        ("matmix.adapters.base", "from matmix.surgery import find", "the arrow points up"),
        ("matmix.sampling", "from matmix.experiments.task import Batch", "the arrow points up"),
        ("matmix.experiments.study", "from sequence.tasks.digits import Digits", "by entry point"),
        ("matmix.testing.check", "import hypothesis", "the core knows torch"),
        ("matmix.experiments.study", "from vision import models", "by entry point"),
        ("vision.models", "import sequence.lra", "never import each other"),
        ("sequence.encoder", "from tests.fixtures import load_fixture", "nothing imports tests"),
        ("matmix.matrices.dense", "from matmix.ops.cost import Cost\nimport numpy, math", None),
        ("matmix.mixers", "from .base import Mixer", None),
        ("matmix.ops.diagonal_scan", "def f():\n    import triton", "the core knows torch"),
        ("matmix.ops.diagonal_scan_triton", "import triton.language as tl", None),
        ("matmix.inspect", "import matplotlib.pyplot", None),
        ("matmix.experiments.study", "import tyro\nfrom matmix.mixers import Mixer\nfrom matmix import cost", None),
        ("vision.models", "import timm\nfrom matmix.experiments.task import Task", None),
    ],
)
def test_the_rule_itself(module: str, line: str, problem: str | None) -> None:
    package = module in ("matmix.mixers", "matmix")
    found = [text for text in (complaint(module, name) for name in imports(line, module, package)) if text]
    assert (problem is None and not found) or (len(found) == 1 and problem is not None and problem in found[0]), found


def arrows(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Module -> the modules among these that it imports, at any depth; the source goes with whether it is a package."""

    def known(name: str) -> str:
        while name and name not in sources:  # ``from a import b``: b may be a function of the module a
            name = name.rpartition(".")[0]
        return name

    return {
        module: {known(name) for name in imports(source, module, package)} - {"", module}
        for module, (source, package) in sources.items()
    }


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules from each of which every other one can be reached."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reach = {module: reached(module) for module in graph}
    found: list[set[str]] = []
    for module in graph:
        if module in reach[module] and not any(module in circle for circle in found):
            found.append({other for other in reach[module] if module in reach[other]})
    return found


def test_no_imports_run_in_a_circle() -> None:
    packages = ("matmix", "vision", "sequence")
    sources = {
        module_of(path): (path.read_text(), path.name == "__init__.py")
        for package in packages
        for path in files(package)
    }
    found = circles(arrows(sources))
    assert [sorted(circle) for circle in found if circle not in CIRCLES] == []
    assert [sorted(circle) for circle in CIRCLES if circle not in found] == [], "no circle any more: take it out"


def test_the_rule_finds_circles() -> None:
    sources = {"a": ("def f():\n    import a.b", True), "a.b": ("from c import name", False), "c": ("import a", False)}
    assert circles(arrows(sources)) == [{"a", "a.b", "c"}]
    assert circles(arrows({**sources, "c": ("import d", False), "d": ("", False)})) == []


def test_the_experiments_have_no_task_and_no_model_of_their_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    for group in ("matmix.tasks", "matmix.models", "matmix.pictures"):
        assert groups[group] and not any(within(value.split(":")[0], "matmix") for value in groups[group].values())
    for path in files("matmix/experiments"):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            assert not {"nn.Module", "Module"} & set(bases), f"{path.name}: {bases}"
        fields = re.findall(r"\b(?:vision|images?|img_size|pixels?)\b(?!\()", _without_prose(path.read_text()))
        assert not fields, f"{path.name} names {fields}, which only the packages of tasks and models know"


def _without_prose(source: str) -> str:
    """The code of a module alone: names and short strings, no docstrings and comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            node.value = ""
    return ast.unparse(tree)


def test_no_cache_holds_tensors() -> None:
    """One made in inference mode, under a tracer or on a device that is gone would come back everywhere else."""
    cached = [
        (module_of(path), node.name, ast.unparse(node.returns) if node.returns else "Tensor")
        for package in ("matmix/ops", "matmix/matrices", "matmix/mixers")
        for path in files(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and any("cache" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert cached and not [entry for entry in cached if "Tensor" in entry[2]]


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_matmix_loads_no_heavy_package() -> None:
    loaded = _python(
        f"import matmix, sys; matmix.list_mixers();print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert loaded == ""


def test_the_laws_need_torch_alone() -> None:
    loaded = _python(
        "import matmix.testing as t, sys; t.check_mixer('identity', laws=['product']);"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert loaded == ""


BLOCKED = (
    *HEAVY,
    "einops",
    "scipy",
    "datasets",
    "torchmetrics",
    "safetensors",
    "statsmodels",
    "torchvision",
    "PIL",
    "filelock",
)
ONLY_THE_CORE = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
"""


def test_import_matmix_works_with_only_the_core_installed() -> None:
    code = (
        "import matmix, matmix.testing\n"
        "names = matmix.list_mixers()\n"
        "import torch\n"
        "print(len(names), *matmix.create_mixer('identity', 8)(torch.zeros(1, 3, 8)).shape)"
    )
    count, *shape = _python(ONLY_THE_CORE + code).split()
    assert int(count) >= 1 and shape == ["1", "3", "8"]


def test_the_command_with_only_the_core_installed(tmp_path: Path) -> None:
    """`list` works, tasks that need more are listed with what to install, and so do the other commands say."""
    commands = ("list", "list --tasks", f"show pooling --out {tmp_path}/a.png", "train digits --mixer ssd", "report x")
    code = (
        "import contextlib\nfrom matmix.experiments.cli import main\n"
        f"for words in {commands!r}:\n"
        "    print('>', words, flush=True)\n"
        "    try:\n        with contextlib.redirect_stderr(sys.stdout): main(words.split())\n"
        "    except SystemExit as end: print('status', end.code)"
    )
    found = {part.partition("\n")[0]: part for part in _python(ONLY_THE_CORE + code).split("> ")[1:]}
    assert "O(L^2 D" in found["list"] and "status 0" in found["list"]
    tasks = found["list --tasks"]
    assert 'timm is not installed: pip install "matmix[vision]"' in tasks and "status 0" in tasks
    assert any(line.startswith("digits  ") and "which digit" in line.lower() for line in tasks.splitlines())
    for command, module in zip(commands[2:], ("matplotlib", "tyro", "tyro"), strict=True):
        said = f'matmix: {command.split()[0]}: {module} is not installed: pip install "matmix[experiments]"\nstatus 2'
        assert said in found[command]
