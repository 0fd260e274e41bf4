"""Bad calls to the encoder of sequence models and to language models: options, ids, masks, labels, states."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sequence.language as language
from sequence.encoder import Encoder
from sequence.series.models.base import SeriesModel, create_series_model, list_series_models
from tests.campaigns.odd import Call, bent, short, thing

BATCH, LENGTH, WORDS, DIM = 2, 6, 11, 8
MIXERS = ("attention(heads=2)", "attention(heads=2, causal=True)", "hydra(d_state=4)", "fnet", "ponet",
          "gla(heads=2)", "identity")  # fmt: skip
MODELS: dict[str, Any] = {
    name: getattr(language, f"Matmix{name}")
    for name in ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification",
                 "ForCausalLM")
}  # fmt: skip


def calls(seed: int) -> Iterator[Call]:
    """Endless; every kind of call in turn."""
    draw = random.Random(seed)
    kinds = (_encode, _encode, _encode, _on, _on, _configure, _configure, _read, _read, _read, _series)
    while True:
        for kind in draw.sample(kinds, len(kinds)):
            yield kind(draw)


def _quiet(run: Callable[[], Any]) -> Callable[[], Any]:
    def without_gradients() -> Any:
        with torch.no_grad():
            return run()

    return without_gradients


# ------------------------------------------------------------------ the encoder


@cache
def _encoder(mixer: str, values: bool, position: str, head: str, types: int) -> Encoder:
    """Of ids, or of real values of 3 channels."""
    made: Callable[[], nn.Module] = (lambda: nn.Linear(3, DIM)) if values else (lambda: nn.Embedding(WORDS, DIM))
    return Encoder(made, mixer, dim=DIM, depth=1, grid=(LENGTH,), head=head, outputs=4, position=position,
                   type_vocab_size=types).eval()  # type: ignore[arg-type]  # fmt: skip


def _some_encoder(draw: random.Random, *, recurrent: bool = False) -> tuple[Encoder, Tensor]:
    values, position = draw.random() < 0.4, draw.choice(("none", "learned", "sinusoidal"))
    mixer = draw.choice(("attention(heads=2, causal=True)", "gla(heads=2)") if recurrent else MIXERS)
    head = "token" if recurrent else draw.choice(("class", "pair", "token", "forecast"))
    if head == "class" and ("causal" in mixer or "gla" in mixer):
        head = "token"
    encoder = _encoder(mixer, values, position, head, draw.choice((0, 2)))
    x = torch.randn(BATCH, LENGTH, 3) if values else torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % WORDS
    return encoder, torch.stack((x, x), 1) if head == "pair" else x


def _wrong_ids(draw: random.Random, ids: Tensor) -> Any:
    """Ids that are none: out of range, of another shape or kind."""
    if not ids.is_floating_point() and draw.random() < 0.3:
        return ids + draw.choice((-1, -100, WORDS, 2**40))
    return bent(draw, ids)


def _encode(draw: random.Random) -> Call:
    """A forward with a wrong input, mask or segments."""
    encoder, x = _some_encoder(draw)
    option = draw.choice(("x", "x", "mask", "segments", "types"))
    given: dict[str, Any] = {"x": x}
    if option == "x":
        given["x"] = _wrong_ids(draw, x)
    else:
        shape = x.shape[:3] if encoder.read == "pair" else x.shape[:2]
        kinds = {"mask": torch.ones(shape, dtype=torch.bool), "segments": torch.zeros(shape, dtype=torch.int64)}
        given[option] = bent(draw, kinds.get(option, torch.zeros(shape, dtype=torch.int64)))
    method = encoder.encode if option == "types" else encoder.forward
    if option == "types" and encoder.read == "pair":
        given["x"] = x[:, 0]
    return Call(
        f"Encoder.{encoder.read}({option}={short(given[option])})",
        _quiet(lambda: method(**given)),
        (option, "grid", "tokens"),
        (given[option], *_sizes(given[option]), "takes no", "type_vocab_size"),
        _finite(option, given[option], x),
    )


def _sizes(value: Any) -> tuple[str, ...]:
    """Other ways to show a tensor: its smallest number, its length."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_meta or value.layout != torch.strided:
        return ()
    sizes = tuple(f"{size}" for size in value.shape)
    whole = value.numel() and not value.is_complex() and not value.is_floating_point()
    return (*sizes, f"{value.min().item()}") if whole else sizes


def _finite(option: str, value: Any, good: Tensor) -> Callable[[Any], str] | None:
    """What may come back: of tensors of the right kind, something finite. None: nothing may."""
    if value is None:
        return lambda result: ""
    if not isinstance(value, Tensor) or value.is_nested:
        return None
    if option == "x" and value.is_floating_point() != good.is_floating_point():
        return None

    def right(result: Any) -> str:
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        return "" if all(t.is_meta or t.isfinite().all() for t in tensors) else "an output that is not finite"

    return right


def _on(draw: random.Random) -> Call:
    """Token by token: prefill, step and init_state."""
    encoder, x = _some_encoder(draw, recurrent=True)
    way = draw.choice(("init_state", "prefill", "prefill", "step", "step"))
    if way == "init_state":
        batch = thing(draw)
        return Call(f"Encoder.init_state({short(batch)})", lambda: encoder.init_state(batch), ("batch",), (batch,))
    state: Any = encoder.init_state(BATCH)
    token = x[:, 0] if way == "step" else x
    option = draw.choice(("x", "state", "mask", "types") if way == "prefill" else ("x", "state"))
    if option == "x":
        value = token = _wrong_ids(draw, token)
    elif option == "state":
        value = state = _other_state(draw, encoder, state)
    else:
        value = bent(draw, torch.ones(BATCH, LENGTH, dtype=torch.bool if option == "mask" else torch.int64))
    more = {option: value} if option in ("mask", "types") else {}

    def run() -> Any:
        return encoder.step(token, state) if way == "step" else encoder.prefill(token, state=state, **more)

    return Call(
        f"Encoder.{way}({option}={short(value)[:60]})",
        _quiet(run),
        (option, "state", "x"),
        (value, *_sizes(value), *map(str, _shapes(value)), "state", "type_vocab_size"),
        _finite(option, value, x) if isinstance(value, Tensor) else lambda result: "",
    )


def _other_state(draw: random.Random, encoder: Encoder, state: Any) -> Any:
    way = draw.randrange(5)
    if way == 0:
        return thing(draw)
    if way == 1:
        return encoder.init_state(draw.choice((0, 1, 3)))
    if way == 2:
        return _encoder(draw.choice(("attention(heads=2, causal=True)", "gla(heads=2)")), False, "none",
                        "token", 0).init_state(BATCH)  # fmt: skip
    leaves, form = pytree.tree_flatten(state)
    place = draw.choice([at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)])
    leaves[place] = bent(draw, leaves[place])
    return leaves if way == 3 else pytree.tree_unflatten(leaves, form)


def _shapes(value: Any) -> list[Any]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and not leaf.is_nested]


# ------------------------------------------------------------------ language models

SMALL: dict[str, Any] = {"vocab_size": WORDS, "dim": DIM, "depth": 1, "length": LENGTH, "num_labels": 3}
FIELDS = [name for name in inspect.signature(language.MatmixConfig).parameters if name != "kwargs"]
CONFIGS = ("model", "config")


@cache
def _model(name: str, mixer: str, types: int) -> nn.Module:
    return MODELS[name](language.MatmixConfig(mixer=mixer, type_vocab_size=types, seed=0, **SMALL)).eval()


def _configure(draw: random.Random) -> Call:
    """A configuration with one wrong field, and a model of it."""
    name, field = draw.choice(sorted(MODELS)), draw.choice((*FIELDS, "hidden_size", "num_labels", "problem_type"))
    value = thing(draw)
    given: dict[str, Any] = {"mixer": draw.choice(MIXERS), **SMALL, field: value}
    if field == "hidden_size":
        given.pop("dim")
    if field == "mixer":
        given["mixer"] = value = draw.choice((value, "no_mixer", "attention(", "hydra(d_state=0)", "attention, fnet"))

    def run() -> Any:
        with torch.device("meta"):
            return MODELS[name](language.MatmixConfig(**given))

    named = (field, *({"hidden_size": ("dim",), "dim": ("heads",), "heads": ("dim",)}.get(field, ())), "causal")
    return Call(f"{name}.config({field}={short(value)})", run, () if field == "mixer" else named,
                () if field == "mixer" else (value, "causal"), lambda result: "")  # fmt: skip


def _read(draw: random.Random) -> Call:
    """A language model's forward with one wrong argument."""
    name = draw.choice(sorted(MODELS))
    causal = [mixer for mixer in MIXERS if "causal" in mixer or "gla" in mixer]
    model: Any = _model(name, draw.choice(causal if name == "ForCausalLM" else MIXERS), draw.choice((0, 2)))
    ids = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % WORDS
    known = inspect.signature(model.forward).parameters
    labels = ids % 3 if name == "ForTokenClassification" else ids[:, 0] % 3 if "Sequence" in name else ids
    good: dict[str, Any] = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids),
        "segment_ids": ids // 3, "inputs_embeds": torch.randn(BATCH, LENGTH, DIM), "labels": labels,
        "places": ids % 2 == 0, "next_sentence_label": ids[:, 0] % 3, "past_key_values": None, "cache": None,
        "num_items_in_batch": torch.tensor(3),
    }  # fmt: skip
    option = draw.choice([word for word in good if word in known] + ["input_ids"] * 3)
    plain = good[option]
    value = thing(draw) if plain is None else _wrong_ids(draw, plain)
    given = {option: value} if option == "inputs_embeds" else {"input_ids": ids, option: value}
    if option in ("places", "num_items_in_batch"):
        given["labels"] = labels
    aliases = {"input_ids": ("x", "inputs_embeds"), "inputs_embeds": ("x", "input_ids"), "cache": ("past_key_values",),
               "segment_ids": ("sentences", "segments", "index"), "token_type_ids": ("types",),
               "attention_mask": ("mask",),
               "past_key_values": ("cache",), "places": ("labels",), "next_sentence_label": ("labels",)}  # fmt: skip
    return Call(
        f"{name}.forward({option}={short(value)})",
        _quiet(lambda: model(**given)),
        (option, *aliases.get(option, ())),
        (value, *_sizes(value), "type_vocab_size", "one of input_ids"),
        _finite("x" if option == "input_ids" else option, value, ids)
        if option not in ("segment_ids", "num_items_in_batch")
        else _ignored,
    )


def _ignored(result: Any) -> str:
    """Of what some models read and others do not: those that do refuse what is none."""
    return ""


# ------------------------------------------------------------------ models of time series


@cache
def _series_model(name: str) -> SeriesModel:
    return create_series_model(name, length=16, channels=2, horizon=4, marks=3).eval()


def _series(draw: random.Random) -> Call:
    name = draw.choice(list_series_models())
    model, x = _series_model(name), torch.randn(BATCH, 16, 2)
    good = {
        "x": x, "marks": torch.randn(BATCH, 16, 3), "future_marks": torch.randn(BATCH, 4, 3),
        "mask": torch.ones(BATCH, 16, dtype=torch.bool), "observed": torch.ones(BATCH, 16, 2, dtype=torch.bool),
        "start": torch.randn(BATCH, 12, 2),
    }  # fmt: skip
    option = draw.choice(("x", "x", "x", *good))
    value = bent(draw, good[option])
    given = {"x": x, "marks": good["marks"], "future_marks": good["future_marks"], option: value}
    names = (option, "marks", "future_marks")
    return Call(f"{name}.forward({option}={short(value)})", _quiet(lambda: model(**given)), names,
                (value, *_sizes(value)),
                _ignored if option in ("future_marks", "start") else _finite(option, value, good[option]))  # fmt: skip
