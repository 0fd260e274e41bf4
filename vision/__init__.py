"""Image models built from matmix mixers: ``create_model``, ``list_models``, and the same names in timm."""

from vision import models
from vision.base import VisionModel
from vision.dense import mask_rcnn, retinanet, semantic_fpn
from vision.examples import example
from vision.metaformer import MetaFormer
from vision.registry import create_model, list_models, model_info, register, timm_name

__all__ = [
    "MetaFormer",
    "VisionModel",
    "create_model",
    "example",
    "list_models",
    "mask_rcnn",
    "model_info",
    "models",
    "register",
    "retinanet",
    "semantic_fpn",
    "timm_name",
]
