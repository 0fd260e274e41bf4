"""Checkpoints: what goes in comes out, and damage is found."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open

from matmix.experiments.checkpoint import (
    DamagedCheckpoint,
    load_checkpoint,
    load_latest,
    save_checkpoint,
    write_tensors,
)


def test_nested_state_comes_back_as_it_was(tmp_path):
    tied = torch.randn(4, 3, dtype=torch.float64)
    state = {
        "tensors": {"a.b": tied, "again": tied.mT, "half": torch.randn(2).bfloat16(), "none": torch.zeros(0, 5)},
        "scalar": torch.tensor(7, dtype=torch.int64),
        "by number": {0: {"step": 1.5}, 1: {}},
        "tuple": (0.9, [1, (2, None)]),
        "<odd key>": True,
        "numbers": [1e-300, 0.1 + 0.2, math.inf, -math.inf, 2**70],
    }
    save_checkpoint(tmp_path, 5, state)
    found = load_checkpoint(tmp_path, 5)
    flat_a, flat_b = (torch.utils._pytree.tree_flatten(value) for value in (state, found))
    assert flat_a[1] == flat_b[1]
    for a, b in zip(flat_a[0], flat_b[0], strict=True):
        assert type(a) is type(b)
        assert a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_optimizer_state_continues_exactly(tmp_path):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def steps(layer, optimizer, count, seed):
        torch.manual_seed(seed)
        for _ in range(count):
            layer(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    layer, optimizer = make()
    steps(layer, optimizer, 3, 1)
    save_checkpoint(tmp_path, 3, {"model": layer.state_dict(), "optimizer": optimizer.state_dict()})
    steps(layer, optimizer, 3, 2)
    other, again = make()
    state = load_checkpoint(tmp_path, 3)
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    steps(other, again, 3, 2)
    assert torch.equal(layer.weight, other.weight)


def test_no_pickle_on_disk(tmp_path):
    folder = save_checkpoint(tmp_path, 1, {"weights": torch.ones(2), "betas": (0.9, 0.99)})
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "tensors.safetensors"]
    json.loads((folder / "state.json").read_bytes())
    with safe_open(folder / "tensors.safetensors", "pt") as file:
        assert list(file.keys()) == ["/weights"]
    with pytest.raises(TypeError, match="/model/x is a ndarray"):
        save_checkpoint(tmp_path, 2, {"model": {"x": np.zeros(2)}})


def three(root):
    for step in (10, 20, 30):
        save_checkpoint(root, step, {"weights": torch.full((64,), float(step)), "step": step})
    return root


def test_only_the_newest_are_kept(tmp_path):
    assert sorted(path.name for path in three(tmp_path).iterdir()) == ["step-00000020", "step-00000030"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def alter(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def swap(path):
    path.write_bytes((path.parent.parent / "step-00000020" / path.name).read_bytes())


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [truncate, alter, remove, empty, swap])
def test_damage_is_found_and_the_one_before_is_used(tmp_path, file, damage):
    three(tmp_path)
    damage(tmp_path / "step-00000030" / file)
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(tmp_path, 30)
    with pytest.warns(UserWarning, match="step-00000030 is damaged"):
        step, state = load_latest(tmp_path)
    assert step == 20 and torch.equal(state["weights"], torch.full((64,), 20.0))


def test_every_byte_counts(tmp_path):
    """No single changed byte of either file goes unnoticed, unless it says the same (a space between tokens)."""
    folder = save_checkpoint(tmp_path, 1, {"weights": torch.arange(3.0), "lr": 0.125})
    for path in folder.iterdir():
        data = path.read_bytes()
        for index in range(len(data)):
            changed = bytearray(data)
            changed[index] ^= 0x05
            path.write_bytes(changed)
            with pytest.raises(DamagedCheckpoint):
                load_checkpoint(tmp_path, 1)
        path.write_bytes(data)
    assert load_checkpoint(tmp_path, 1)["lr"] == 0.125


def test_all_damaged_is_none(tmp_path):
    three(tmp_path)
    for step in (20, 30):
        truncate(tmp_path / f"step-{step:08d}" / "tensors.safetensors")
    with pytest.warns(UserWarning) as caught:
        assert load_latest(tmp_path) is None
    assert len(caught) == 2
    assert load_latest(tmp_path / "nothing") is None


def test_going_back_discards_the_damaged_future(tmp_path):
    three(tmp_path)
    alter(tmp_path / "step-00000030" / "tensors.safetensors")
    save_checkpoint(tmp_path, 25, {"weights": torch.ones(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000025"]
    alter(tmp_path / "step-00000025" / "tensors.safetensors")
    save_checkpoint(tmp_path, 25, {"weights": torch.ones(1)})
    assert torch.equal(load_checkpoint(tmp_path, 25)["weights"], torch.ones(1))


def test_tied_weights_are_written_for_each_name(tmp_path):
    weight = torch.randn(2, 2)
    write_tensors(tmp_path / "w.safetensors", {"a": weight, "b": weight})
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("a"), file.get_tensor("b"))
