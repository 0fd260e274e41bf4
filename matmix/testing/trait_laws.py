"""The laws behind ``Traits``: each promise, and where a trait is a choice, its opposite too."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from matmix.mixers.base import Grid, Mixer
from matmix.ops.sizes import LengthError
from matmix.testing.cases import MixerCase, dense_up_to
from matmix.testing.compare import TOLERANCE, close, differ, same
from matmix.testing.mixer_laws import garbage, law, some_mask


def reach(case: MixerCase, mixer: Mixer) -> Tensor:
    """``(L, L)``: how strongly output token i depends on input token j, at random tokens.

    Row i is the gradient of a random combination of output i's channels; an entry is its largest channel.
    """
    x = case.on(case.grid, batch=1).tokens().requires_grad_()
    weight = case.tokens(name="weight")[0, 0]
    out = mixer(x)[0] @ weight
    rows = [torch.autograd.grad(entry, x, retain_graph=True)[0][0].abs().amax(-1) for entry in out]
    return torch.stack(rows)


@law
def causal(case: MixerCase) -> None:
    """Causal: no output depends on a later token (exactly 0 on the dense path, rounding on the fast one).
    Otherwise some output does."""
    case = case.flat()
    mixer = case.build()
    with dense_up_to(0):
        fast = reach(case, mixer)
    ahead, largest = float(fast.triu(1).max()), float(fast.max())
    if not mixer.traits.causal:
        if case.length >= 4 and mixer.traits.mixes:
            assert ahead > 1e-8 * largest, "no output depends on a later token, and the mixer does not say so"
        return
    limit = TOLERANCE[torch.float64] * largest
    assert ahead <= limit, f"an output depends on a later token: gradient {ahead:.3g} of {largest:.3g}"
    with dense_up_to(1 << 40):
        ahead = float(reach(case, mixer).triu(1).max())
    assert ahead == 0, f"dense path: an output depends on a later token: gradient {ahead:.3g}"


@law
def mixes(case: MixerCase) -> None:
    """Some output depends on another token; for a mixer that says it does not mix, none does."""
    if case.length < 4:
        return
    mixer = case.build()
    strength = reach(case, mixer)
    across = float((strength - strength.diag().diag()).max())
    if mixer.traits.mixes:
        assert across > 1e-8 * float(strength.max()), "no token reaches another one"
    else:
        assert across == 0, f"traits.mixes is False and a token reaches another one: gradient {across:.3g}"


@law
def data_dependence(case: MixerCase) -> None:
    """The matrix is the same for all tokens (and has batch size 1), or it is not; as promised."""
    mixer = case.build()
    first, second = (mixer.matrix(case.tokens(name=name)).to_dense() for name in ("first", "second"))
    if not mixer.traits.data_dependent:
        assert first.shape[0] == 1, f"a matrix that does not depend on the data has batch 1, not {first.shape[0]}"
        same(first, second, "the matrices of two inputs")
    elif case.length >= 4:
        differ(first, second, "traits.data_dependent, and the matrices of two inputs are the same")


def _other_grids(grid: Grid) -> list[Grid]:
    return [(*grid[:-1], grid[-1] + 2), (2 * grid[0] + 1, *grid[1:]), (2,) * len(grid)]


@law
def length(case: MixerCase) -> None:
    """Any length: the same weights run at other sizes, as in a mixer that was built for them. Fixed: another size is
    a LengthError that names ``resize_``, which makes it work, and changes nothing at the size it has."""
    mixer = case.build()
    assert mixer.resize_(case.grid) is mixer, "resize_ must return the mixer"
    plain, x = case.build()(case.tokens()), case.tokens()
    # Interpolating to the same size is the identity up to the rounding of its weights.
    close(mixer(x), plain, "forward after resize_ to the same grid", tolerance=1e-6)
    for grid in _other_grids(case.grid):
        there = case.on(grid)
        x, mixer = there.tokens(), case.build()
        if mixer.traits.length == "any":
            fresh = there.build()
            fresh.load_state_dict(mixer.state_dict(), strict=True)
            close(mixer(x, grid=grid), fresh(x), f"forward on the grid {grid}, built for {case.grid}")
            continue
        if grid == case.grid:
            continue
        for given in (None, grid):
            try:
                mixer(x, grid=given)
            except LengthError as error:
                assert "resize_" in str(error), f"the error for another grid does not name resize_: {error}"
            else:
                raise AssertionError(f"traits.length is fixed, and the grid {grid} runs in a mixer of {case.grid}")
        mixer.resize_(grid)
        assert mixer.grid == grid, f"after resize_({grid}) the grid is {mixer.grid}"
        out = mixer(x)
        assert out.shape == x.shape and bool(torch.isfinite(out).all()), f"after resize_({grid}): {tuple(out.shape)}"
        fresh = there.build()
        fresh.load_state_dict(mixer.state_dict(), strict=True)
        close(fresh(x), out, f"a mixer built for {grid} with the resized weights")


@law
def dims(case: MixerCase) -> None:
    """Grids of every promised number of axes run, non-square ones too; others are a ValueError that says grid."""
    promised = case.build().traits.dims
    assert promised, "traits.dims is empty"
    for axes, grids in ((1, ((6,), (7,))), (2, ((2, 5), (5, 2), (1, 4))), (3, ((2, 3, 2),))):
        for grid in grids:
            there = case.on(grid)
            if axes in promised:
                x = there.tokens()
                assert there.build()(x).shape == x.shape, f"grid {grid}"
                continue
            try:
                there.build()
            except ValueError as error:
                assert "grid" in str(error), f"the error for the grid {grid} does not say grid: {error}"
            else:
                raise AssertionError(f"grid {grid} is taken, traits.dims is {set(promised)}")


@law
def mask_content(case: MixerCase) -> None:
    """What stands at masked positions (NaN, inf and 1e30 too) never reaches a real token, and gets no gradient; outputs
    there are 0. A mask
    of only real tokens changes nothing; one without any gives zeros. Without a mask trait, a mask is a ValueError."""
    mixer, x = case.build(), case.tokens()
    mask = some_mask(case)
    if mixer.traits.mask is None:
        try:
            mixer(x, mask=mask)
        except ValueError as error:
            assert "mask" in str(error), f"the error for a mask does not say so: {error}"
            return
        raise AssertionError("traits.mask is None, and a mask is taken")
    close(mixer(x, mask=torch.ones_like(mask)), mixer(x), "a mask of only real tokens")
    x = x.requires_grad_()
    out = mixer(x, mask=mask)
    noise = 100 * case.tokens(name="noise")
    for other in (torch.where(mask.unsqueeze(-1), x, noise), garbage(x, mask)):
        close(mixer(other, mask=mask), out, "forward with other tokens at masked positions")
    same(out[~mask], torch.zeros_like(out[~mask]), "outputs at masked positions")
    (grad,) = torch.autograd.grad((out * case.tokens(name="weight")).sum(), x)
    close(grad[~mask], torch.zeros_like(grad[~mask]), "gradient at masked positions", scale=grad)
    nothing = mixer(x, mask=torch.zeros_like(mask))
    same(nothing, torch.zeros_like(nothing), "outputs where no token is real")
    (grad,) = torch.autograd.grad(nothing.sum(), x, allow_unused=True, materialize_grads=True)
    assert bool(torch.isfinite(grad).all()), "a gradient is not finite where no token is real"


def lengths(total: int, batch: int) -> list[int]:
    return [max(1, total - step) for step in (0, 2, total // 2, total - 1)][:batch]


def padded(x: Tensor, sizes: list[int], side: str) -> Tensor:
    """``(B, L)`` mask of sequences of these lengths, padded on one side."""
    place, wanted = torch.arange(x.shape[1], device=x.device), torch.tensor(sizes, device=x.device).unsqueeze(1)
    return place < wanted if side == "right" else place >= x.shape[1] - wanted


@law
def mask_trim(case: MixerCase) -> None:
    """mask="trim": a padded sequence has the outputs of the trimmed one, padded on the left or on the right."""
    if case.build().traits.mask != "trim":
        return
    case = case.on((case.length,), batch=4)
    mixer = case.build()
    assert 1 in mixer.traits.dims and mixer.traits.length == "any", 'mask="trim" needs sequences of any length'
    x = case.tokens()
    sizes = lengths(case.length, 4)
    for side in ("right", "left"):
        mask = padded(x, sizes, side)
        out = mixer(garbage(x, mask), mask=mask)
        for sample, size in enumerate(sizes):
            alone = mixer(x[sample, mask[sample]].unsqueeze(0))
            close(out[sample : sample + 1, mask[sample]], alone, f"{size} tokens padded on the {side}", scale=out)


def _leaves(state: object) -> list[Tensor]:
    return [leaf.clone() for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


def steps(mixer: Mixer, x: Tensor, state: object) -> list[Tensor]:
    """Outputs of the tokens one by one, each step taken twice from the same state."""
    outputs = []
    for token in x.unbind(1):
        before = _leaves(state)
        out, after = mixer.step(token, state)
        kept = _leaves(after)
        again, after_again = mixer.step(token, state)
        for old, now in zip(before, _leaves(state), strict=True):
            same(now, old, "a state after step was called with it")
        same(again, out, "step twice from one state")
        for one, two, left in zip(kept, _leaves(after_again), _leaves(after), strict=True):
            same(two, one, "the states of two steps from one state")
            same(left, one, "a new state after a second step from the old one")
        outputs.append(out)
        state = after
    return outputs


@law
def recurrent(case: MixerCase) -> None:
    """Recurrent: folding ``step`` is ``forward``; ``prefill`` of any part and steps for the rest too; a step leaves the
    state it was given alone. Otherwise ``init_state`` refuses."""
    mixer = case.build()
    if not mixer.traits.recurrent:
        try:
            mixer.init_state(1)
        except NotImplementedError:
            return
        raise AssertionError("init_state works, and traits.recurrent is False")
    case = case.on((case.length,))
    mixer, x = case.build(), case.tokens()
    assert mixer.traits.causal, "a recurrent mixer is causal"
    expected = mixer(x)
    close(torch.stack(steps(mixer, x, mixer.init_state(case.batch)), 1), expected, "steps from init_state")
    for size in sorted({1, math.ceil(case.length / 2), case.length - 1, case.length} - {0}):
        out, state = mixer.prefill(x[:, :size])
        close(out, expected[:, :size], f"prefill of {size} tokens", scale=expected)
        rest = steps(mixer, x[:, size:], state)
        if rest:
            close(torch.stack(rest, 1), expected[:, size:], f"steps after a prefill of {size}", scale=expected)


@law
def aligned(case: MixerCase) -> None:
    """Aligned: the matrix of a prefix is the leading block of the matrix."""
    case = case.flat()
    mixer, x = case.build(), case.tokens()
    if not mixer.traits.aligned:
        return
    assert mixer.traits.length == "any", "an aligned mixer has a matrix for every length"
    whole = mixer.matrix(x).to_dense()
    streams = whole.shape[3] // case.length
    for size in sorted({1, case.length // 2, case.length - 1} - {0}):
        block = whole[:, :, :size].unflatten(3, (streams, case.length))[..., :size].flatten(3)
        prefix = mixer.matrix(x[:, :size], grid=(size,)).to_dense()
        close(prefix, block, f"the matrix of the first {size} tokens", scale=whole)
