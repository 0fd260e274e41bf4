"""All laws in one call, for the package that defines a class or a mixer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from matmix.matrices.base import Matrix
from matmix.mixers.base import Grid, Mixer, Traits
from matmix.mixers.registry import MixerInfo, mixer_info
from matmix.testing import (  # noqa: F401  (they enrol their laws)
    building_laws,
    layer_laws,
    memory_laws,
    padding_laws,
    run_laws,
    shape_laws,
    state_laws,
    trait_laws,
    truth_laws,
)
from matmix.testing.cases import MatrixCase, MixerCase
from matmix.testing.matrix_laws import MATRIX_LAWS
from matmix.testing.mixer_laws import MIXER_LAWS, SLOW_MIXER_LAWS, TRACED

MATRIX_CASES = (
    {"grid": (1,), "heads": 1, "batch": 2, "width": 1},
    {"grid": (3, 5), "heads": 2, "batch": 2, "width": 3},
    {"grid": (17,), "heads": 8, "batch": 1, "width": 1},
    {"grid": (5, 2), "heads": 1, "batch": 3, "width": 4},
    {"grid": (32,), "heads": 3, "batch": 2, "width": 2},
)
MATRIX_TRACED = {"grid": (3, 5), "heads": 2, "batch": 4, "width": 7}
MIXER_GRIDS: tuple[Grid, ...] = ((1,), (2,), (7,), (16,), (33,), (1, 1), (3, 5), (6, 2))
MIXER_TRACED: tuple[Grid, ...] = ((13,), (3, 7))


def _names(laws: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    known = list(known)
    wanted = known if laws is None else list(laws)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ValueError(f"laws names unknown laws {unknown}; known: {', '.join(sorted(known))}")
    return wanted


def apply_law(name: str, law: Callable[[MatrixCase], None] | Callable[[MixerCase], None], case: object) -> None:
    """Run one law; whatever it raises becomes an AssertionError that says which law, on what, at which sizes."""
    what = case.cls.__name__ if isinstance(case, MatrixCase) else type(case.build()).__name__  # type: ignore[attr-defined]
    try:
        law(case)  # type: ignore[arg-type]
    except AssertionError as error:
        raise AssertionError(f"law {name!r} fails for {what} ({case}): {error}") from None
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).strip()[:800]}"
        raise AssertionError(f"law {name!r} fails for {what} ({case}): {text}") from error


def check_matrix(cls: type[Matrix], *, laws: Iterable[str] | None = None, seed: int = 0, device: str = "cpu") -> None:
    """Hold a matrix class to every law (or those named), at small sizes from one token up, on a device.

    Raises:
        AssertionError: at the first law that fails; says the law, the sizes and what was found.
        ValueError: for an unknown law.
    """
    for name in _names(laws, MATRIX_LAWS):
        sizes = (MATRIX_TRACED,) if name in TRACED else MATRIX_CASES
        for size in sizes:
            apply_law(name, MATRIX_LAWS[name], MatrixCase(cls, seed=seed, device=device, **size))  # type: ignore[arg-type]


def factory_of(info: MixerInfo) -> tuple[Callable[[int, Grid], Mixer], int]:
    """How a registered mixer is built from (dim, grid) with its smallest arguments, and its smallest width."""
    options = dict(info.smallest)
    dim = options.pop("dim", 8)
    args = options.pop("args", ())

    def build(dim: int, grid: Grid) -> Mixer:
        return info.cls(dim, grid, *args, **options)

    return build, dim


def mixer_cases(
    factory: Callable[[int, Grid], Mixer], dim: int, traits: Traits, law: str, seed: int = 0, device: str = "cpu"
) -> list[MixerCase]:
    """The sizes at which ``check_mixer`` runs a law."""
    grids = [g for g in (MIXER_TRACED if law in TRACED else MIXER_GRIDS) if len(g) in traits.dims]
    batch = 3 if law in TRACED else 2
    return [MixerCase(factory, dim, grid, batch, seed, device) for grid in grids]


def check_mixer(
    mixer: str | type[Mixer] | Callable[[int, Grid], Mixer],
    *,
    dim: int | None = None,
    laws: Iterable[str] | None = None,
    slow: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Hold a mixer to every law (or those named), on sequences and images as its traits say.

    Args:
        mixer: the name of a registered mixer (built with its registered smallest arguments), a Mixer class, or a
            function ``(dim, grid) -> Mixer``.
        dim: smallest sensible width; that of the registration, or 8, where absent.
        laws: names of laws; all where absent.
        slow: also the laws that take seconds (inductor, many sizes, 4096 tokens).
        seed: of weights and tokens.
        device: where the laws run, such as "cuda".

    Raises:
        AssertionError: at the first law that fails; says the law, the sizes and what was found.
        ValueError: for an unknown mixer or law.
    """
    if isinstance(mixer, str):
        factory, smallest = factory_of(mixer_info(mixer))
    else:
        factory, smallest = mixer, 8
    dim = smallest if dim is None else dim
    known = {**MIXER_LAWS, **(SLOW_MIXER_LAWS if slow or laws is not None else {})}
    traits = traits_of(factory, dim)
    for name in _names(laws, known):
        for case in mixer_cases(factory, dim, traits, name, seed, device):
            apply_law(name, known[name], case)


def traits_of(factory: Callable[[int, Grid], Mixer], dim: int) -> Traits:
    """The traits of the mixer that a factory makes, which its options may have narrowed."""
    if inspect.isclass(factory):
        return factory.traits  # type: ignore[attr-defined]
    errors = []
    for grid in ((6,), (3, 2)):
        try:
            return factory(dim, grid).traits
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(f"the factory builds no mixer of width {dim}, neither on (6,) nor on (3, 2): {errors}")
