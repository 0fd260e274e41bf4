"""The models in what transformers users have around them: Trainer, pipelines, adapters."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn

from matmix.experiments.config import RunConfig
from matmix.experiments.optimizer import new_optimizer
from matmix.experiments.trainer import fit
from sequence.language import MatmixForMaskedLM, MatmixForSequenceClassification, MatmixModel
from sequence.language.data.tokenizer import tokenizer
from sequence.language.mlm import MLM
from sequence.language.trainer import MatmixTrainer
from tests.sequence import written
from tests.sequence.language.test_models import IDS, config
from tests.sequence.test_encoder import moved

pytestmark = pytest.mark.slow


class Listed(torch.utils.data.Dataset):
    """Rows in the order in which they were drawn."""

    def __init__(self, rows: list[dict[str, torch.Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return self.rows[at]


class InOrder:
    """A trainer that takes the rows as they come."""

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class PlainInOrder(InOrder, transformers.Trainer):
    pass


class OursInOrder(InOrder, MatmixTrainer):
    pass


def trained(cls, model, rows, folder, *, batch, optimizer=None, **options):
    """Losses of the steps."""
    given = {"max_grad_norm": 1.0, "lr_scheduler_type": "constant", "learning_rate": 3e-3, **options}
    args = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch, num_train_epochs=1, logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, **given,
    )  # fmt: skip
    optimizers = (None, None)
    if optimizer is not None:
        optimizers = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    trainer = cls(model=model, args=args, train_dataset=Listed(rows), optimizers=optimizers)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainers_agree(tmp_path):
    """transformers' and ours, on the words of one run: one loss curve to 1e-5, also with batches in two parts."""
    text = tmp_path / "train.txt"
    text.write_text("\n".join(written.sentences(300)))
    options = {"data": str(text), "vocabulary": 60, "length": 16, "dim": 16, "depth": 2, "held_out": 20}
    options["cache"] = str(tmp_path / "cache")
    run = RunConfig(
        task="mlm", mixer="hydra(head_dim=8, d_state=4)", seed=0, options=options,
        recipe={"steps": 30, "batch_size": 8, "log_every": 1, "lr": 3e-3, "warmup": 0.0, "schedule": "constant"},
    )  # fmt: skip
    (tmp_path / "ours").mkdir()
    fit(run, tmp_path / "ours")
    logged = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
    wanted = [entry["loss"] for entry in logged if entry.get("split") == "train"]
    assert len(wanted) == 30 and wanted[-1] < wanted[0] - 0.3
    task, recipe = MLM(**options), run.make_recipe()
    rows = []
    for _, batch in zip(range(30), task.batches("train", 8, seed=0), strict=False):
        rows += [{"input_ids": x, "labels": y} for x, y in zip(batch.x["input_ids"], batch.y, strict=True)]
    for parts in (1, 2):
        model = task.model(run.mixer, 0)
        losses = trained(
            PlainInOrder, model, rows, tmp_path / "theirs", batch=8 // parts, gradient_accumulation_steps=parts,
            optimizer=new_optimizer(model, recipe),
        )  # fmt: skip
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(wanted), rtol=0, atol=1e-5)


def test_trainer_does_what_mixers_ask(tmp_path):
    """Codebooks move, their losses are added, steps of state spaces are not decayed and have their own rate."""
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(1, 30, (8, 12))]
    plain, ours = (MatmixForMaskedLM(config(mixer="vq_attention(head_dim=8, codes=4)", depth=1)) for _ in range(2))
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    given = {"batch": 4, "weight_decay": 0.1}
    without = trained(PlainInOrder, plain, rows, tmp_path, **given)
    losses = trained(OursInOrder, ours, rows, tmp_path, **given)
    assert losses[0] > without[0] + 1e-6  # the commitment
    buffers = [name for name, _ in ours.named_buffers() if name in start]
    assert any(not torch.equal(ours.state_dict()[name], start[name]) for name in buffers)
    assert all(torch.equal(plain.state_dict()[name], start[name]) for name in buffers)
    model = MatmixForMaskedLM(config(mixer="ssd(head_dim=8, d_state=4)", depth=1))
    mixer = model.matmix.encoder.blocks[0].mixer
    mixer.optim_settings = {"dt_bias": {"lr": 0.001}}
    args = transformers.TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, report_to=[])
    trainer = MatmixTrainer(model=model, args=args)
    groups = trainer.create_optimizer().param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(mixer.dt_bias)] == (0.001, 0.0)
    assert rates[id(mixer.A_log)] == (args.learning_rate, 0.0)
    assert rates[id(mixer.in_proj.weight)] == (args.learning_rate, 0.1)


def test_fill_mask_in_a_fresh_process(tmp_path):
    """Nothing but the folder and `import sequence.language`: the same words at the same odds."""
    words = tokenizer(str(written.tokenizer(tmp_path / "tokenizer.json")))
    model = moved(MatmixForMaskedLM(config(vocab_size=len(words), length=32))).eval()
    model.save_pretrained(tmp_path / "folder")
    words.save_pretrained(tmp_path / "folder")
    texts = ["the cat sat on the [MASK]", "a [MASK] dog"]
    code = (
        "import json, sys, transformers, sequence.language\n"
        "fill = transformers.pipeline('fill-mask', sys.argv[1], device='cpu')\n"
        "print(json.dumps([fill(text, top_k=4) for text in json.loads(sys.argv[2])]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "folder"), json.dumps(texts)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for text, answers in zip(texts, json.loads(said.splitlines()[-1]), strict=True):
        ids = words(text, return_tensors="pt")
        place = (ids["input_ids"][0] == words.mask_token_id).nonzero().item()
        odds, tokens = model(**ids).logits[0, place].softmax(-1).topk(4)
        assert [answer["token"] for answer in answers] == tokens.tolist()
        torch.testing.assert_close(torch.tensor([answer["score"] for answer in answers]), odds)


def test_lora(tmp_path):
    """An adapter trains, leaves the rest alone, merges to the same answers, and is saved by itself."""
    import peft

    model = moved(MatmixForSequenceClassification(config(num_labels=3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["in_proj", "out_proj"])
    adapted = peft.get_peft_model(model, given)
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    labels, losses = torch.tensor([0, 2]), []
    for _ in range(20):
        loss = adapted(input_ids=IDS, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    base = {name.replace(".base_layer", ""): value for name, value in adapted.base_model.model.state_dict().items()}
    for name, value in before.items():
        if not name.startswith("classifier."):
            assert torch.equal(base[name], value), name
    adapted.eval()
    wanted = adapted(input_ids=IDS).logits
    adapted.save_pretrained(tmp_path)
    fresh = MatmixForSequenceClassification(config(num_labels=3))
    fresh.load_state_dict(before)
    again = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, wanted)
    torch.testing.assert_close(adapted.merge_and_unload().eval()(IDS).logits, wanted)
    assert isinstance(model.matmix, MatmixModel) and isinstance(model.get_input_embeddings(), nn.Embedding)
