"""The average of a site's old matrix over data, which ``mean_matrix`` freezes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from matmix.adapters import Found
from matmix.adapters.discovery import called
from matmix.cost import evaluating
from matmix.surgery.report import Row


def mean_matrices(model: nn.Module, found: Iterable[Found], batches: Iterable[Any]) -> dict[str, Tensor]:
    """The mean matrix ``(H, L, L)`` of each site over all samples of all calls, by name.

    The model runs in eval mode and without gradients, once a batch.

    Raises:
        ValueError: for a site that did not run, that ran at several lengths, or that got padding (whose rows have no
            meaning), with its name.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    handles = []
    for one in found:

        def add(module: nn.Module, args: Any, kwargs: Any, one: Found = one) -> None:
            name, call = one.site.name, one.adapter.read(one.site, args, kwargs)
            if any(mask is not None and not bool(mask.all()) for mask in (call.mask, call.memory_mask)):
                raise ValueError(f"{name}: batches have padding, and the mean of padded matrices means nothing")
            entries = one.attended(args, kwargs).matrix.to_dense()
            if name in sums and sums[name].shape != entries.shape[1:]:
                before, now = tuple(sums[name].shape), tuple(entries.shape[1:])
                raise ValueError(f"{name}: its matrix varies in size, {before} and {now}: it has no mean")
            share = call.tokens.shape[0] // entries.shape[0]  # a matrix without data stands for all samples
            total = share * entries.sum(0).double().cpu()
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + share * entries.shape[0]

        handles.append(one.module.register_forward_pre_hook(add, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for batch in batches:
                called(model, batch, "batches")
    finally:
        for handle in handles:
            handle.remove()
    missing = [one.site.name for one in found if one.site.name not in sums]
    if missing:
        raise ValueError(f"no batch reached {', '.join(missing)}: its matrix has no mean")
    return {name: total / counts[name] for name, total in sums.items()}


def write_means(model: nn.Module, rows: list[Row], found: list[Found], batches: Iterable[Any] | None) -> None:
    """Give the parts of these rows the mean of the matrices that stand in their sites.

    Raises:
        ValueError: without batches, or for a matrix of another size than the part's.
    """
    if batches is None:
        raise ValueError(f"{rows[0].site.name}: mean_matrix is the average of the old matrix over data: give batches=")
    names = {row.site.name for row in rows}
    means = mean_matrices(model, [one for one in found if one.site.name in names], batches)
    for row in rows:
        buffer: Any = next(module.entries for module in row.part.modules() if hasattr(module, "entries"))
        mean = means[row.site.name]
        if buffer.shape != mean.shape:
            want, got = tuple(buffer.shape), tuple(mean.shape)
            raise ValueError(f"{row.site.name}: mean_matrix was built for matrices {want}, the old ones are {got}")
        buffer.copy_(mean)
