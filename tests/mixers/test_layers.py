"""What people hang on layers acts on the layers of every mixer: adapters, pruning, quantisation, norms, offloading."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

import matmix
from matmix.mixers.base import Mixer
from matmix.testing import MixerCase, apply_law, layer_laws
from matmix.testing.check import factory_of, mixer_cases, traits_of
from matmix.testing.compare import close
from tests.laws import mixer_names, variants

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)
CAUSAL = [name for name in variants() if "causal=True" in name]


def case_of(name: str, width: int = 1) -> MixerCase:
    """A mixer on an image where it takes one, else on a sequence."""
    info = matmix.mixer_info(name)
    factory, dim = factory_of(info)
    return mixer_cases(factory, width * dim, info.traits, "compiles")[-1]


def layers_of(mixer: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    return {name: module for name, module in mixer.named_modules() if isinstance(module, kinds or KINDS)}


WITH_WEIGHTS = [name for name in mixer_names() if next(case_of(name).build().parameters(), None) is not None]
WITH_LAYERS = [name for name in mixer_names() if layers_of(case_of(name).build())]
WITH_LINEAR = [name for name in mixer_names() if layers_of(case_of(name).build(), nn.Linear)]


def train(mixer: Mixer, case: MixerCase, steps: int = 2) -> None:
    """A few steps of gradient descent."""
    optimizer = torch.optim.SGD([p for p in mixer.parameters() if p.requires_grad], lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        mixer(case.tokens(torch.float32, name=f"step {step}")).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("variant", CAUSAL)
def test_layers_of_causal_mixers(variant: str) -> None:
    factory, (_, dim) = variants()[variant], factory_of(matmix.mixer_info(variant.split("(")[0]))
    case = mixer_cases(factory, dim, traits_of(factory, dim), "compiles")[0]
    for law in (layer_laws.layers_are_called, layer_laws.wrapped_layers, layer_laws.offloaded_layers):
        apply_law(law.__name__, law, case)


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_a_forward_on_the_instance_runs(name: str) -> None:
    case = case_of(name)
    x = case.tokens(torch.float32)
    for size in layer_laws.SIZES.values():
        mixer, called = case.build(torch.float32), set()
        layers = layers_of(mixer)
        for key, layer in layers.items():

            def forward(x: Tensor, key: str = key, inner: Any = layer.forward) -> Tensor:
                called.add(key)  # noqa: B023  # called within the turn
                return inner(x)

            layer.forward = forward
        with torch.no_grad(), layer_laws.fast_from(size):
            mixer(x)
        assert called == layers.keys()


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_a_hook_of_all_modules_sees_every_layer(name: str) -> None:
    case = case_of(name)
    mixer, x = case.build(torch.float32), case.tokens(torch.float32)
    for size in layer_laws.SIZES.values():
        seen: set[nn.Module] = set()
        handle = register_module_forward_hook(lambda module, *_, seen=seen: seen.add(module))
        try:
            with torch.no_grad(), layer_laws.fast_from(size):
                mixer(x)
        finally:
            handle.remove()
        assert {*layer_laws.owners(mixer).values()} <= seen


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_pruned_layers_train(name: str) -> None:
    case = case_of(name)
    mixer = case.build(torch.float32).train()
    for layer in layers_of(mixer).values():
        prune.random_unstructured(layer, "weight", 0.5)
    train(mixer, case)
    for layer in layers_of(mixer).values():
        weight, kept = layer.weight, layer.weight_mask
        assert isinstance(weight, Tensor) and bool((weight[kept == 0] == 0).all())
    pruned, x = mixer.eval(), case.tokens(torch.float32)
    expected = pruned(x)
    for layer in layers_of(mixer).values():
        prune.remove(layer, "weight")
    close(expected, mixer(x), "pruned")


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_weight_normed_layers_train(name: str) -> None:
    case = case_of(name)
    mixer, x = case.build(torch.float32), case.tokens(torch.float32)
    normed = copy.deepcopy(mixer)
    for layer in layers_of(normed).values():
        parametrizations.weight_norm(layer)
    close(normed(x), mixer(x), "weight norm")
    train(normed.train(), case)
    after = normed.eval()(x)
    for layer in layers_of(normed).values():
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    close(normed(x), after, "after training")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantized.*:UserWarning")
@pytest.mark.parametrize("name", WITH_LINEAR)
def test_dynamically_quantised_layers_run(name: str) -> None:
    case = case_of(name)
    mixer, x = case.build(torch.float32), case.tokens(torch.float32)
    rounded = torch.ao.quantization.quantize_dynamic(copy.deepcopy(mixer), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(layer) is nn.Linear for layer in rounded.modules())
    with torch.no_grad():
        out, expected = rounded(x), mixer(x)
        if name not in CHOOSES:
            error = float((out - expected).norm() / expected.norm())
            assert error < 0.2, f"off by {error:.2g}"
        rounded.matrix(x).to_dense()
        if mixer.traits.recurrent:
            token = case.flat().tokens(torch.float32)[:, 0]
            rounded.step(token, rounded.init_state(len(token)))


CHOOSES = {"vq_attention": "a key of another code", "longvq": "a key of another code"}
"""Mixers in which rounding may turn a choice over, and what."""


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")
@pytest.mark.parametrize("name", WITH_LAYERS)
def test_peft(name: str) -> None:
    """LoRA on every linear layer and convolution acts, trains and merges.

    That of a depthwise convolution (dynamic filters, inception, sep_conv, ss2d and what is made of them) mixes
    channels, so peft itself cannot merge it; it acts and trains.
    """
    peft = pytest.importorskip("peft")
    case = case_of(name)
    mixer, x = case.build(torch.float32), case.tokens(torch.float32)
    before = mixer(x).detach()
    layers = layers_of(mixer)
    grouped = {key for key, layer in layers.items() if getattr(layer, "groups", 1) > 1}
    rank = max([2, *(layers[key].groups for key in grouped)])  # type: ignore[type-var]
    config = peft.LoraConfig(
        r=2, target_modules=sorted(layers), rank_pattern={f"^{key}$": rank for key in grouped}, lora_alpha=4
    )
    model = peft.get_peft_model(mixer, config)
    close(model(x).detach(), before, "a fresh adapter")
    train(model, case)
    adapters = {key: p for key, p in model.named_parameters() if "lora_" in key}
    assert len(adapters) == 2 * len(layers)
    still = [key for key, p in adapters.items() if "lora_B" in key and not bool(p.abs().max() > 0)]
    assert not still, f"nothing is learned by {still}"
    trained = model(x).detach()
    assert not torch.equal(trained, before)
    if grouped:
        with pytest.raises(NotImplementedError, match="groups > 1"):
            model.merge_and_unload()
        return
    shown = mixer.matrix(x).to_dense()
    merged = model.merge_and_unload()
    assert not any("lora" in key for key, _ in merged.named_modules())
    close(merged(x), trained, "merged", tolerance=1e-4)
    close(merged.matrix(x).to_dense(), shown, "the matrix", tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_offloaded_by_accelerate(name: str, where: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    case = case_of(name)
    resident, x = case.build(torch.float32), case.tokens(torch.float32)
    away = case.build(torch.float32)
    if where == "cpu":
        accelerate.cpu_offload(away, execution_device="cpu")
    else:
        accelerate.disk_offload(away, str(tmp_path), execution_device="cpu")
    assert all(p.is_meta for p in away.parameters())
    with torch.no_grad():
        for words, size in layer_laws.SIZES.items():
            with layer_laws.fast_from(size):
                close(away(x), resident(x), f"offloaded to {where}{words}")
