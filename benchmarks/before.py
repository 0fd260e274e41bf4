"""This tree against another one, such as a worktree of the commit before a change: mixers, and image models.

    git worktree add --detach ../before COMMIT
    python -m benchmarks.before ../before [--only NAME ...] [--threads 1] [--budget 1.0] [--out FILE.md]

Each tree runs in a process of its own that lives through a comparison; the two are told in turn, A B B A, to run one
and the same work, so that a slow spell of the machine meets both. Quoted is before / now of the best times, above 1
where this tree is faster. A ratio outside of 0.95 to 1.05 is timed again with four times the budget, since the best of
many runs converges from above. Before that this tree is timed against itself in the same way: what its ratios differ
from 1 is what the numbers are worth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# The workers run this file with the other tree on their path, so nothing of a tree is imported at the top.
WHAT = {"forward": "forward", "both": "forward and backward"}
MIXER_SIZES = ((8, (14, 14), 320), (4, (1024,), 256))
MODELS = ("caformer_s18", "convformer_s18", "poolformer_s12", "poolformerv2_s12", "dfformer_s18", "gfnet_xs",
          "affnet", "raftmlp_s", "ffnet_1", "activemlp_xt")  # fmt: skip
CLOSE = 1.05


class Case(NamedTuple):
    """One piece of work; a model has no grid."""

    name: str
    batch: int
    grid: tuple[int, ...]
    dim: int

    def __str__(self) -> str:
        if not self.grid:
            return f"{self.name}, batch {self.batch}"
        return f"{self.name} {'x'.join(map(str, self.grid))}x{self.dim}"


# ------------------------------------------------------------------ the worker


def build(case: Case) -> dict[str, Callable[[], object]]:
    """Forward in evaluation mode without gradients, and a forward with backward in training mode."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    module: nn.Module
    if case.grid:
        from matmix import create_mixer

        specs = {"heads": 'heads("attention", "sep_conv")'}
        module = create_mixer(specs.get(case.name, case.name), case.dim, case.grid)
        x = torch.randn(case.batch, math.prod(case.grid), case.dim)
    else:
        import vision

        module = vision.create_model(case.name)
        x = torch.randn(case.batch, 3, 224, 224)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    weights = [p for p in module.parameters() if p.requires_grad]

    def forward() -> None:
        module.eval()
        with torch.no_grad():
            module(x)

    def both() -> None:
        module.train()
        y = module(x.detach().requires_grad_() if case.grid else x)
        if y.requires_grad:
            torch.autograd.grad(y, weights, torch.ones_like(y), allow_unused=True) if weights else None

    return {"forward": forward, "both": both}


def serve(threads: int) -> None:
    """Answer lines of JSON: a case to build, or a piece of work and how many seconds to repeat it for."""
    import torch

    torch.set_num_threads(threads)
    works: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "case" in asked:
            name, batch, grid, dim = asked["case"]
            try:
                works = build(Case(name, batch, tuple(grid), dim))
                answer = 0.0
            except ValueError as error:  # what this tree does not have, or refuses at this size
                print(error, file=sys.stderr, flush=True)
                answer = math.nan
        else:
            work, answer, spent = works[asked["run"]], math.inf, 0.0
            while spent <= asked["seconds"]:
                start = time.perf_counter()
                work()
                elapsed = time.perf_counter() - start
                answer, spent = min(answer, elapsed), spent + elapsed
        print(json.dumps(answer), flush=True)


# ------------------------------------------------------------------ the comparison


class Tree:
    """A process that runs the code of one tree."""

    def __init__(self, folder: Path, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
        # -P: the folder of this file holds a vision.py too
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--serve", "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
        )

    def ask(self, **question: Any) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.process.args} ended with {self.process.wait()}")
        return float(json.loads(answer))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(trees: tuple[Tree, Tree], case: Case, budget: float) -> dict[str, tuple[float, float]]:
    """Best seconds of both trees, by what was run; nothing where a tree does not have it."""
    answers = [tree.ask(case=case) for tree in trees]
    if any(map(math.isnan, answers)):
        return {}
    found = {}
    for what in WHAT:
        best = [math.inf, math.inf]
        for tree in trees:
            tree.ask(run=what, seconds=0.0)
        for share in (1.0, 4.0):
            spent, turn = 0.0, 0
            began = time.perf_counter()
            while turn < 4 or spent < share * budget:
                for index in (0, 1) if turn % 2 == 0 else (1, 0):
                    best[index] = min(best[index], trees[index].ask(run=what, seconds=0.02))
                spent, turn = time.perf_counter() - began, turn + 1
            if 1 / CLOSE < best[0] / best[1] < CLOSE:
                break
        found[what] = (best[0], best[1])
    return found


def cases(only: list[str] | None) -> list[Case]:
    from matmix import list_mixers

    images = {
        "active", "aff", "afno", "channels", "dynamic_filter", "ffnified", "global_filter", "inception", "max_pooling",
        "mlp", "pooling", "raft", "random", "scan", "selective_channel", "selective_token", "sep_conv", "spatial_fc",
        "ss2d", "vim", "local_attention",
    }  # fmt: skip
    mixers = [
        Case(name, *(MIXER_SIZES[0] if name in images else MIXER_SIZES[1]))
        for name in list_mixers()
        if name != "identity"
    ]
    found = [*mixers, *(Case(name, 4, (), 0) for name in MODELS)]
    unknown = set(only or ()) - {case.name for case in found}
    if unknown:
        raise SystemExit(f"nothing is named {', '.join(sorted(unknown))}")
    return [case for case in found if not only or case.name in only]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="folder of the other tree")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of mixers and models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=1.0, help="least seconds of each piece of work")
    parser.add_argument("--controls", type=int, default=6, help="cases that this tree runs against itself first")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.threads)
        return
    if options.before is None or not (options.before / "matmix").is_dir():
        parser.error(f"name the folder of the other tree; there is no matmix in {options.before}")

    from benchmarks.measure import heading, publish, say, table

    here = Path(__file__).resolve().parent.parent
    every = cases(options.only)

    def run(folders: tuple[Path, Path], chosen: list[Case]) -> dict[Case, dict[str, tuple[float, float]]]:
        trees = (Tree(folders[0], options.threads), Tree(folders[1], options.threads))
        found = {}
        for case in chosen:
            found[case] = compare(trees, case, options.budget)
            say(f"{case!s:>34}  " + "  ".join(f"{what} {a / b:.3f}" for what, (a, b) in found[case].items()))
        for tree in trees:
            tree.close()
        return found

    spread = max(1, len(every) // max(1, options.controls))
    control = run((here, here), every[::spread]) if options.controls else {}
    apart = sorted(a / b for times in control.values() for a, b in times.values())
    measured = run((options.before, here), every)
    rows, ratios = [], {what: [] for what in WHAT}
    for case, times in measured.items():
        if not times:
            continue
        row: list[object] = [case]
        for what, (a, b) in times.items():
            ratios[what].append(a / b)
            row += [f"{1e3 * a:.3g}", f"{1e3 * b:.3g}", f"{a / b:.2f}"]
        rows.append(row)
    mean = {what: math.exp(sum(map(math.log, r)) / len(r)) for what, r in ratios.items()}
    means = ", ".join(f"{WHAT[what]} {mean[what]:.3f} (least {min(r):.2f})" for what, r in ratios.items())
    columns = ["", *(word for what in WHAT for word in (f"{WHAT[what]}, ms: before", "now", "before / now"))]
    shas = [_revision(folder) for folder in (options.before, here)]
    parts = [
        "# Now against before",
        heading("python -m " + " ".join(["benchmarks.before", *sys.argv[1:]])),
        f"{shas[0]} before, {shas[1]} now; {options.threads} threads in each process.",
        f"Geometric means over {len(rows)}: {means}.",
    ]
    if apart:
        parts.append(f"This tree against itself, {len(apart)} ratios: {apart[0]:.2f} to {apart[-1]:.2f}.")
    alone = [case.name for case, times in measured.items() if not times]
    if alone:
        parts.append(f"Not in both trees at this size: {', '.join(alone)}.")
    text = "\n\n".join([*parts, table(columns, rows)])
    publish(text + "\n", options.out)


def _revision(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "?"


if __name__ == "__main__":
    main()
