"""Published names of encoders and blocks, as ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

State = dict[str, Tensor]


def block_from_ponet(module: Any, state: State) -> State:
    """A block of the LRA code that Nystromformer and PoNet share: `norm1`, `mha`, `norm2`, `mlpblock`."""
    ours: State = {}
    for theirs, mine in (("norm1", "mixer_norm"), ("norm2", "mlp_norm"), ("mlpblock.0", "mlp.0"),
                         ("mlpblock.3", f"mlp.{len(module.mlp) - 1}")):  # fmt: skip
        ours |= {f"{mine}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    return ours | _mixer_from_ponet(module.mixer, Below(state, "mha."))


def encoder_from_ponet(module: Any, state: State) -> State:
    """The whole classifier: learned positions, blocks, a norm, a head with one hidden layer."""
    names = {"embedding.weight": "model.embeddings.word_embeddings.weight"}
    names |= {"position": "model.embeddings.position_embeddings.weight"}
    for kind in ("weight", "bias"):
        names |= {f"norm.{kind}": f"model.norm.{kind}"}
        names |= {f"head.{layer}.{kind}": f"seq_classifer.mlpblock.{layer}.{kind}" for layer in (0, 2)}
    ours = {mine: state[theirs] for mine, theirs in names.items()}
    for index, block in enumerate(module.blocks):
        part = block_from_ponet(block, Below(state, f"model.transformer_{index}."))
        ours |= {f"blocks.{index}.{name}": value for name, value in part.items()}
    return ours


def _mixer_from_ponet(mixer: nn.Module, state: State) -> State:
    if next(mixer.parameters(), None) is None:
        for name in state:  # FNet: its checkpoint has projections all the same, which nothing there reads
            state[name]
        return {}
    ours = type(mixer).published["lxchtan/PoNet"](mixer, state)  # type: ignore[attr-defined]
    return {f"mixer.{name}": value for name, value in ours.items()}


class Below(dict[str, Tensor]):
    """The entries below a prefix, without it. Asking for one asks the whole, which notices what nobody asks for."""

    def __init__(self, whole: State, prefix: str) -> None:
        super().__init__({n.removeprefix(prefix): dict.__getitem__(whole, n) for n in whole if n.startswith(prefix)})
        self.whole, self.prefix = whole, prefix

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(self.prefix + name)
        return self.whole[self.prefix + name]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]
