"""Surgery: any mixer into any model, and what the old one was.

::

    from matmix import surgery

    print(surgery.find(model))
    report = surgery.replace(model, "hydra(expand=1)", where="attn")
    print(report)
    report.restore()
"""

from matmix.adapters import Adapter, Attended, Call, Site, register_adapter
from matmix.surgery.ablate import Ablation, ablate
from matmix.surgery.distill import Distilled, distill
from matmix.surgery.explain import explain
from matmix.surgery.explanation import Explanation
from matmix.surgery.find import Sites, find
from matmix.surgery.projected import NoMatrix
from matmix.surgery.recipe import DistillRecipe, Stage
from matmix.surgery.replace import replace
from matmix.surgery.report import Report
from matmix.surgery.select import select
from matmix.surgery.storage import apply, save

__all__ = [
    "Ablation",
    "Adapter",
    "Attended",
    "Call",
    "DistillRecipe",
    "Distilled",
    "Explanation",
    "NoMatrix",
    "Report",
    "Site",
    "Sites",
    "Stage",
    "ablate",
    "apply",
    "distill",
    "explain",
    "find",
    "register_adapter",
    "replace",
    "save",
    "select",
]
