"""The commands that need no more than the core: list, show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matmix.experiments.cli_words import Parser

Row = tuple[str, ...]


def list_(words: Sequence[str]) -> int:
    """List the mixers (class of matrix, cost, promises, source), or the tasks."""
    parser = _parser("list", list_.__doc__)
    parser.add_argument("--tasks", action="store_true", help="list the tasks instead")
    parser.add_argument("--markdown", action="store_true", help="print the mixers as the table of the README")
    given = parser.parse_args(words)
    from matmix.experiments.plugins import import_named

    import_named(given.imports)
    if given.markdown:
        from matmix.mixers.registry import markdown_table

        print(markdown_table())
    else:
        print(table(task_rows() if given.tasks else mixer_rows()))
    return 0


def mixer_rows() -> list[Row]:
    from matmix.mixers import list_mixers, mixer_info

    rows: list[Row] = [("mixer", "matrix", "cost", "promises", "source")]
    for name in list_mixers():
        info = mixer_info(name)
        traits = info.traits
        promises = [word for word in ("causal", "data_dependent", "recurrent", "aligned") if getattr(traits, word)]
        promises += [f"{traits.length} length", *([f"mask={traits.mask}"] if traits.mask else [])]
        rows.append((name, info.matrix, info.cost, ", ".join(promises).replace("_", " "), info.source))
    return rows


def task_rows() -> list[Row]:
    from matmix.experiments.registry import find_task, list_tasks

    rows: list[Row] = [("task", "metric", "what it is")]
    for name in list_tasks():
        found = find_task(name)
        if isinstance(found, str):  # it cannot be imported, and why
            rows.append((name, "", found))
        else:
            rows.append((name, found.metric, (found.__doc__ or "").strip().partition("\n")[0]))
    return rows


def table(rows: list[Row]) -> str:
    """Rows as text, the columns in line; nothing is cut."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def show(words: Sequence[str]) -> int:
    """Draw the matrices of a freshly made mixer, one panel a head."""
    parser = _parser("show", show.__doc__)
    parser.add_argument("mixer", help='spec, such as "hydra" or "attention(head_dim=16)"')
    parser.add_argument("--out", type=Path, required=True, help="picture; its ending picks the format (png, svg, pdf)")
    parser.add_argument("--dim", type=int, default=64, help="model width D (default: 64)")
    parser.add_argument("--length", type=int, default=64, help="number of tokens L (default: 64)")
    parser.add_argument("--grid", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="instead of a length")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens (default: 0)")
    given = parser.parse_args(words)
    import torch

    from matmix.experiments.plugins import import_named
    from matmix.inspect import show as draw
    from matmix.mixers import create_mixer
    from matmix.ops.seed import fork_seed

    import_named(given.imports)
    grid = tuple(given.grid or (given.length,))
    with fork_seed(given.seed, "mixer"):
        made = create_mixer(given.mixer, given.dim, grid)
    generator = torch.Generator().manual_seed(given.seed)
    x = torch.randn(1, torch.Size(grid).numel(), given.dim, generator=generator)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    print(draw(made, given.out, x, grid=grid))
    return 0


def _parser(command: str, text: str | None) -> Parser:
    parser = Parser(prog=f"matmix {command}", description=text, allow_abbrev=False)
    parser.add_argument(
        "--import", dest="imports", nargs="+", default=(), metavar="FILE",
        help="Python files or modules to import first; they register mixers or tasks",
    )  # fmt: skip
    return parser
