"""Time-series models, one a file. Importing this package registers every file in it: a new model is a new file."""

from importlib import import_module
from pkgutil import iter_modules

from sequence.series.models.base import SeriesModel, create_series_model, list_series_models, register_series_model

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["SeriesModel", "create_series_model", "list_series_models", "register_series_model"]
