"""The class in the docstring of the contract keeps every law."""

import inspect
import math
import re
import textwrap
from typing import Any

import torch
from torch import Tensor

from matmix.matrices import Matrix, axes, base
from matmix.ops.cost import Cost
from matmix.testing import check_matrix


def test_the_class_that_the_contract_shows_keeps_every_law() -> None:
    """Five methods and no more: what they leave to the base class is under the laws as well."""
    shown = re.search(r"::\n\n((?:    .*\n|\n)+)", inspect.getdoc(base) or "")
    assert shown is not None
    names: dict[str, Any] = {
        "Matrix": Matrix,
        "Tensor": Tensor,
        "Cost": Cost,
        "math": math,
        "torch": torch,
        "axes": axes,
    }
    exec(textwrap.dedent(shown[1]), names | {"__name__": __name__}, names)
    diagonal = names["Diagonal"]
    assert "_rmatmul" not in vars(diagonal)
    check_matrix(diagonal)
