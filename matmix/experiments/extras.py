"""Which extra installs what is missing: read from the metadata of the package that needs it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

_OTHER_NAMES = {"sklearn": "scikit-learn"}  # of modules, where their distribution has another


def advice(error: ImportError, package: str = "matmix") -> str:
    """What to install after a failed import, in words: "tyro is not installed: pip install 'matmix[experiments]'"."""
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not module:
        return str(error)
    for owner in dict.fromkeys((package, "matmix")):
        extra = extra_of(module, owner)
        if extra is not None:
            return f'{module} is not installed: pip install "{owner}{f"[{extra}]" if extra else ""}"'
    return f"{module} is not installed"


def require(module: str) -> None:
    """Raise a ValueError that says what to install, where a module is not there."""
    if find_spec(module) is None:
        raise ValueError(advice(ModuleNotFoundError(name=module)))


def extra_of(module: str, package: str = "matmix") -> str | None:
    """The extra of an installed package that brings a module, "" for the package itself, None for neither."""
    wanted = _plain(_OTHER_NAMES.get(module, module))
    try:
        listed = requires(package) or []
    except PackageNotFoundError:  # a checkout that was never installed
        return None
    for line in listed:
        name = re.match(r"[\w.-]+", line)
        if name is not None and _plain(name[0]) == wanted:
            extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", line)
            return extra[1] if extra else ""
    return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
