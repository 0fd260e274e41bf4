"""Matrix classes and mixers that are wrong in one way each. A law that they pass is no law (tests/test_laws_catch.py).

Nothing here is registered.
"""

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

MODULES: tuple[ModuleType, ...] = tuple(
    import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
)
"""Every file of this folder."""
WRONG_MIXERS: list[tuple[str, Any, Any, str]] = [
    row for module in MODULES for row in getattr(module, "WRONG_MIXERS", ())
]
"""(law, wrong mixer, correct twin, words of the error) of all files."""
