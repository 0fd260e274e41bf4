"""Families of models, one a file. Importing this package registers every file in it: a new family is a new file."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
