"""Every law over every matrix class."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matmix.matrices import Matrix
from matmix.testing import MATRIX_LAWS, MatrixCase, apply_law
from matmix.testing import check as checks
from matmix.testing.strategies import matrix_cases
from tests.laws import MANY, QUICK, matrix_classes, pairs

DRAWN, DRAWN_IDS = pairs(MATRIX_LAWS, matrix_classes(), traced=False)
TRACED, TRACED_IDS = pairs(MATRIX_LAWS, matrix_classes(), traced=True)


@pytest.mark.parametrize(("law", "cls"), DRAWN, ids=DRAWN_IDS)
def test_law(law: str, cls: type[Matrix]) -> None:
    @QUICK
    @example(MatrixCase(cls, (1,), heads=1, batch=2))
    @given(matrix_cases(cls))
    def check(case: MatrixCase) -> None:
        apply_law(law, MATRIX_LAWS[law], case)

    check()


@pytest.mark.parametrize(("law", "cls"), TRACED, ids=TRACED_IDS)
def test_traced_law(law: str, cls: type[Matrix]) -> None:
    apply_law(law, MATRIX_LAWS[law], MatrixCase(cls, **checks.MATRIX_TRACED))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("cls", matrix_classes(), ids=lambda cls: cls.__name__)
def test_laws_at_many_sizes(cls: type[Matrix]) -> None:
    drawn = [law for law in MATRIX_LAWS if law not in checks.TRACED]

    @MANY
    @given(matrix_cases(cls), st.sampled_from(drawn))
    def check(case: MatrixCase, law: str) -> None:
        apply_law(law, MATRIX_LAWS[law], case)

    check()


def test_every_shipped_class_is_found() -> None:
    import matmix.matrices

    public = {getattr(matmix.matrices, name) for name in matmix.matrices.__all__}
    public = {cls for cls in public if isinstance(cls, type) and issubclass(cls, Matrix) and cls is not Matrix}
    assert public <= set(matrix_classes())
    assert len(public) >= 8
