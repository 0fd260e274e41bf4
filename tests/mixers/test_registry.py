"""Names, spec strings, patterns by depth, and mixers from other packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import matmix
from matmix.mixers import create_mixer, create_mixers, list_mixers, mixer_info, register

ROOT = Path(__file__).parents[2]


def test_names_are_sorted_and_known() -> None:
    names = list_mixers()
    assert names == sorted(names)
    assert "identity" in names
    for name in names:
        info = mixer_info(name)
        if not info.cls.__module__.startswith("matmix."):
            continue  # another test registered it
        assert info.name == name
        assert info.matrix and info.cost and info.source, f"{name} leaves a column of the table empty"
        assert info.cls.__doc__ and info.traits.dims


def test_an_unknown_name_lists_the_close_ones() -> None:
    with pytest.raises(ValueError, match=r"^unknown mixer 'idenity'; did you mean identity\?$"):
        create_mixer("idenity", 8)
    with pytest.raises(
        ValueError, match=r"^unknown mixer 'zzzzzz'; known: active, .*hydra, .*"
    ):  # other tests add some
        mixer_info("zzzzzz")


def test_an_unknown_option_is_an_error_that_lists_the_options() -> None:
    with pytest.raises(ValueError, match="identity has no option 'expand'; there is none"):
        create_mixer("identity(expand=2)", 8)
    with pytest.raises(ValueError, match=r"attention has no option 'head_dims'; did you mean head_dim"):
        create_mixer("attention(head_dims=4)", 8)
    with pytest.raises(ValueError, match="has no option 'dim'"):
        create_mixer("attention(dim=4)", 8)
    with pytest.raises(ValueError, match=r"options are given by name, as in attention\(head_dim=\.\.\.\)"):
        create_mixer("attention(4)", 8)


def test_options_reach_the_mixer() -> None:
    mixer = create_mixer("attention(head_dim=4, causal=True)", 8, grid=6)
    assert mixer.traits.causal
    assert mixer.grid == (6,)
    assert mixer.matrix(torch.zeros(1, 6, 8)).shape == (1, 2, 6, 6)


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('true')",
        "attention(head_dim=2**10)",
        "attention(head_dim=len('ab'))",
        "attention(**{'head_dim': 4})",
        "lambda: 1",
        "[attention]",
        "attention.head_dim",
        "attention + ssd",
        "2 * attention",
        "attention * 0",
        "attention * 1.5",
        "attention * True",
        "(x := 1)",
        "f'{1}'",
    ],
)
def test_a_spec_is_read_and_never_run(spec: str) -> None:
    with pytest.raises(ValueError, match=r"spec|has no option '\*\*'"):
        create_mixers(spec, 2, 8)


def test_nothing_in_a_spec_is_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "written"
    with pytest.raises(ValueError):
        create_mixer(f"identity(open({str(target)!r}, 'w'))", 8)
    assert not target.exists()


def test_a_pattern_repeats_over_the_depth() -> None:
    stack = create_mixers("pooling*2, attention(head_dim=4)", depth=6, dim=8, grid=(3, 5))
    assert [type(mixer).__name__ for mixer in stack] == ["Pooling", "Pooling", "Attention"] * 2
    assert len({id(mixer) for mixer in stack}) == 6


def test_a_pattern_that_does_not_fit_the_depth_is_an_error() -> None:
    with pytest.raises(ValueError, match="pattern of 4 layers, which does not divide depth=6"):
        create_mixers("pooling*3, attention", depth=6, dim=8)
    with pytest.raises(ValueError, match="names 2 mixers"):
        create_mixer("pooling, attention", 8)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match=r"the mixer name 'identity' is taken by matmix\.mixers\.identity\.Identity"):

        @register("identity", matrix="none", cost="O(1)", source="a/b")
        class Another(matmix.Mixer):
            traits = matmix.Traits()

    with pytest.raises(ValueError, match="name must be a Python identifier, got 'two words'"):
        register("two words", matrix="none", cost="O(1)", source="a/b")
    assert mixer_info("identity").cls.__module__ == "matmix.mixers.identity"


MIXER = '''
"""Shift: every token gets the one before it."""

import torch

from matmix import Mixer, Traits, register
from matmix.matrices import Dense
from matmix.mixers import Context, Projected


@register("shift_by_one", matrix=Dense, cost="O(L^2 D)", source="a/b")
class Shift(Mixer):
    """``y_t = gain * x_(t - 1)``."""

    traits = Traits(causal={causal}, aligned=True)

    def __init__(self, dim, grid=None):
        super().__init__(dim, grid)
        self.gain = torch.nn.Parameter(torch.ones(dim))

    def project(self, x, context: Context) -> Projected:
        values = (x * self.gain).unsqueeze(1)
        shift = torch.ones(x.shape[1] - 1, dtype=x.dtype).diag(-1)
        return Projected(Dense(shift[None, None]), values)
'''

CHECK = """
import sys
import matmix
from matmix.testing import check_mixer
{load}
assert "shift_by_one" in matmix.list_mixers(), matmix.list_mixers()
print(matmix.create_mixer("shift_by_one", 4))
from tests.test_laws_mixers import DRAWN_IDS, TRACED_IDS
from matmix.testing import MIXER_LAWS
enrolled = {{i.removesuffix("-shift_by_one") for i in DRAWN_IDS + TRACED_IDS if i.endswith("-shift_by_one")}}
assert enrolled == set(MIXER_LAWS), enrolled
try:
    check_mixer("shift_by_one", laws=["product", "gradients", "causal", "aligned"])
except AssertionError as error:
    print("caught:", error)
else:
    print("lawful")
"""


def _run(tmp_path: Path, load: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(load=load)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("causal", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_mixer_in_one_new_file_is_enrolled_by_import(tmp_path: Path, causal: bool) -> None:
    (tmp_path / "my_shift.py").write_text(MIXER.format(causal=causal))
    out = _run(tmp_path, "import my_shift")
    assert "Shift(dim=4, grid=None)" in out
    assert ("lawful" in out) == causal
    if not causal:
        assert "law 'causal' fails for Shift (dim=8, grid=(7,), batch=2, seed=0)" in out


def test_a_mixer_of_another_package_is_enrolled_by_entry_point(tmp_path: Path) -> None:
    (tmp_path / "my_shift.py").write_text(MIXER.format(causal=True))
    info = tmp_path / "my_shift-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-shift\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[matmix.mixers]\nshift = my_shift\n")
    assert "lawful" in _run(tmp_path, "")
