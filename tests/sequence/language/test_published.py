"""The published language models: sizes, layers in place, whole models beside transformers' and published formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import language as benchmark
from matmix import create_mixer, load_published
from matmix.mixers.ponet import delimited
from sequence.language import (
    MatmixForMaskedLM,
    MatmixForPreTraining,
    MatmixForSequenceClassification,
    MatmixModel,
    shapes,
)
from tests.fixtures import Fixture, load_fixture

HYDRA, PONET, HF = "goombalab/hydra", "lxchtan/PoNet", "huggingface/transformers"
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
IDS = torch.randint(5, 30, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("config", "model", "count"),
    [
        (shapes.hydra_bert(depth=12), MatmixForMaskedLM, 69_987_738),
        (shapes.hydra_bert(), MatmixForMaskedLM, 112_082_098),
        (shapes.bert(), MatmixForMaskedLM, 109_514_298),
        (shapes.ponet(), MatmixForPreTraining, 124_281_405),
        (shapes.fnet(), MatmixForMaskedLM, 82_894_592),
    ],
    ids=["hydra 12", "hydra 23", "bert", "ponet", "fnet"],
)
def test_published_sizes(config: Any, model: type[nn.Module], count: int) -> None:
    """69.99 M and 112.08 M of Hydra's paper; the others as counted from the published code."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in model(config).parameters()) == count


# ------------------------------------------------------------------ layers


def in_place(model: MatmixModel, hidden: Tensor, **inputs: Any) -> Tensor:
    """What the mixer of the model's first block makes of these tokens, with the masks and segments it gets there."""
    block = model.encoder.blocks[0]
    block.mixer_norm = nn.Identity()  # then a post-norm block without a perceptron gives x + mixer(x)
    block.register_forward_pre_hook(lambda _, inputs: (hidden, *inputs[1:]))
    return model(**inputs).last_hidden_state - hidden


def one_layer(make: Any, dim: int, mixer: str, **fields: Any) -> MatmixModel:
    config = make(dim=dim, depth=1, mixer=mixer, mlp_ratio=0.0, vocab_size=200, **fields)
    return MatmixModel(config, add_pooling_layer=False).double().eval()


def options(fixture: Fixture) -> str:
    ours = {name: value for name, value in fixture.options().items() if name not in ("dim", "use_mem_eff_path")}
    return ", ".join(f"{name}={value!r}" for name, value in ours.items())


HYDRAS = ["d32_L1", "d32_L16", "d32_L2_nocbias", "d32_dtlimit_L9", "d32_expand1_L31", "d48_init_states_bias_L20"]


@pytest.mark.parametrize("case", HYDRAS)
def test_hydra_layers_in_a_model(case: str) -> None:
    """By the names of a whole checkpoint, under the prefix of the library that trained it."""
    fixture = load_fixture(f"sequence/hydra_layer_{case}")
    hidden = fixture.input("u")
    model = one_layer(shapes.hydra_bert, hidden.shape[2], f"hydra({options(fixture)})")
    load_published(model, of_hydra(model, fixture.state()), HYDRA)
    ids = torch.ones(hidden.shape[:2], dtype=torch.int64)
    fixture.check(in_place(model, hidden, input_ids=ids))


def of_hydra(model: nn.Module, layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint around one layer's weights, under composer's prefix."""
    dim, there = model.config.dim, "model.bert.embeddings"
    state = {f"{there}.word_embeddings.weight": torch.randn(model.config.vocab_size, dim),
             f"{there}.token_type_embeddings.weight": torch.randn(2, dim)}  # fmt: skip
    for name in (f"{there}.LayerNorm", "model.bert.encoder.layer.0.layer.norm"):
        state |= {f"{name}.weight": torch.ones(dim), f"{name}.bias": torch.zeros(dim)}
    return state | {f"model.bert.encoder.layer.0.layer.mixer.{name}": value for name, value in layer.items()}


@pytest.mark.parametrize("case", ["cls_mask", "cls_nomask", "plain_mask"])
def test_ponet_layers_in_a_model(case: str) -> None:
    """Delimiters part the segments and stand apart; the plain layer has the segments alone."""
    fixture = load_fixture(f"sequence/ponet_self_{case}")
    ids, apart = fixture.input("input_ids"), fixture.config["clsgsepg"]
    mixer = f"ponet(heads={fixture.config['num_attention_heads']}, proj=False)"
    model = one_layer(shapes.ponet, 16, mixer, **({} if apart else {"delimiters": ()}))
    load_published(model.encoder.blocks[0].mixer, fixture.state(), PONET)
    given: dict[str, Tensor] = {} if apart else {"segment_ids": delimited(ids)[0]}
    if "attention_mask" in fixture.data["inputs"]:
        given["attention_mask"] = fixture.input("attention_mask")
    fixture.check(in_place(model, fixture.input("hidden_states"), input_ids=ids, **given))


@pytest.mark.parametrize("case", ["mask_seg1_L16", "mask_seg8_L16", "nomask_seg4_L17"])
def test_ponet_poolings_in_a_model(case: str) -> None:
    """The poolings alone: what the layer projects to is given."""
    fixture = load_fixture(f"sequence/ponet_core_{case}")
    heads, segments = fixture.config["num_head"], fixture.config["segment_num"]
    query, key, gate = (fixture.input(name).transpose(1, 2).flatten(2) for name in "QKO")
    streams = torch.cat((query, gate, key, fixture.input("segment"), fixture.input("local")), -1)
    mixer = f"ponet(heads={heads}, segments={segments}, padded_segments=True, proj=False)"
    model = one_layer(shapes.ponet, 8, mixer, delimiters=(), pad_to="batch")
    model.encoder.blocks[0].mixer.in_proj.register_forward_hook(lambda *_: streams)
    masked = "attention_mask" in fixture.data["inputs"]
    given = {"attention_mask": fixture.input("attention_mask")} if masked else {}
    ids = torch.ones(query.shape[:2], dtype=torch.int64)
    fixture.check(in_place(model, fixture.input("hidden_states"), input_ids=ids, **given))


def test_the_fourier_layer_in_a_model() -> None:
    fixture = load_fixture("sequence/fnet_mixing")
    hidden = fixture.input("X")
    model = one_layer(shapes.fnet, 6, "fnet")
    fixture.check(in_place(model, hidden, input_ids=torch.ones(hidden.shape[:2], dtype=torch.int64)))


# ------------------------------------------------------------------ whole models


def small(make: Any, **fields: Any) -> Any:
    return make(**{"dim": 16, "depth": 2, "vocab_size": 30, "length": 12, **fields})


def drawn(shapes_of: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 + ("Norm.weight" in name)
            for name, shape in shapes_of.items()}  # fmt: skip


def test_hydras_published_wrapper() -> None:
    """x = norm(x + mixer(x)) on the real tokens alone, which stand among zeros while they are mixed; then BERT's head.
    By default padding has no part in it, which is what the published model gives on texts without padding."""
    mixer = "hydra(d_state=4, head_dim=8)"
    names = {f"layer.mixer.{name}": value.shape for name, value in create_mixer(mixer, 16).state_dict().items()}
    names |= {"layer.norm.weight": (16,), "layer.norm.bias": (16,)}
    heads = {"transform.dense.weight": (16, 16), "transform.dense.bias": (16,), "transform.LayerNorm.weight": (16,),
             "transform.LayerNorm.bias": (16,), "decoder.bias": (30,)}  # fmt: skip
    embeddings = {"word_embeddings.weight": (30, 16), "token_type_embeddings.weight": (2, 16),
                  "LayerNorm.weight": (16,), "LayerNorm.bias": (16,)}  # fmt: skip
    state = drawn(
        {f"bert.embeddings.{name}": shape for name, shape in embeddings.items()}
        | {f"bert.encoder.layer.{i}.{name}": shape for i in range(2) for name, shape in names.items()}
        | {f"cls.predictions.{name}": shape for name, shape in heads.items()}
    )
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, (16,), state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def published(ids: Tensor, mask: Tensor) -> Tensor:
        x = F.embedding(ids, state["bert.embeddings.word_embeddings.weight"])
        x = norm(x + state["bert.embeddings.token_type_embeddings.weight"][0], "bert.embeddings.LayerNorm", 1e-12)
        real = x[mask]
        for i in range(2):
            layer = load_published(
                create_mixer(mixer, 16).double(), part(f"bert.encoder.layer.{i}.layer.mixer."), HYDRA
            )
            padded = torch.zeros_like(x).masked_scatter(mask.unsqueeze(-1), real)
            real = norm(layer(padded)[mask] + real, f"bert.encoder.layer.{i}.layer.norm", 1e-5)
        hidden = F.linear(real, *part("cls.predictions.transform.dense.").values())
        hidden = norm(F.gelu(hidden), "cls.predictions.transform.LayerNorm", 1e-12)
        return hidden @ state["cls.predictions.decoder.weight"].T + state["cls.predictions.decoder.bias"]

    mask = MASK.bool()
    for padding in ("zeros", "masked"):
        model = MatmixForMaskedLM(small(shapes.hydra_bert, mixer=mixer, padding=padding)).double().eval()
        load_published(model, state, HYDRA)
        said = model(IDS, MASK).logits
        if padding == "zeros":
            torch.testing.assert_close(said[mask], published(IDS, mask))
        else:
            alone = published(IDS[1:, :6], mask[1:, :6])
            torch.testing.assert_close(said[1, :6], alone)
            assert (published(IDS, mask)[9:] - alone).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"left over: bert\.encoder\.layer\.1\."):
        load_published(MatmixForMaskedLM(small(shapes.hydra_bert, mixer=mixer, depth=1)), state, HYDRA)
    del state["bert.encoder.layer.1.layer.norm.bias"]
    with pytest.raises(ValueError, match=r"missing: .*layer\.norm\.bias"):
        load_published(model, state, HYDRA)


TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 30,
                        "max_position_embeddings": 12}  # fmt: skip
ATTENTION = "attention(head_dim=8, qkv_bias=True, proj_bias=True)"


def filled(model: nn.Module) -> nn.Module:
    """With drawn weights: as built, biases are 0 and norms 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "fnet"])
def test_transformers_own_models_say_the_same(kind: str) -> None:
    types = torch.tensor([[0] * 4 + [1] * 5] * 2)
    if kind == "bert":
        config = transformers.BertConfig(**TINY, num_attention_heads=2)
        masked, classes = transformers.BertForMaskedLM, transformers.BertForSequenceClassification
        ours, given = small(shapes.bert, mixer=ATTENTION, num_labels=3), {"attention_mask": MASK}
    else:
        config = transformers.FNetConfig(**TINY, type_vocab_size=4)
        masked, classes = transformers.FNetForMaskedLM, transformers.FNetForSequenceClassification
        ours, given = small(shapes.fnet, num_labels=3), {}
    config.num_labels = 3
    real = MASK.bool() if given else torch.ones_like(MASK).bool()
    labels = IDS.masked_fill(~real, -100)
    theirs = filled(masked(config))
    model = load_published(MatmixForMaskedLM(ours).eval(), theirs.state_dict(), HF)
    wanted, said = (m(IDS, token_type_ids=types, labels=labels, **given) for m in (theirs, model))
    torch.testing.assert_close(said.logits[real], wanted.logits[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said.loss, wanted.loss, rtol=1e-5, atol=1e-5)
    some = IDS % 3 == 0
    part = model(IDS, token_type_ids=types, labels=IDS, places=some, **given)
    torch.testing.assert_close(part.logits, model(IDS, token_type_ids=types, **given).logits[some])
    torch.testing.assert_close(part.loss, F.cross_entropy(part.logits, IDS[some]))
    # A file of safetensors has no second name for a tied weight.
    short = {name: value for name, value in theirs.state_dict().items() if ".decoder." not in name}
    assert torch.equal(load_published(MatmixForMaskedLM(ours).eval(), short, HF)(IDS).logits, model(IDS).logits)
    theirs = filled(classes(config))
    model = load_published(MatmixForSequenceClassification(ours).eval(), theirs.state_dict(), HF)
    wanted, said = (m(IDS, token_type_ids=types, **given).logits for m in (theirs, model))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-4)
    bare = load_published(MatmixModel(ours).eval(), getattr(theirs, kind).state_dict(), HF)
    torch.testing.assert_close(bare(IDS).pooler_output, model.matmix(IDS).pooler_output)
    untied = masked(type(config)(**{**config.to_dict(), "tie_word_embeddings": False})).state_dict()
    with pytest.raises(ValueError, match=r"decoder.weight is not the embedding.*tie_word_embeddings=False"):
        load_published(MatmixForMaskedLM(ours), untied, HF)


class Pooled(nn.Module):
    """PoNet's layer where BERT's self-attention stands: the layer itself is held to its fixtures above."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.given = mixer, {}

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return self.mixer.mix_segments(hidden, **self.given), None


def test_ponets_checkpoint() -> None:
    """BERT with another layer, whose checkpoint has both heads and positions as a buffer."""
    ids = torch.tensor([[101, 7, 8, 9, 102, 5, 6, 7, 102], [101, 3, 102, 4, 4, 102, 0, 0, 0]])
    torch.manual_seed(0)
    bert = transformers.BertForPreTraining(
        transformers.BertConfig(**{**TINY, "vocab_size": 110}, num_attention_heads=2)
    )
    bert.cls.seq_relationship = nn.Linear(16, 3)
    segments, special = delimited(ids.masked_fill(~MASK.bool(), -1))
    for layer in bert.bert.encoder.layer:
        layer.attention.self = Pooled(create_mixer("ponet(heads=2, proj=False)", 16))
        layer.attention.self.given = {"index": segments, "special": special, "mask": MASK.bool()}
    filled(bert)
    state = {}
    for name, value in bert.state_dict().items():
        name = name.replace("bert.", "ponet.", 1) if name.startswith("bert.") else name
        if ".in_proj." in name:
            for part, theirs in zip(("q", "o", "k", "segment", "local"), value.chunk(5), strict=True):
                state[name.replace("mixer.in_proj", f"dense_{part}")] = theirs
        else:
            state[name] = value
    state["ponet.embeddings.position_ids"] = torch.arange(12)
    config = small(shapes.ponet, mixer="ponet(heads=2)", vocab_size=110)
    model = load_published(MatmixForPreTraining(config).eval(), state, PONET)
    labels, relation = ids.masked_fill(~MASK.bool(), -100), torch.tensor([2, 0])
    wanted, said = bert(ids, MASK), model(ids, MASK, labels=labels, next_sentence_label=relation)
    real = MASK.bool()
    torch.testing.assert_close(said.prediction_logits[real], wanted.prediction_logits[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said.seq_relationship_logits, wanted.seq_relationship_logits, rtol=1e-4, atol=1e-4)
    words = F.cross_entropy(said.prediction_logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(said.loss, words + F.cross_entropy(said.seq_relationship_logits, relation))
    one = load_published(MatmixForMaskedLM(config).eval(), state, PONET)  # a head is passed over
    torch.testing.assert_close(one(ids, MASK).logits, said.prediction_logits)


def test_the_benchmark_compares_what_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """It loads transformers' weights into ours and holds their losses to each other before it measures."""
    sizes = {"lengths": 8, "tokens": 16, "depth": 1, "dim": 64, "vocabulary": 30, "budget": 0}
    given = {**sizes, "threads": torch.get_num_threads()}
    benchmark.main([word for name, size in given.items() for word in (f"--{name}", str(size))])
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| 8 ")]
    assert [row[2].strip() for row in table] == ["attention", "fnet", "hydra"]
    assert all(float(cell) > 0 for row in table[:2] for cell in row[5:13])
