"""What is captured, measured and drawn is the matrix that ran."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from matmix.inspect import describe, gallery, matrices, rank_pattern, record, show
from matmix.inspect.pictures import Panel, _coarse, draw, kind, short
from matmix.matrices import Dense, Identity
from matmix.mixers import Mixer, Traits, create_mixer
from matmix.mixers.base import Context, Projected, split_heads


class Draw(Mixer):
    """A matrix that is another one in every forward, so a recomputed one would be found out."""

    traits = Traits(data_dependent=True, mask="content")

    def __init__(self, dim: int, grid=None, *, heads: int = 2) -> None:
        super().__init__(dim, grid)
        self.heads = heads
        self.last: list[Tensor] = []
        self.seen: list[Context] = []

    def project(self, x: Tensor, context: Context) -> Projected:
        entries = torch.rand(x.shape[0], self.heads, x.shape[1], x.shape[1], dtype=x.dtype)
        if context.mask is not None:
            entries = entries * context.mask[:, None, None, :]
        self.last.append(entries)
        self.seen.append(context)
        return Projected(Dense(entries), split_heads(x, self.heads))


class Outer(Mixer):
    """A mixer made of another one."""

    traits = Traits(data_dependent=True)

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.inner = Draw(dim)

    def project(self, x: Tensor, context: Context) -> Projected:
        inner = self.inner.project(x, context)
        return Projected(inner.matrix.scale(2.0), inner.values)


class Model(nn.Module):
    def __init__(self, *mixers: Mixer) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(mixers)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None, fail: bool = False) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + self.drop(block(x, mask=mask) if mask is not None else block(x))
        if fail:
            raise RuntimeError("on purpose")
        return x


def test_the_matrix_is_the_one_that_ran():
    model = Model(Draw(4), Draw(4))
    found = matrices(model, torch.randn(2, 7, 3))
    assert list(found) == ["blocks.0", "blocks.1"]
    for matrix, block in zip(found.values(), model.blocks, strict=True):
        assert len(block.last) == 1
        assert matrix.to_dense() is block.last[0]
        assert not matrix.to_dense().requires_grad


def test_arguments_travel_to_the_model():
    model, mask = Model(Draw(4)), torch.tensor([[True, True, False]])
    (matrix,) = matrices(model, torch.randn(1, 3, 3), mask=mask).values()
    assert (matrix.to_dense()[..., 2] == 0).all() and (matrix.to_dense()[..., :2] > 0).all()
    mixer = Draw(4)
    (matrix,) = matrices(mixer, torch.randn(1, 6, 4), grid=(2, 3)).values()
    assert mixer.seen[-1].grid == (2, 3)


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(fail):
    model = Model(Draw(4), Draw(4))
    model.drop.eval()
    before = [module.training for module in model.modules()]
    if fail:
        with pytest.raises(RuntimeError, match="on purpose"):
            matrices(model, torch.randn(1, 3, 3), fail=True)
    else:
        matrices(model, torch.randn(1, 3, 3))
    assert [module.training for module in model.modules()] == before
    assert all("product" not in block.__dict__ for block in model.blocks)
    assert model(torch.randn(1, 3, 3)).requires_grad


def test_record_follows_every_forward_and_keeps_the_graph():
    shared = Draw(4)
    model = Model(shared, Draw(4), shared)
    with record(model) as outer, record(model) as found:
        model(torch.randn(1, 3, 3)).sum().backward()
    assert list(found) == list(outer) == ["blocks.0", "blocks.1", "blocks.0#2"]
    assert found["blocks.0"].to_dense() is shared.last[0]
    assert found["blocks.0#2"].to_dense() is shared.last[1]
    assert model.embed.weight.grad is not None
    assert "product" not in shared.__dict__


def test_a_mixer_inside_of_a_mixer_is_part_of_it():
    outer = Outer(4)
    found = matrices(nn.Sequential(outer), torch.randn(1, 3, 4))
    assert list(found) == ["0"]
    torch.testing.assert_close(found["0"].to_dense(), 2 * outer.inner.last[0])
    assert list(matrices(outer, torch.randn(1, 3, 4))) == ["Outer"]


def test_a_compiled_model_is_seen_too():
    mixer = Draw(4)
    compiled = torch.compile(Model(mixer), backend="eager")
    (matrix,) = matrices(compiled, torch.randn(1, 3, 3)).values()
    assert matrix.to_dense() is mixer.last[-1]


def test_without_a_mixer_it_says_so():
    with pytest.raises(ValueError, match="contains no Mixer"):
        matrices(nn.Linear(3, 3), torch.randn(1, 3))

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = Draw(4)

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="no mixer of Idle ran: idle"):
        matrices(Idle(), torch.randn(1, 3))


# ------------------------------------------------------------------ probes


def semiseparable(length: int, states: int, seed: int = 0) -> Tensor:
    """C_i A^(i-j) B_j for i >= j, a diagonal A."""
    generator = torch.Generator().manual_seed(seed)
    out, into = (torch.randn(length, states, generator=generator, dtype=torch.float64) for _ in range(2))
    decay = torch.linspace(0.5, 0.95, states, dtype=torch.float64)
    lag = (torch.arange(length)[:, None] - torch.arange(length)).clamp(min=0)
    return torch.einsum("in,ijn,jn->ij", out, decay ** lag[..., None], into).tril()


def test_ranks_of_a_state_space_matrix():
    below = semiseparable(12, 3)
    pattern = rank_pattern(below[None, None])
    assert max(pattern.lower) == 3 and set(pattern.upper) == {0} and len(pattern.lower) == 11
    both = below + semiseparable(12, 2, seed=1).T
    pattern = rank_pattern(Dense(both[None, None]))
    assert max(pattern.lower) == 3 and max(pattern.upper) == 2
    found = describe(both[None, None])
    assert (found.causal, found.symmetric, found.lower_rank, found.upper_rank, found.rank) == (False, False, 3, 2, 12)
    assert describe(below[None, None]).causal is True


def test_description_of_known_matrices():
    length = 9
    lag = torch.arange(length)[:, None] - torch.arange(length)
    toeplitz = torch.cos(lag.double() ** 2 + lag)[None, None]
    found = describe(toeplitz)
    assert found.toeplitz and found.displacement_rank == 2 and not found.symmetric
    band = torch.where((lag <= 2) & (lag >= -1), 0.25, 0.0)[None, None]
    assert describe(band).bandwidth == (2, 1)
    found = describe(torch.eye(length)[None, None])
    assert found.causal and found.symmetric and found.row_stochastic and found.bandwidth == (0, 0)
    assert (found.rank, found.lower_rank, found.upper_rank) == (length, 0, 0)
    uniform = torch.full((1, 1, length, length), 1 / length)
    found = describe(uniform)
    assert found.rank == 1 and found.row_stochastic and found.row_sums == pytest.approx((1, 1))
    rough = uniform.clone()
    rough[0, 0, 3, 4] += 0.5
    assert not describe(rough).row_stochastic and not describe(rough).toeplitz
    zero = describe(torch.zeros(1, 1, 4, 4))
    assert zero.rank == 0 and zero.bandwidth == (0, 0) and "rank 0" in str(zero)


def test_matrices_that_are_not_square():
    found = describe(torch.randn(2, 3, 4, 8))
    assert found.causal is None and found.lower_rank is None and found.rank == 4
    with pytest.raises(ValueError, match="square"):
        rank_pattern(torch.randn(1, 1, 4, 8))
    with pytest.raises(ValueError, match="L_out must be at least 1"):
        describe(torch.randn(1, 1, 0, 0))


# ------------------------------------------------------------------ pictures


def panels_of(figure):
    return [axis for axis in figure.axes if axis.get_visible() and axis.images and axis.get_title()]


def test_a_small_entry_has_a_colour_and_zero_is_white():
    entries = torch.tensor([[1.0, 2e-3], [0.0, -1.0]])
    figure = draw([[Panel(entries, "a")]], "heading")
    (axis,) = panels_of(figure)
    image = axis.images[0]
    colours = image.cmap(image.norm(entries.numpy()))[..., :3]
    white = colours[1, 0]
    assert white.min() > 0.95
    assert abs(colours[0, 1] - white).max() > 0.1  # a 500th of the largest entry stands out
    assert colours[0, 0, 0] > colours[0, 0, 2] and colours[1, 1, 2] > colours[1, 1, 0]


def test_one_scale_for_all_panels_and_a_relative_one():
    small, large = torch.full((2, 2), 0.1), torch.full((2, 2), 10.0)
    shared = panels_of(draw([[Panel(small, "a"), Panel(large, "b")]], ""))
    assert {axis.images[0].norm.vmax for axis in shared} == {10.0}
    relative = panels_of(draw([[Panel(small, "a"), Panel(large, "b")]], "", relative=True))
    assert all(axis.images[0].get_array().max() == pytest.approx(1.0) for axis in relative)


def test_odd_matrices_can_be_drawn(tmp_path):
    show(Dense(torch.zeros(1, 1, 3, 3)), tmp_path / "zero.png")
    entries = torch.randn(1, 1, 4, 8)
    entries[0, 0, 1, 1] = float("nan")
    show(Dense(entries), tmp_path / "nan.png")
    show(Dense(torch.ones(1, 1, 1, 1)), tmp_path / "one.png")
    show(Dense(nn.Parameter(torch.randn(1, 1, 3, 3))), tmp_path / "learned.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("zero", "nan", "one", "learned"))


def test_coarse_blocks_keep_the_lone_entry():
    entries = torch.zeros(1000, 900)
    entries[501, 7] = -3.0
    small = _coarse(entries)
    assert max(small.shape) <= 384 and small.min() == -3.0 and (small != 0).sum() == 1


def test_show_draws_a_mixer_a_matrix_and_a_model(tmp_path, monkeypatch):
    import matmix.inspect.pictures as pictures

    drawn = {}

    def spy(rows, heading, **options):
        drawn.update(rows=rows, heading=heading, **options)
        return draw(rows, heading, **options)

    monkeypatch.setattr(pictures, "draw", spy)
    path = show(create_mixer("identity", 8, (4, 5)), tmp_path / "mixer.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    torch.testing.assert_close(drawn["rows"][0][0].entries, torch.eye(20))
    assert drawn["rows"][0][0].grid == (4, 5) and drawn["heading"].startswith("Identity\nIdentity 20 x 20")

    matrix = Dense(torch.randn(2, 20, 3, 3))
    show(matrix, tmp_path / "matrix.svg", sample=1)
    assert len(drawn["rows"][0]) == 8 and drawn["notes"] == ["8 of 20 heads"]
    torch.testing.assert_close(drawn["rows"][0][1].entries, matrix.to_dense()[1, 2])
    show(matrix, tmp_path / "matrix.pdf", heads=[19, 3])
    assert [panel.title for panel in drawn["rows"][0]] == ["head 19", "head 3"]

    show(Model(Draw(4), Draw(4)), tmp_path / "model.png", torch.randn(1, 5, 3))
    assert [[panel.title for panel in row] for row in drawn["rows"]] == [
        ["blocks.0: head 0", "blocks.0: head 1"],
        ["blocks.1: head 0", "blocks.1: head 1"],
    ]


def test_show_without_tokens_is_repeatable(tmp_path):
    first = show(create_mixer("identity", 8), tmp_path / "1.png").read_bytes()
    torch.randn(3)
    assert show(create_mixer("identity", 8), tmp_path / "2.png").read_bytes() == first


def test_a_title_names_the_parts_of_the_algebra():
    a, b = Dense(torch.randn(1, 1, 3, 3)), Identity(3)
    assert kind(a + b) == "Dense + Identity" and kind(a + a) == "Dense"
    assert kind((a + b) @ a.mT.scale(2.0)) == "(Dense + Identity) · Dense"
    assert kind(a.cat_heads(b)) == "Dense, Identity" and kind(a.cat_columns(a)) == "[Dense, Dense]"
    assert kind(a.kron(b).masked(torch.ones(1, 9, dtype=torch.bool))) == "Dense ⊗ Identity"
    assert kind(create_mixer("pooling", 8).matrix(torch.randn(1, 5, 8))) == "AveragePool + Diagonal"  # known, deferred
    assert short("x" * 50) == "x" * 33 + "..."


def test_gallery(tmp_path):
    path = gallery(["identity", "identity"], tmp_path / "gallery.png", dim=8, grid=(12,), columns=1)
    assert path.stat().st_size > 5000
    with pytest.raises(ValueError, match="unknown mixer"):
        gallery(["identiti"], tmp_path / "gallery.png")


def test_errors_name_the_argument(tmp_path):
    matrix = Dense(torch.randn(1, 2, 3, 3))
    with pytest.raises(ValueError, match=r"picture format .*\.png.* got .*matrix.xyz"):
        show(matrix, tmp_path / "matrix.xyz")
    with pytest.raises(ValueError, match="picture format"):
        show(matrix, tmp_path / "matrix")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        show(matrix, tmp_path / "nowhere" / "matrix.png")
    with pytest.raises(ValueError, match=r"heads must be in 0 \.\. 1"):
        show(matrix, tmp_path / "a.png", heads=2)
    with pytest.raises(ValueError, match=r"sample must be in 0 \.\. 0"):
        show(matrix, tmp_path / "a.png", sample=1)
    with pytest.raises(ValueError, match="x must be an input of Model"):
        show(Model(Draw(4)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, matmix.inspect; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "spec", ["fnet", "ponet", "ffnified", "inception", "max_pooling", "mlp", 'heads("attention", "fnet")']
)
def test_a_recording_goes_by_the_matrix_where_forward_has_a_shorter_way(spec: str) -> None:
    """And both give the same: the matrix that is noted is the one that multiplied."""
    mixer = create_mixer(spec, 64, (4, 4)).eval()
    x = torch.randn(2, 16, 64)
    context = Context((4, 4), None)
    expected = mixer(x)
    with record(mixer) as found:
        out = mixer(x)
    torch.testing.assert_close(out, expected)
    (seen,) = found.values()
    _, values, rest = mixer.project(x, context)
    assert torch.equal(mixer.merge(seen.matmul(values), rest), out)
    torch.testing.assert_close(seen.to_dense(), mixer.matrix(x).to_dense())
