"""The encoder of all sequence models here: what stands around a mixer in the studies.

    x = embedding(input)  [+ types] [+ position], as BERT has it through a norm and a dropout
    x = x + mixer(norm(x));  x = x + mlp(norm(x))      for each block, or post-norm
    y = head(pool(norm(x)))

Every part draws its initial weights under its own name, so two encoders that differ in their mixer only agree, bit for
bit, in all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from matmix.mixers import Mixer, layer_specs
from matmix.mixers.base import drop_padding
from matmix.mixers.calls import Input, check_batch, described, explain_inputs, explaining, is_like, likeness
from matmix.mixers.options import checking_options
from matmix.mixers.ponet import delimited
from matmix.ops.masks import in_order, padding_first, padding_last, places, runs
from matmix.ops.seed import fork_seed
from matmix.ops.sizes import LengthError
from matmix.ranges import Amount, Chance, Count, Depth, Positive, Seed, Whole, shown
from sequence.layers.block import Act, Block, BlockOptions, BlockState, Padding
from sequence.layers.embedding import Patches as Patches
from sequence.layers.embedding import Stem, look_up
from sequence.layers.heads import Tied, make_head
from sequence.layers.norms import Norm, make_norm, normed
from sequence.layers.pooling import PAIR_WIDTH, PairFeatures, Pool, pair_features, pool
from sequence.layers.positions import sinusoids
from sequence.published import encoder_from_ponet

Head = Literal["class", "pair", "token", "language", "forecast", "none"]
Position = Literal["none", "learned", "sinusoidal"]


class EncoderState(NamedTuple):
    """What an encoder has read, for `prefill` and `step`."""

    seen: Tensor  # (B,) int64: real tokens so far
    blocks: tuple[BlockState, ...]


class Encoder(nn.Module):
    """Embedding, blocks, norm and head.

    `matmix.load_published(encoder, state, "lxchtan/PoNet")` takes the classifiers of the code for Long Range Arena that
    Nystromformer and PoNet share.

    Args:
        embedding: builds the module that maps the raw input to tokens (B, L, D): `nn.Embedding` for token or byte ids,
            `nn.Linear` for real values (B, L, channels), `Patches` for images.
        mixer: spec of the mixer; a pattern of several is tiled over the depth.
        dim, depth: model width D and number of blocks.
        grid: shape of the token axis, `(L,)` or `(rows, cols)`. Shorter sequences are taken where the mixers take them,
            longer ones where the positions do as well.
        head: "class" reads one vector a sequence, (B, outputs). "pair" reads two sequences that the same blocks have
            read, (B, 2, L, ...) to (B, outputs). "token" reads each token, (B, L, outputs). "language" does so too, to
            say the next token, and refuses mixers that see it. "forecast" reads all tokens of a fixed length L at once.
        outputs: number of classes, logits or forecast steps.
        pool: of "class" and "pair": "mean" over the real tokens, "max", "first" or "last" of them, "cls" (a learned
            token in front), or "padded_mean", which divides by the padded length as Nystromformer's code does.
        pool_norm: normalise the pooled vector. The mean of many tokens is small where they differ; at its own scale
            the head learns in far fewer steps.
        pair_features: what the head reads of two vectors: "concat" [a, b], "difference_product" [a, b, a - b, a * b]
            (S4), "product_difference" [a, b, a * b, a - b] (Nystromformer).
        head_hidden: units of the hidden layers of the head, `(128,)` for one of 128; () for none.
        head_act: their activation.
        tied: "token" and "language" multiply by the token embedding's own weights, without a bias.
        mlp_ratio: hidden width of the channel MLP over D; 0 leaves the MLP out.
        glu: the MLP is a gated unit of that hidden width, `u * act(v)`.
        act: activation of the MLP: "gelu", "relu" or "silu".
        position: "none" (a mixer must know the order by itself), "learned" or "sinusoidal", added to the embedding.
            Rotary positions are the mixer's: `attention(rotary=True)`.
        norm: "layer", "rms", "batch" (over the real tokens of a batch) or "scale" (Mega's).
        prenorm: norms stand before mixers and MLPs, else behind the residual sums.
        final_norm: a norm behind the last block, where blocks are pre-norm; those that are post-norm end with one.
        conv: taps of a short depthwise convolution in front of the mixer, causal where the mixer is, else centred.
        embedding_std: of the initial weights of both embeddings. Small: a block adds more than it finds, so later
            blocks see what earlier ones gathered, and less of the token itself.
        dropout: on the output of each mixer and MLP.
        embedding_dropout: on the embedded tokens.
        hidden_dropout: on the hidden units of the MLP.
        tied_dropout: `dropout` leaves out a channel for the whole sequence (S4, S5).
        padding: "masked": padding has no part in what mixers make of the rest; or they read it as "zeros", which their
            biases fill again, so that results hang on how much there is (Hydra's published models).
        norm_eps: of all norms but that of the embedding; None leaves each norm its own.
        type_vocab_size: kinds of tokens, such as first and second sentence, each with an embedding that is added; 0 for
            none.
        embedding_norm: the embedded tokens pass a layer norm (BERT).
        embedding_projection: and then a linear layer (FNet).
        delimiters: token ids that part the segments of mixers which take given ones (`ponet`): each is a segment of its
            own that pools nothing, as in PoNet's pretrained models; () leaves the segments to the mixers.
        block: class of the blocks, such as one that transformers can have recomputed.
        seed: of the initial weights.
    """

    @checking_options
    def __init__(
        self,
        embedding: Callable[[], nn.Module],
        mixer: str,
        *,
        dim: int,
        depth: Depth,
        grid: tuple[Count, ...],
        head: Head,
        outputs: Whole,
        pool: Pool = "mean",
        pool_norm: bool = False,
        pair_features: PairFeatures = "difference_product",
        head_hidden: tuple[Count, ...] = (),
        head_act: Act = "gelu",
        tied: bool = False,
        mlp_ratio: Amount = 2.0,
        glu: bool = False,
        act: Act = "gelu",
        position: Position = "none",
        norm: Norm = "layer",
        prenorm: bool = True,
        final_norm: bool = True,
        conv: Whole = 0,
        embedding_std: Amount = 0.2,
        dropout: float = 0.0,
        embedding_dropout: Chance = 0.0,
        hidden_dropout: Chance = 0.0,
        tied_dropout: bool = False,
        norm_eps: Positive | None = None,
        padding: Padding = "masked",
        type_vocab_size: Whole = 0,
        embedding_norm: bool = False,
        embedding_projection: bool = False,
        delimiters: tuple[Whole, ...] = (),
        block: type[Block] = Block,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.read, self.pool, self.pair_features, self.width = head, pool, pair_features, dim
        self.pools = head in ("class", "pair")
        length, in_front = torch.Size(grid).numel(), self.pools and pool == "cls"
        if in_front:
            if len(grid) > 1:
                raise ValueError(f"pool='cls' puts a token in front of a sequence, and grid={grid} is none")
            grid = (length + 1,)
        length += in_front
        self.length = length
        with fork_seed(seed, "embedding"):
            self.embedding = embedding()
            if not isinstance(self.embedding, nn.Module):
                raise TypeError(f"embedding must build a module, got {embedding!r}, which gave {self.embedding!r}")
            for parameter in self.embedding.parameters():
                nn.init.normal_(parameter, std=embedding_std) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        self.cls = None
        if in_front:
            with fork_seed(seed, "cls"):
                self.cls = nn.Parameter(embedding_std * torch.randn(dim))
        self.sinusoidal, self.position = position == "sinusoidal", None
        if position == "learned":
            with fork_seed(seed, "position"):
                self.position = nn.Parameter(embedding_std * torch.randn(length, dim))
        self.types = None
        if type_vocab_size:
            with fork_seed(seed, "types"):
                self.types = nn.Embedding(type_vocab_size, dim)
                nn.init.normal_(self.types.weight, std=embedding_std)
        with fork_seed(seed, "stem"):
            self.stem = Stem(dim, norm=embedding_norm, projection=embedding_projection)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        options = BlockOptions(
            mlp_ratio, glu, act, norm, prenorm, conv, dropout, hidden_dropout, tied_dropout, norm_eps, padding
        )
        self.blocks = nn.ModuleList(
            block(str(spec), dim, grid, options, seed, f"blocks.{index}")
            for index, spec in enumerate(layer_specs(mixer, depth))
        )
        self.delimiters = tuple(delimiters)
        if in_front and delimiters:
            raise ValueError("delimiters: pool='cls' puts a token in front that belongs to no segment; take 'first'")
        check_order(self.mixers, head, pool if self.pools else None)
        self.norm = make_norm(norm, dim, norm_eps) if prenorm and final_norm else nn.Identity()
        self.pooled_norm = make_norm(norm, dim, norm_eps) if self.pools and pool_norm else nn.Identity()
        with fork_seed(seed, "head"):
            width = dim * {"forecast": length, "pair": PAIR_WIDTH[pair_features]}.get(head, 1)
            self.head: nn.Module = nn.Identity()
            if head != "none":
                self.head = Tied() if tied else make_head(width, head_hidden, outputs, head_act)
        if tied:
            self._check_tied(head_hidden, outputs)

    def _check_tied(self, hidden: tuple[int, ...], outputs: int) -> None:
        embedding = self.embedding
        if self.read not in ("token", "language") or hidden or not isinstance(embedding, nn.Embedding):
            raise ValueError(
                "tied=True is only for head='token' or 'language' without head_hidden, on an nn.Embedding; got "
                f"head={self.read!r}, head_hidden={hidden}, {embedding}"
            )
        if outputs != embedding.num_embeddings:
            raise ValueError(f"tied: outputs must be the {embedding.num_embeddings} tokens embedded, got {outputs}")

    def explain(self, error: Exception, method: str, given: dict[str, Any]) -> None:
        """After an error in a method: one in its place that says which argument did not fit."""
        pairs, step = self.read == "pair" and method == "forward", method == "step"
        width = getattr(self.embedding, "in_features", None)  # of a linear layer; others may read what they like
        pair, row = " 2" * pairs, "" if step else " L"
        x = Input(f"B{pair}{row} C" if width else "B *rest", needed=True)
        if given.get("embedded"):
            x, width = Input("B L D", needed=True), None
        elif isinstance(self.embedding, nn.Embedding):
            x = Input(f"B{pair}{row}", torch.int64, needed=True)
        whole = Input("B L", torch.int64)
        mask = Input(f"B{pair} L", torch.bool)
        wanted = {"x": x, "mask": mask, "segments": whole, "types": whole, "sentences": whole}
        known = {"D": self.width, **({"C": width} if width else {})}
        if self.read == "forecast":  # reads all tokens at once
            known["L"] = self.length
        explain_inputs(self, error, wanted, given, **known)
        sentences = given.get("sentences")
        if sentences is not None and sentences.numel():
            least, most, last = int(sentences.min()), int(sentences.max()), sentences.shape[1] - 1
            if not 0 <= least <= most <= last:
                what = f"numbers from 0 to {last}, got {least} to {most}"
                raise ValueError(f"{type(self).__name__}: sentences must be {what}") from error
        state = given.get("state")
        if state is None and not step:
            return
        batch, device = len(given["x"]), given["x"].device
        if not is_like(state, likeness(self.init_state(1)), batch):
            raise ValueError(
                f"{type(self).__name__}: state must be like that of init_state({batch}), "
                f"{described(self.init_state(batch))} (0 may have grown), got {described(state)}"
            ) from error
        for leaf in pytree.tree_leaves(state):
            if isinstance(leaf, Tensor) and leaf.device != device:
                name = type(self).__name__
                raise ValueError(f"{name}: state must be on {device} as x is, got {leaf.device}") from error

    @explaining
    def forward(self, x: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Raw input to the outputs of the head.

        Args:
            x: what the embedding takes, (B, L, ...); for head="pair" (B, 2, L, ...).
            mask: (B, L), for pairs (B, 2, L), bool, True = a real token. What stands elsewhere reaches no output.
            segments: (B, L) integers, for sequences packed in a row, where the mixers take them: a run of one number is
                a sequence, and padding belongs to the last. "class" then gives (B, S, outputs) for rows of up to S.
        """
        if self.read == "pair":
            if segments is not None:
                raise ValueError(f"segments must be None for head='pair': pairs are not packed, got {shown(segments)}")
            both = self.encode(x.flatten(0, 1), None if mask is None else mask.flatten(0, 1))
            a, b = both.unflatten(0, (-1, 2)).unbind(1)
            return self._answer(pair_features(a, b, self.pair_features))
        return self._answer(self.encode(x, mask, segments))

    def _answer(self, x: Tensor) -> Tensor:
        if isinstance(self.head, Tied):
            return nn.functional.linear(x, self.embedding.weight)  # type: ignore[arg-type]
        answer: Tensor = self.head(x)
        return answer

    @explaining
    def encode(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        types: Tensor | None = None,
        sentences: Tensor | None = None,
        embedded: bool = False,
        layers: list[Tensor] | None = None,
    ) -> Tensor:
        """What the head reads: a vector a sequence (B, D), or the tokens (B, L, D).

        Args:
            x, mask, segments: as in `forward`.
            types: (B, L) integers, the kind of each token, where the encoder has `type_vocab_size`; absent, all are 0.
            sentences: (B, L) integers 0, 1, ..., for mixers that take given segments, besides those of `delimiters`.
            embedded: x is tokens (B, L, D) already, which get their types and places here.
            layers: a list that gets the tokens that each block reads, and what the last one gives, before the norm.
        """
        segments = None if segments is None else runs(segments)
        given = self._given(x, mask, sentences, embedded)
        x = drop_padding(x, mask) if embedded else self._embed(x, mask)
        x = self._typed(x, types)
        if self.cls is not None:
            if segments is not None:
                packed = f"packed rows take 'mean' or 'last', got {shown(segments)}"
                raise ValueError(f"segments must be None for pool='cls', which has one token in front; {packed}")
            if mask is not None:  # padding in front would part the token from its sequence
                order = padding_last(mask)
                x, mask = in_order(x, order), nn.functional.pad(mask.gather(1, order), (1, 0), value=True)
            x = torch.cat((self.cls.expand(len(x), 1, -1), x), 1)
        x = self._place(x, mask, segments)
        x = self.embedding_dropout(drop_padding(self.stem(x), mask))
        for block in self.blocks:
            if layers is not None:
                layers.append(x)
            x = block(x, mask, segments, given)
        if layers is not None:
            layers.append(x)
        x = normed(self.norm, x, mask)
        if self.pools:
            return self.pooled_norm(pool(x, self.pool, mask, segments))
        return drop_padding(x, mask).flatten(1) if self.read == "forecast" else x

    def _given(
        self, x: Tensor, mask: Tensor | None, sentences: Tensor | None, embedded: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Segments (B, L) for the mixers that take given ones, and which tokens are delimiters."""
        if not any(hasattr(type(mixer), "mix_segments") for mixer in self.mixers):
            return None
        if not self.delimiters:
            return None if sentences is None else (sentences, None)
        if embedded:
            raise ValueError(f"delimiters={self.delimiters} are token ids, and tokens that are embedded have none left")
        ids = x if mask is None else x.masked_fill(~mask, -1)  # no delimiter stands in the padding
        index, special = delimited(ids, self.delimiters)
        return (index if sentences is None else sentences), special

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Raw input to tokens; of real values what stands at padding is not read, be it NaN."""
        if mask is not None and x.is_floating_point() and x.dim() == 3:
            x = drop_padding(x, mask)
        if isinstance(self.embedding, nn.Embedding):
            return look_up(self.embedding, x, "x")
        tokens: Tensor = self.embedding(x)
        return tokens

    def _typed(self, x: Tensor, types: Tensor | None = None) -> Tensor:
        if self.types is not None:
            return x + (self.types.weight[0] if types is None else look_up(self.types, types, "types"))
        if types is not None:
            raise ValueError(f"types must be None: this encoder has type_vocab_size=0, got {shown(types)}")
        return x

    def _place(
        self, x: Tensor, mask: Tensor | None = None, segments: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """Tokens and where they stand, behind as many (B,) as came before."""
        if not self.sinusoidal and self.position is None:
            return x
        length = x.shape[1]
        place = places(length, mask, segments, x.device)
        place = place if before is None else place + before.unsqueeze(1)
        if self.position is None:
            return x + sinusoids(place, x.shape[2], x.dtype)
        # Padding counts as no place, and packed sequences begin at 0; for a look at the numbers a GPU waits.
        last = length if before is None and length <= len(self.position) else int(place.max()) + 1
        if last > len(self.position):
            raise LengthError(
                f"x must be in reach: {last} tokens, and learned positions reach {len(self.position)}: build "
                "the encoder for a longer grid, or with position='sinusoidal' or 'none'"
            )
        return x + (self.position[:length] if place.dim() == 1 else self.position[place])

    # ------------------------------------------------------------------ token by token

    def init_state(self, batch: int) -> EncoderState:
        """The state before the first token.

        Raises:
            ValueError: unless the head reads tokens and all mixers are recurrent.
        """
        names = [type(mixer).__name__ for mixer in self.mixers if not mixer.traits.recurrent]
        if names or self.read not in ("token", "language", "none"):
            raise ValueError(
                "step and prefill need recurrent mixers (causal=True makes some so) and head='token' or 'language', "
                f"got {', '.join(names) or 'recurrent mixers'} and head={self.read!r}"
            )
        check_batch(type(self).__name__, batch)
        states = tuple(block.init_state(batch) for block in self._blocks())
        return EncoderState(torch.zeros(batch, dtype=torch.int64, device=next(self.parameters()).device), states)

    @explaining
    def prefill(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        state: EncoderState | None = None,
        types: Tensor | None = None,
        embedded: bool = False,
    ) -> tuple[Tensor, EncoderState]:
        """Outputs (B, L, outputs) for a prompt or a further part of one, and the state after it: a pure function.

        Args:
            x: raw input, (B, L, ...).
            mask: (B, L); padding at either end is as if it were not there.
            state: the state that the tokens follow on.
            types, embedded: as in `encode`.
        """
        state = self.init_state(len(x)) if state is None else state
        back = None
        if mask is not None:
            order, back = padding_first(mask)
            x, mask = in_order(x, order), mask.gather(1, order)
            types = None if types is None else in_order(types, order)
        tokens = self._typed(drop_padding(x, mask) if embedded else self._embed(x, mask), types)
        tokens = self.stem(self._place(tokens, mask, None, state.seen))
        tokens = self.embedding_dropout(drop_padding(tokens, mask))
        states = []
        for block, before in zip(self._blocks(), state.blocks, strict=True):
            tokens, after = block.absorb(tokens, mask, before)
            states.append(after)
        out = self._answer(normed(self.norm, tokens, mask))
        seen = state.seen + (x.shape[1] if mask is None else mask.sum(1))
        return (out if back is None else in_order(out, back)), EncoderState(seen, tuple(states))

    @explaining
    def step(self, x: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """One more token (B, ...) and the state before it to its outputs (B, outputs) and the state after it."""
        token = self._place(self._typed(self._embed(x, None).unsqueeze(1)), before=state.seen).squeeze(1)
        token, states = self.embedding_dropout(self.stem(token)), []
        for block, before in zip(self._blocks(), state.blocks, strict=True):
            token, after = block.step(token, before)
            states.append(after)
        return self._answer(normed(self.norm, token, None)), EncoderState(state.seen + 1, tuple(states))

    @property
    def mixers(self) -> list[Mixer]:
        """Those of its blocks."""
        return [block.mixer for block in self._blocks()]

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    published: ClassVar = {"lxchtan/PoNet": encoder_from_ponet}


def check_order(mixers: list[Mixer], read: str, pool: str | None) -> None:
    """Refuse what would be quietly wrong: an answer in sight, or a token that sees none."""
    sighted = [type(mixer).__name__ for mixer in mixers if not mixer.traits.causal]
    if read == "language" and sighted:
        raise ValueError(f"head='language' needs causal mixers (causal=True), else they see the answer: {sighted}")
    mixing = [mixer for mixer in mixers if mixer.traits.mixes]
    if pool in ("cls", "first") and mixing and all(mixer.traits.causal for mixer in mixing):
        raise ValueError(f"pool={pool!r} reads the first token, and to causal mixers it shows no other")
