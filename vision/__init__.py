"""Image models built from matmix mixers: ``create_model``, ``list_models``, and the same names in timm."""

from vision import models
from vision.base import VisionModel
from vision.metaformer import MetaFormer
from vision.registry import create_model, list_models, model_info, register, timm_name

__all__ = [
    "MetaFormer",
    "VisionModel",
    "create_model",
    "list_models",
    "model_info",
    "models",
    "register",
    "timm_name",
]
