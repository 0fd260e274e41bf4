"""Buckets and packed rows, from the batches of a task to its gradients."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from matmix.experiments import trainer
from matmix.experiments.run import RunConfig, execute
from matmix.experiments.step import accumulate, new_accelerator
from matmix.experiments.task import Batch
from sequence.packing import IGNORED, fitted, pack
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval

LENGTHS = [5, 1, 7, 3, 6, 2]


def padded(dtype: torch.dtype = torch.float64) -> Batch:
    """Sequences (B, L, 2) of numbers that are all different, a number each."""
    x = torch.arange(6 * 7 * 2, dtype=dtype).view(6, 7, 2)
    return Batch(x, torch.arange(6), torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(1))


def test_packed_rows_hold_every_sequence_whole():
    batch = padded()
    rows = fitted(LENGTHS, 9)
    assert sorted(itertools.chain(*rows)) == list(range(6)) and len(rows) == 3
    assert all(sum(LENGTHS[i] for i in row) <= 9 for row in rows)
    packed = pack(batch, 9)
    assert packed.x["x"].shape == (3, 9, 2) and packed.mask.sum() == sum(LENGTHS)
    for row, real, segments, labels in zip(packed.x["x"], packed.mask, packed.x["segments"], packed.y, strict=True):
        for number, label in enumerate(labels.tolist()):
            if label != IGNORED:
                assert torch.equal(row[real & (segments == number)], batch.x[label, : LENGTHS[label]])
    assert sorted(packed.y[packed.y != IGNORED].tolist()) == list(range(6))
    tokens = pack(batch._replace(x=batch.x[..., 0].long(), y=batch.x[..., 1].long()), 9)  # a target a token
    assert (
        torch.equal(tokens.y[tokens.mask], tokens.x["x"][tokens.mask] + 1) and (tokens.y[~tokens.mask] == IGNORED).all()
    )
    with pytest.raises(ValueError, match="packed rows of 6 tokens hold sequences of 1 to 6, got 1 to 7"):
        pack(batch, 6)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ListOps:
    return ListOps(
        length=64, min_length=4, max_length=60, max_depth=4, max_args=4, train_examples=64, val_examples=24,
        test_examples=8, dim=8, depth=2, conv=3, norm="batch", cache=str(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip


def test_packed_and_padded_batches_give_the_same_step(task: ListOps) -> None:
    """Loss, gradients and the statistics of batch norms of one step, and scores."""
    found = {}
    for pad in ("batch", "length", "packed"):
        mine = dataclasses.replace(task, pad=pad)
        model = mine.model("attention(head_dim=4, rotary=True)", 0).double()
        batch = next(mine.batches("train", 16, seed=2))
        found[pad] = [step(mine, model, batch, 1), *(p.grad for p in model.parameters()), *model.buffers()]
        assert mine.weight(batch) == 16
        metric = mine.metrics()["accuracy"]
        model.eval()
        for one in mine.batches("val", 5):
            metric.update(*mine.prediction(mine.forward(model, one), one))
        found[pad].append(metric.compute())
    for pad in ("length", "packed"):
        for one, other in zip(found["batch"], found[pad], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_a_packed_batch_in_parts_gives_the_same_step(task: ListOps) -> None:
    """In more parts than rows too, of which some are then empty; parts have fewer sequences in a row than the whole."""
    mine = dataclasses.replace(task, pad="packed", norm="layer")
    model = mine.model("attention(head_dim=4)", 0).double()
    batch = next(mine.batches("train", 32, seed=2))
    assert 2 < len(batch.mask) < 16 and len({int((row != IGNORED).sum()) for row in batch.y}) > 1
    found = {}
    for parts in (1, 2, 16):
        model.zero_grad()
        found[parts] = [step(mine, model, batch, parts), *(p.grad.clone() for p in model.parameters())]
    for parts in (2, 16):
        for one, other in zip(found[1], found[parts], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def step(task: ListOps, model: torch.nn.Module, batch: Batch, parts: int) -> torch.Tensor:
    return accumulate(new_accelerator("no"), task, model, batch, parts, torch.nn.ModuleList()).total


def test_buckets_have_less_padding_and_the_same_examples(task: ListOps) -> None:
    shares = {}
    for buckets in (False, True):
        mine = dataclasses.replace(task, buckets=buckets)
        batches = list(itertools.islice(mine.batches("train", 8, seed=1), 8))
        shares[buckets] = sum(int((~b.mask).sum()) for b in batches) / sum(b.mask.numel() for b in batches)
        again = next(mine.batches("train", 8, seed=1, start=5))
        assert torch.equal(again.x, batches[5].x)
        seen = [
            tuple(row[real].tolist()) for b in mine.batches("val", 5) for row, real in zip(b.x, b.mask, strict=True)
        ]
        assert len(seen) == 24 and len(set(seen)) == len({tuple(r) for r in mine.labelled("val").rows})
    assert shares[True] < shares[False] / 2


def test_a_run_goes_on_in_the_middle_of_an_epoch(task: ListOps, tmp_path, monkeypatch) -> None:
    """Stopped in its second epoch of 64 lists, in packed buckets, and resumed from step 10: the same weights."""
    options = {**dataclasses.asdict(task), "pad": "packed", "buckets": True}
    recipe = {"steps": 14, "batch_size": 8, "checkpoint_every": 5, "eval_every": 20, "accumulate": 2}
    config = RunConfig("listops", "attention(head_dim=4)", 0, options, recipe)
    assert execute(config, tmp_path / "whole").status == "finished"
    real, done = trainer.accumulate, []

    def stop(*arguments):
        done.append(1)
        if len(done) == 13:
            raise OSError("stopped")
        return real(*arguments)

    monkeypatch.setattr(trainer, "accumulate", stop)
    assert execute(config, tmp_path / "again").status == "failed"
    assert execute(config, tmp_path / "again").status == "finished" and len(done) == 13 + 4
    whole, again = ((tmp_path / way / "final.safetensors").read_bytes() for way in ("whole", "again"))
    assert whole == again


def test_what_cannot_be_packed_is_refused(task: ListOps) -> None:
    packed = dataclasses.replace(task, pad="packed")
    with pytest.raises(ValueError, match="Hydra does not keep packed sequences apart"):
        packed.model("hydra(head_dim=4, d_state=2)", 0)
    with pytest.raises(ValueError, match="pairs are not packed"):
        Retrieval(pad="packed")
    with pytest.raises(ValueError, match="must be one of 'batch', 'length', 'packed', got 'row'"):
        dataclasses.replace(task, pad="row")
