"""Image models: against timm's with the same weights, and over resolutions.

    python -m benchmarks.vision [--batch 8] [--threads 1] [--device cpu] [--skip-resolutions] [--out FILE.md]
    python -m benchmarks.vision --compile [--batch 8] [--size 224] [--only NAME ...] [--out FILE.md]

Forward in evaluation mode without gradients, float32, eager. First four models that timm has too, both in one process
with one set of weights, run in turn; their outputs are compared before anything is timed. timm's is measured as its
``create_model`` gives it and once more in channels-last memory. Then throughput and memory over the image size, the
figure of the DFFormer paper (arXiv 2303.03932, figures 5 and 6): batches of about 768 x 768 pixels in all, memory of a
single image. With ``--out`` the second part is drawn too, next to the file, as a PNG.

``--compile`` measures something else: forward and training step, both sides compiled by Inductor, in turn with both
sides eager (see ``benchmarks.compiled``).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import vision
from benchmarks import compiled
from benchmarks.measure import best_times, heading, peak_memory, publish, say, table
from matmix import load_published

# timm's PoolFormer normalises after pooling, its authors' before: here ours does what timm's does.
PAIRS = {"caformer_s18": {}, "convformer_s18": {}, "poolformer_s12": {"final_norm": "pooled"}, "poolformerv2_s12": {}}
OVER_SIZES = ("dfformer_s18", "cdfformer_s18", "gfformer_s18", "caformer_s18", "convformer_s18", "affnet", "raftmlp_s")
SIZES = (224, 384, 512, 768)


def work(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """A forward that has finished when it returns."""

    def run() -> Tensor:
        out: Tensor = model(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        return out

    return run


def peak(model: nn.Module, images: Tensor) -> float:
    """MB that a forward allocates at its highest."""
    forward = work(model, images)
    if images.device.type != "cuda":
        return peak_memory(forward) / 2**20
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def same_weights(name: str, size: int = 224) -> tuple[nn.Module, nn.Module]:
    """Ours and timm's, with timm's weights; matrices are drawn so that signals neither die nor explode."""
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for parameter in theirs.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    head = theirs.get_classifier()
    if hasattr(head, "norm"):
        head.norm.eps = 1e-5  # the authors', and ours; timm's port has 1e-6
    ours = vision.create_model(name, img_size=size, **PAIRS[name]).eval()
    return load_published(ours, theirs.state_dict(), "timm"), theirs


def against_timm(batch: int, device: str, budget: float) -> str:
    """Throughput and memory of ours and timm's."""
    rows, ratios, memory = [], [], []
    images = torch.randn(batch, 3, 224, 224, device=device)
    with torch.no_grad():
        for name in PAIRS:
            ours, theirs = (model.to(device) for model in same_weights(name))
            difference = (ours(images) - theirs(images)).abs().max() / theirs(images).abs().max()
            if difference > 1e-4:
                raise RuntimeError(f"{name}: the outputs differ by {difference:.1e} of the largest")
            first = best_times([work(ours, images), work(theirs, images)], budget, 4, math.inf)
            peaks = peak(ours, images), peak(theirs, images)
            last = theirs.to(memory_format=torch.channels_last)
            (other,) = best_times(
                [work(last, images.contiguous(memory_format=torch.channels_last))], budget, 4, math.inf
            )
            ratios.append(first[1] / first[0])
            memory.append(peaks[1] / peaks[0])
            rows.append(
                (name, *(f"{batch / t:.2f}" for t in (*first, other)), f"{ratios[-1]:.2f}", f"{other / first[0]:.2f}",
                 *(f"{p:.0f}" for p in peaks), f"{memory[-1]:.2f}", f"{difference:.0e}")
            )  # fmt: skip
            say(f"{name}: {ratios[-1]:.2f} times timm's images a second, {memory[-1]:.2f} times less memory")
    columns = ("model", "ours, images/s", "timm", "timm, channels last", "ours / timm", "ours / channels last",
               "ours, MB", "timm, MB", "timm / ours", "largest difference")  # fmt: skip
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"{table(columns, rows)}\n\nGeometric mean of ours / timm: {mean:.2f}, least {min(ratios):.2f}."


def over_resolutions(device: str, budget: float) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Images a second and MB of one image, for every model and size."""
    curves: dict[str, list[tuple[float, float]]] = {}
    with torch.no_grad():
        for name in OVER_SIZES:
            torch.manual_seed(0)
            curves[name] = []
            for size in SIZES:
                model = vision.create_model(name, img_size=size).eval().to(device)
                batch = max(1, SIZES[-1] ** 2 // size**2)
                images = torch.randn(batch, 3, size, size, device=device)
                (seconds,) = best_times([work(model, images)], budget, 3, math.inf)
                curves[name].append((batch / seconds, peak(model, images[:1])))
                say(f"{name} at {size}: {batch / seconds:.2f} images/s, {curves[name][-1][1]:.0f} MB")
    columns = ("model", *(f"{size} px, images/s" for size in SIZES), *(f"{size} px, MB" for size in SIZES))
    rows = [
        (name, *(f"{speed:.2f}" for speed, _ in curve), *(f"{mb:.0f}" for _, mb in curve))
        for name, curve in curves.items()
    ]
    return table(columns, rows), curves


def draw(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Both against the image size, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, index, label in zip(axes, (0, 1), ("images a second", "memory of one image, MB"), strict=True):
        for name, curve in curves.items():
            axis.plot(SIZES, [point[index] for point in curve], marker="o", label=name)
        axis.set(xlabel="image side, pixels", ylabel=label, xscale="log", yscale="log")
        axis.set_xticks(SIZES, [str(size) for size in SIZES], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget", type=float, default=8.0, help="least seconds of each model")
    parser.add_argument("--skip-resolutions", action="store_true")
    parser.add_argument("--compile", action="store_true", help="both sides compiled, and eager, on the CPU")
    parser.add_argument("--size", type=int, default=224, help="side of the images, with --compile")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*PAIRS, *compiled.PLAIN], help="with --compile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.compile:
        if options.device != "cpu" or options.threads != 1:
            parser.error("--compile measures the processor time of one thread on the CPU")
        compiled_models(options)
        return
    if options.only or options.size != 224:
        parser.error("--size and --only go with --compile")
    command = (
        f"python -m benchmarks.vision --batch {options.batch} --threads {options.threads} --device {options.device}"
    )
    parts = ["# Image models", heading(command)]
    parts += ["## Against timm, 224 px", against_timm(options.batch, options.device, options.budget)]
    if not options.skip_resolutions:
        text, curves = over_resolutions(options.device, options.budget / 4)
        parts += ["## Over resolutions", text]
        if options.out:
            picture = options.out.with_suffix(".png")
            draw(curves, picture)
            parts.append(f"![throughput and memory over the image side]({picture.name})")
    report = "\n\n".join(parts) + "\n"
    publish(report, options.out)


def compiled_models(options: argparse.Namespace) -> None:
    """The table of ``--compile``."""
    names = options.only or [*PAIRS, *compiled.PLAIN]

    def pair(name: str) -> tuple[nn.Module, nn.Module]:
        found = same_weights if name in PAIRS else compiled.plain_pair
        return found(name, options.size)

    command = f"python -m benchmarks.vision --compile --batch {options.batch} --size {options.size}"
    command += f" --budget {options.budget:g}" + (f" --only {' '.join(options.only)}" if options.only else "")
    found = compiled.report(names, pair, options.batch, options.size, options.budget)
    publish(f"# Image models, compiled\n\n{heading(command)}\n\n{found}\n", options.out)


if __name__ == "__main__":
    main()
