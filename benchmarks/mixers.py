"""Every mixer against the plain way to write it and against installable peers, same weights, same process.

    python -m benchmarks.mixers [--only NAME ...] [--against plain|peers] [--budget 1.0] [--profile] [--graphs]
        [--out FILE.md]

Forward in evaluation mode without gradients, and forward plus backward in training mode (gradients of the tokens and
all parameters). Outputs are compared before anything is timed. Float32; a GPU is used where there is one. Ratios near
one are timed longer. ``--profile`` shows where the time goes, in ours and theirs, wherever ours is slower; ``--budget``
scales the time that is spent on measuring. ``--graphs`` times CUDA graphs of both sides, replayed: what the GPU takes,
without the Python that starts its kernels one by one.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import best_times, exponent, heading, operations, peak_memory, say, table
from benchmarks.peers import MISSING, peers_of
from benchmarks.plain import FORMS
from matmix import create_mixer, list_mixers

Grid = tuple[int, ...]
Size = tuple[int, Grid, int]  # batch, grid, dim

IMAGES: tuple[Size, ...] = ((8, (14, 14), 320), (8, (56, 56), 64))
SEQUENCES: tuple[Size, ...] = ((4, (1024,), 256), (4, (4096,), 256))

# Where a mixer is measured, if not on the sequences.
_IMAGES = (
    "active aff afno dynamic_filter ffnified global_filter inception max_pooling mlp pooling raft random scan "
    "selective_token sep_conv spatial_fc ss2d vim"
)
SIZES: dict[str, tuple[Size, ...]] = {
    **dict.fromkeys(_IMAGES.split(), IMAGES),
    "attention": IMAGES + SEQUENCES,
    "dense": (*IMAGES[:1], *SEQUENCES[:1]),
    "fnet": IMAGES + SEQUENCES,
    # What the plain way keeps for the backward grows with the square: 2.7 and 4.7 GB at L = 1024.
    **dict.fromkeys(("cauchy", "vandermonde"), ((4, (256,), 256), SEQUENCES[0])),
}
SPECS = {"heads": 'heads("attention", "sep_conv")'}
SLOW = 2.0  # seconds from which two runs are enough: the one that is checked, which meets new memory, and another
CLOSE = 1.1  # ratios up to which, either way, times are taken for longer
DIRECTION = {"forward": "forward", "both": "forward and backward"}
AGAINST = ("plain", "peers")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOTHING = {"identity"}  # does nothing: there is no other way to write it


class Work(NamedTuple):
    """One implementation, ready to run."""

    label: str
    forward: Callable[[], Tensor]
    both: Callable[[], Any]  # forward and backward
    seconds: dict[str, float]  # of the last run of each
    untimed: dict[str, Callable[[], Any]]  # forward and both as they are


class Result(NamedTuple):
    """One comparison."""

    mixer: str
    size: Size
    against: str
    forward: tuple[float, float]  # seconds, ours and theirs
    both: tuple[float, float]
    memory: tuple[int | None, int | None]  # bytes that forward and backward add
    controls: tuple[float, ...]  # ours over ours, of the directions where theirs is close
    profile: str  # a table of operations, where it is asked for and ours is slower


def _work(label: str, module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> Work:
    """Forward and backward of a function of ``x`` on the weights of a module."""
    weights = [p for p in module.parameters() if p.requires_grad]
    gradient = torch.ones_like(x)  # it lies in memory as the tokens do: the skip around the mixer adds them

    def forward() -> Tensor:
        module.eval()
        return run(x)

    def both() -> Any:
        module.train()
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = run(leaf)
            found = torch.autograd.grad(y, [leaf, *weights], gradient, allow_unused=True)
        return y.detach(), found

    return _timed(label, {"forward": forward, "both": both})


def _timed(label: str, untimed: dict[str, Callable[[], Any]]) -> Work:
    seconds: dict[str, float] = {}

    def timed(what: str) -> Callable[[], Any]:
        def run() -> Any:
            start = time.perf_counter()
            found = untimed[what]()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds[what] = time.perf_counter() - start
            return found

        return run

    return Work(label, timed("forward"), timed("both"), seconds, untimed)


def _replayed(work: Work) -> Work:
    """The same work as CUDA graphs."""

    def captured(run: Callable[[], Any]) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad():
            with torch.cuda.stream(stream):  # whatever a first run does stays out of the graph
                for _ in range(2):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
        return graph.replay

    return _timed(work.label, {what: captured(run) for what, run in work.untimed.items()})


def _check(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-3) -> None:
    error = float((ours - theirs).norm() / theirs.norm())
    if not error < tolerance:
        raise AssertionError(f"{what}: outputs differ by {error:.2g} of their norm")


def works(name: str, size: Size, against: tuple[str, ...] = AGAINST) -> list[Work]:
    """Ours first, then the plain way, then the peers; each checked against ours."""
    batch, grid, dim = size
    torch.manual_seed(0)
    mixer: Any = create_mixer(SPECS.get(name, name), dim, grid).to(DEVICE)
    x = torch.randn(batch, math.prod(grid), dim, device=DEVICE)
    with torch.no_grad():
        for parameter in mixer.parameters():  # fresh weights are often zero, and nothing would be compared
            parameter += 0.02 * torch.randn_like(parameter)
        found = [_work("ours", mixer, mixer, x)]
        if name in FORMS and "plain" in against:
            form = FORMS[name]
            found.append(_work("plain", mixer, lambda t: form(mixer, t, grid), x))
        reference = found[0].forward()
        for work in found[1:]:
            _check(reference, work.forward(), f"{name} {work.label}")
        if len(found) > 1:  # in training mode, where batch norms and codebooks move
            state = copy.deepcopy(mixer.state_dict())
            ours, ours_grads = found[0].both()
            mixer.load_state_dict(state)
            plain, plain_grads = found[1].both()
            mixer.load_state_dict(state)
            _check(ours, plain, f"{name} in training")
            _check(ours_grads[0], plain_grads[0], f"{name} gradient of the tokens", 2e-2)
        for peer in peers_of(name, mixer, grid) if "peers" in against else ():
            module = peer.module.to(DEVICE)
            work = _work(peer.label, module, peer.run, peer.enter(x))
            _check(reference, peer.leave(work.forward()), f"{name} {peer.label}", peer.tolerance)
            found.append(work)
    return found


def measure(
    name: str,
    size: Size,
    profile: bool = False,
    against: tuple[str, ...] = AGAINST,
    budget: float = 1.0,
    graphs: bool = False,
) -> list[Result]:
    """All comparisons of a mixer at one size; with the profiles of those where ours is slower."""
    found = works(name, size, against)
    timed = [_replayed(work) for work in found] if graphs else found
    forward, first = _times(timed, "forward", budget=0.25 * budget, most=3.0 * budget)
    both, second = _times(timed, "both", budget=0.4 * budget, most=6.0 * budget)
    controls = tuple(ratio for ratio in (first, second) if ratio is not None)
    memory = [_peak(work.both) for work in found]
    results = [
        Result(
            name, size, work.label, (forward[0], forward[i]), (both[0], both[i]), (memory[0], memory[i]), controls, ""
        )
        for i, work in enumerate(found)
        if i
    ]
    if profile:
        results = [r._replace(profile=_profile(r, found[0], work)) for r, work in zip(results, found[1:], strict=True)]
    for r in results or [Result(name, size, "-", (forward[0],) * 2, (both[0],) * 2, (memory[0],) * 2, (), "")]:
        say(
            f"{name:>18} {_size(size):<12} {r.against:<32} forward {_pair(r.forward)}  "
            f"both {_pair(r.both)}  MB {_mb(r.memory[0])}/{_mb(r.memory[1])}"
        )
    return results


def _times(found: list[Work], what: str, budget: float, most: float) -> tuple[list[float], float | None]:
    """Seconds of each, in turn; what took long when it was checked is run once more.

    Where ours and another are close, all are timed again and for longer, with ours a second time among them: how far
    its two times lie apart (their ratio) says what a ratio near one means.
    """
    for work in found:
        if what not in work.seconds:
            getattr(work, what)()
    times = [work.seconds[what] for work in found]
    control = None
    quick = [i for i, seconds in enumerate(times) if seconds < SLOW]
    works = [getattr(found[i], what) for i in quick]
    for i, seconds in zip(quick, best_times(works, budget, most=most) if works else [], strict=True):
        times[i] = min(times[i], seconds)
    if 0 in quick and any(1 / CLOSE < times[i] / times[0] < CLOSE for i in quick[1:]):
        *best, again = best_times([*works, works[0]], 4 * budget, most=4 * most)
        control = again / best[0]
        for i, seconds in zip(quick, best, strict=True):
            times[i] = min(times[i], seconds)
    with torch.no_grad():
        for i in set(range(len(found))) - set(quick):
            getattr(found[i], what)()
            times[i] = min(times[i], found[i].seconds[what])
    return times, control


def _profile(r: Result, our_work: Work, their_work: Work, shown: int = 7) -> str:
    """The operations that take most, ours and theirs side by side, of the directions that are slower."""
    parts = []
    for what, ratio in zip(("forward", "both"), _ratios(r), strict=True):
        if ratio >= 1:
            continue
        ours, theirs = (operations(getattr(work, what)) for work in (our_work, their_work))
        names = sorted(ours | theirs, key=lambda key: -max(ours.get(key, 0), theirs.get(key, 0)))[:shown]
        rows = [[f"`{key}`", _ms(ours.get(key, 0)), _ms(theirs.get(key, 0))] for key in names]
        rows.append(["all", _ms(sum(ours.values())), _ms(sum(theirs.values()))])
        title = f"{r.mixer} {_size(r.size)} against {r.against}, {DIRECTION[what]} ({ratio:.2f})"
        parts.append(f"### {title}\n\n{table(['operation', 'ours, ms', 'theirs, ms'], rows)}")
    return "\n\n".join(parts)


def _peak(work: Callable[[], Any]) -> int | None:
    if not torch.cuda.is_available():
        return peak_memory(work)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def growth(name: str) -> float:
    """The exponent of our forward against L, at one width."""
    sizes = SIZES.get(name, SEQUENCES)[-2:]
    dim = min(size[2] for size in sizes)
    if len({size[2] for size in sizes}) == 1 and len({len(size[1]) for size in sizes}) == 1:
        pair = sizes
    else:
        grids = [size[1] for size in IMAGES]
        pair = tuple((8, grid, dim) for grid in grids)
    times = []
    for batch, grid, width in pair:
        torch.manual_seed(0)
        mixer = create_mixer(SPECS.get(name, name), width, grid).to(DEVICE)
        x = torch.randn(batch, math.prod(grid), width, device=DEVICE)
        times += best_times([_work("ours", mixer, mixer, x).forward], budget=0.2)
    return exponent([math.prod(grid) for _, grid, _ in pair], times)


def _size(size: Size) -> str:
    return f"{'x'.join(map(str, size[1]))}x{size[2]}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"


def _pair(times: tuple[float, float]) -> str:
    return f"{_ms(times[0]):>6}/{_ms(times[1]):<6} ({times[1] / times[0]:.2f})"


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def report(results: list[Result], heads: tuple[str, ...]) -> str:
    """A table of comparisons, and the geometric means of their ratios."""
    rows: list[list[object]] = []
    for r in results:
        rows.append(
            [
                *(r.mixer if column == "mixer" else r.against for column in heads),
                _size(r.size),
                *(_ms(t) for t in r.forward),
                f"{r.forward[1] / r.forward[0]:.2f}",
                *(_ms(t) for t in r.both),
                f"{r.both[1] / r.both[0]:.2f}",
                *(_mb(m) for m in r.memory),
            ]
        )
    columns = [*heads, "grid x D", "forward: ours", "theirs", "x", "both: ours", "theirs", "x", "MB: ours", "theirs"]
    forward, both = ([getattr(r, part)[1] / getattr(r, part)[0] for r in results] for part in ("forward", "both"))
    below = [f"{r.mixer} {_size(r.size)} against {r.against}" for r in results if min(_ratios(r)) < 1]
    heavier = [
        f"{r.mixer} {_size(r.size)} against {r.against}"
        for r in results
        if r.memory[0] is not None and r.memory[1] is not None and r.memory[0] > 1.001 * r.memory[1]
    ]
    return (
        f"Geometric means over {len(results)} comparisons: forward {_mean(forward):.2f}, "
        f"forward and backward {_mean(both):.2f}. Slower somewhere: {', '.join(below) or 'none'}. "
        f"More memory, by over 0.1 %: {', '.join(heavier) or 'none'}.\n\n{table(columns, rows)}"
    )


def _ratios(r: Result) -> tuple[float, float]:
    return r.forward[1] / r.forward[0], r.both[1] / r.both[0]


def document(results: list[Result], exponents: list[list[str]]) -> str:
    """The results of the mixers whose exponents are given: what ran where, tables, profiles."""
    plain = [r for r in results if r.against == "plain"]
    peers = [r for r in results if r.against != "plain"]
    parts = [
        heading("python -m " + " ".join(["benchmarks.mixers", *sys.argv[1:]])),
        f"Batch {IMAGES[0][0]} on images, {SEQUENCES[0][0]} on sequences, float32. Milliseconds, the best of runs in "
        "turn; x is theirs over ours, above 1 where ours is faster. MB: peak memory that forward and backward add.",
    ]
    if plain:
        parts += ["## Against the plain way", report(plain, ("mixer",))]
    if peers:
        parts += ["## Against installable peers", report(peers, ("mixer", "peer"))]
    if MISSING:
        parts.append(f"Peers left out, as they are not installed: {', '.join(sorted(MISSING))}.")
    without = [name for name, _ in exponents if name not in FORMS]
    if without:
        parts.append(f"No plain form: {', '.join(without)}.")
    controls = {(r.mixer, r.size): r.controls for r in results}.values()
    apart = sorted(ratio for pair in controls for ratio in pair)
    if apart:
        low, high = (apart[round(share * (len(apart) - 1))] for share in (0.05, 0.95))
        parts.append(
            f"Ours timed against itself, where a ratio is within {CLOSE} of one: 90 % of {len(apart)} such ratios lie "
            f"between {low:.2f} and {high:.2f}; a ratio in there tells nothing."
        )
    profiles = [r.profile for r in results if r.profile]
    if profiles:
        parts += ["## Where the time goes, where ours is slower", "Of one run, in the operation itself.", *profiles]
    parts += ["## Exponent of the forward against L", table(["mixer", "exponent"], exponents)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of mixers")
    parser.add_argument("--against", nargs="+", choices=AGAINST, default=AGAINST, help="both where absent")
    parser.add_argument("--budget", type=float, default=1.0, help="factor of the time spent on measuring")
    parser.add_argument("--profile", action="store_true", help="where the time goes, wherever ours is slower")
    parser.add_argument("--graphs", action="store_true", help="time CUDA graphs of both sides, on a GPU")
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    names = [name for name in list_mixers() if name not in NOTHING and (not options.only or name in options.only)]
    unknown = set(options.only or []) - set(names)
    if unknown:
        parser.error(f"no such mixer: {', '.join(sorted(unknown))}; known: {', '.join(list_mixers())}")

    if options.graphs and DEVICE != "cuda":
        parser.error("--graphs needs a CUDA device, and PyTorch finds none")
    how = (options.profile, tuple(options.against), options.budget, options.graphs)
    results: list[Result] = []
    exponents: list[list[str]] = []
    text = ""
    for name in names:
        results += [r for size in SIZES.get(name, SEQUENCES) for r in measure(name, size, *how)]
        exponents.append([name, f"{growth(name):.2f}"])
        text = document(results, exponents)
        if options.out:  # after each mixer: a run of an hour that is cut off leaves what it measured
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text("# Mixers against the plain way and against peers\n\n" + text + "\n")
    print(text)


if __name__ == "__main__":
    main()
