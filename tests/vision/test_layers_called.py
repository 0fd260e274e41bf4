"""Layers of image models are called: what hangs on them, stands in their place or brings their weights acts.

For every family, below and above the sizes from which fast paths pay.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from torch.nn.utils import prune

import vision
from matmix.ops import pieces
from matmix.testing.compare import close
from matmix.testing.layer_laws import Adapted, adapted, fast_from
from matmix.testing.memory_laws import check_memory, overwritten
from tests.vision.families import FAMILIES, SIZE, small

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
# In the quick tests: those with the most code of their own.
SOME = ("affnet", "caformer_s18", "ffnet_3", "inception_former_s")
SOME_QUICK = [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in FAMILIES]
# Containers are no layers: PyTorch gives them no call.
UNCALLED = (nn.ModuleList, nn.ModuleDict)


@contextmanager
def large(yes: bool) -> Iterator[None]:
    """Inside, inputs count as large, or as small: fast paths are taken always or never."""
    size = patch.object(pieces, "piece_bytes", lambda each=0: 0 if yes else 2**60)
    with fast_from(0 if yes else 2**60), size:
        yield


def images(dtype: torch.dtype = torch.float32, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def built(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small model whose weights are moved, so that none is zero; batch norms have statistics of their own."""
    torch.manual_seed(0)
    model = small(name).to(dtype)
    with torch.no_grad():
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return model.eval()


def kinds(model: nn.Module) -> list[str]:
    """One module of each kind: of those of one class that stand under one name in one class, the first."""
    found: dict[tuple[object, ...], str] = {}
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        place = (type(model.get_submodule(parent)), last if not last.isdigit() else "", type(module))
        found.setdefault(place, name)
    return list(found.values())


def test_every_class_of_models_has_a_small_one() -> None:
    classes = {vision.model_info(name).cls for name in vision.list_models()}
    assert classes == {vision.model_info(name).cls for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_hooks_fire(name: str) -> None:
    """On every module with parameters, its own or below; with the whole batch where the input has it."""
    for size, train in ((False, False), (True, False), (True, True)):
        model, seen = built(name).train(train), set[str]()
        wanted = {
            n for n, m in model.named_modules() if not isinstance(m, UNCALLED) and any(True for _ in m.parameters())
        }
        for part in wanted:
            model.get_submodule(part).register_forward_hook(lambda *_, part=part, seen=seen: seen.add(part))
        with torch.no_grad(), large(size):
            model(images())
        assert not wanted - seen, f"not called: {sorted(wanted - seen)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_hook_alone(name: str) -> None:
    """One hook fires, and is given as many samples as a hook among hooks; what it returns is what counts."""
    with torch.no_grad(), large(True):
        for part in kinds(built(name)):
            model = built(name)
            module, seen = model.get_submodule(part), list[tuple[int, ...]]()
            if isinstance(module, UNCALLED) or not any(True for _ in module.parameters()):
                continue
            plain = model(images())

            def moved(_: nn.Module, args: object, out: object, seen: list[tuple[int, ...]] = seen) -> object:
                if not isinstance(out, Tensor):
                    return seen.append(())
                seen.append(tuple(out.shape))
                return out + torch.linspace(1, 2, out.numel()).view(out.shape)

            module.register_forward_hook(moved)
            changed = model(images())
            assert seen, f"{part} is not called"
            assert seen == [()] or not torch.equal(changed, plain), f"what a hook makes of {part} is not used"
            first = seen.copy()
            seen.clear()
            for other in model.modules():
                other.register_forward_hook(lambda *_: None)
            model(images())
            assert seen == first, f"{part} alone is called with {first}, among hooks with {seen}"


@pytest.mark.parametrize("name", FAMILIES)
def test_adapted_layers(name: str) -> None:
    """``layer(x) + delta(x)`` for every linear layer and convolution does what the merged weights do."""
    model, merged, pairs = adapted(built(name, torch.float64))  # type: ignore[type-var, arg-type]
    x, results = images(torch.float64), []
    for each in (model, merged):
        image = x.clone().requires_grad_()
        out = each(image)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append((out.detach(), image.grad))
    scale = torch.stack([whole.grad.abs().max() for _, _, whole in pairs if whole.grad is not None]).max()
    close(results[0][0], results[1][0], "forward")
    close(results[0][1], results[1][1], "the gradient of the images")
    for place, own, whole in pairs:
        assert own.grad is not None and whole.grad is not None, f"what is beside {place} gets no gradient"
        close(own.grad, whole.grad, f"the gradient of what is beside {place}", scale=scale)
    model, merged = model.float(), merged.float()
    with torch.no_grad(), large(True):
        close(model(x.float()), merged(x.float()), "forward, large")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_alone(name: str) -> None:
    """One adapter among plain layers, for every kind of place."""
    plain = built(name)
    with torch.no_grad(), large(True):
        for place in kinds(plain):
            layer = plain.get_submodule(place)
            if not isinstance(layer, LAYERS):
                continue
            model, merged, delta = copy.deepcopy(plain), copy.deepcopy(plain), copy.deepcopy(layer)
            for parameter in delta.parameters():
                parameter.copy_(torch.randn_like(parameter) * layer.weight.std())
            for own, more in zip(merged.get_submodule(place).parameters(), delta.parameters(), strict=True):
                own.add_(more)
            parent, _, last = place.rpartition(".")
            setattr(model.get_submodule(parent), last, Adapted(copy.deepcopy(layer), delta))
            expected = merged(images())
            close(model(images()), expected, place, scale=terms(expected))


def terms(logits: torch.Tensor) -> float:
    """The scale of their errors: logits are sums of terms of about 1 that may cancel."""
    return max(1.0, logits.abs().max().item())


@pytest.mark.parametrize("name", SOME_QUICK)
def test_offloaded_to_disk(name: str, tmp_path: Path) -> None:
    model = built(name)
    with torch.no_grad():
        expected = model(images())
        scale = terms(expected)
        away = disk_offload(copy.deepcopy(model), tmp_path, execution_device=torch.device("cpu"))
        for size in (False, True):
            with large(size):
                close(away(images()), expected, f"offloaded to disk, {'large' if size else 'small'}", scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_offloaded_to_memory(name: str) -> None:
    model = built(name)
    with torch.no_grad(), large(True):
        expected = model(images())
        away = cpu_offload(copy.deepcopy(model), torch.device("cpu"))
        close(away(images()), expected, "offloaded", scale=terms(expected))


@pytest.mark.parametrize("name", SOME_QUICK)
def test_lora(name: str) -> None:
    """An adapter on every linear layer and convolution: each moves in a step of training, and merges, but for grouped
    convolutions, which peft cannot merge."""
    peft = pytest.importorskip("peft")
    model = built(name)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LAYERS)}
    # A grouped convolution has an adapter of as many groups.
    ranks = {n: m.groups for n, m in layers.items() if getattr(m, "groups", 1) > 1}
    config = peft.LoraConfig(
        r=2,
        target_modules=list(layers),
        rank_pattern={f"^{n}$": rank for n, rank in ranks.items()},
        init_lora_weights=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(model, config)
    tuned.eval()
    assert sum(p.requires_grad for p in tuned.parameters()) == 2 * len(layers)
    optimiser = torch.optim.SGD(tuned.parameters(), 1e-3)
    tuned(images()).square().sum().backward()
    still = [n for n, p in tuned.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not still, f"no gradient: {still}"
    optimiser.step()
    for place in ranks:
        parent, _, last = place.rpartition(".")
        setattr(model.get_submodule(parent), last, layers[place])
    with torch.no_grad():
        expected = {size: _at(size, tuned) for size in (False, True)}
        merged = tuned.merge_and_unload()
        assert not any("lora" in n for n, _ in merged.named_parameters())
        for size, out in expected.items():
            close(_at(size, merged), out, f"merged, {'large' if size else 'small'}")


def _at(size: bool, model: nn.Module) -> Tensor:
    with large(size):
        return model(images())


@pytest.mark.parametrize("name", SOME_QUICK)
def test_pruned_and_quantised(name: str) -> None:
    """A pruned model trains for two steps (its weights are made anew before each call) and is what it is when pruning
    is made permanent; its linear layers may be quantised."""
    model = built(name)
    for module in model.modules():
        if isinstance(module, LAYERS):
            prune.l1_unstructured(module, "weight", 0.3)
    optimiser = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(2):
        optimiser.zero_grad()
        model(images()).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        out = model(images())
        for module in model.modules():
            if isinstance(module, LAYERS):
                prune.remove(module, "weight")
        close(model(images()), out, "pruned for good")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small8 = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        error = (small8(images()) - out).norm() / out.norm()
        assert error < 0.2, f"quantised: off by {error:.2g}"


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_overwritten(name: str) -> None:
    """What hooks keep, and what a model gives, stays as it was."""
    model = built(name)
    check_memory(model, images(), names=())
    with torch.no_grad(), large(True):
        last, maps = model.eval().forward_intermediates(images())  # type: ignore[operator]
        kept = [t.clone() for t in (last, *maps)]
        model.forward_head(last)  # type: ignore[operator]
        model(images())
        assert all(torch.equal(a, b) for a, b in zip((last, *maps), kept, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_overwritten_with_one_hook(name: str) -> None:
    model = built(name)
    for size in (False, True):
        with large(size):
            check_memory(model, images(), names=kinds(model))
    frozen = built(name).requires_grad_(False)
    assert not overwritten(list(frozen.named_modules()), lambda: frozen(images()))


def test_pieces_are_for_models_in_use_that_nobody_looks_into() -> None:
    """The statistics of a batch are those of the whole batch, and hooks see it whole."""
    torch.manual_seed(0)
    block = built("affnet").stages[1].blocks[0]  # type: ignore[union-attr, index]
    x = torch.randn(4, 5, 6, 8)
    whole, parts = copy.deepcopy(block), copy.deepcopy(block)
    with torch.no_grad():
        expected = whole(x)
        with large(True):
            close(parts(x), expected, "in pieces")
            seen: list[int] = []
            parts.depthwise.register_forward_hook(lambda module, args, out: seen.append(len(out)))
            parts(x)
            assert seen == [4]
        whole.train()(x)
        parts = copy.deepcopy(block).train()
        with large(True):
            parts(x)
        torch.testing.assert_close(whole.state_dict(), parts.state_dict())
