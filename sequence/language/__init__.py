"""Language models around any mixer, as models of transformers.

import sequence.language                        # AutoConfig, AutoModel, AutoModelForMaskedLM, ... know "matmix"

config = MatmixConfig(mixer="hydra", vocab_size=4000, dim=256, depth=12)
model = MatmixForMaskedLM(config)
model.save_pretrained("folder"); AutoModelForMaskedLM.from_pretrained("folder"); pipeline("fill-mask", "folder")
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from sequence.language.causal import MatmixForCausalLM, MixerCache
from sequence.language.config import MatmixConfig
from sequence.language.model import MatmixModel
from sequence.language.pretraining import MatmixForPreTraining
from sequence.language.tasks import (
    MatmixForMaskedLM,
    MatmixForSequenceClassification,
    MatmixForTokenClassification,
)

__all__ = [
    "MatmixConfig",
    "MatmixForCausalLM",
    "MatmixForMaskedLM",
    "MatmixForPreTraining",
    "MatmixForSequenceClassification",
    "MatmixForTokenClassification",
    "MatmixModel",
    "MixerCache",
]

AutoConfig.register(MatmixConfig.model_type, MatmixConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, MatmixModel),
    (AutoModelForMaskedLM, MatmixForMaskedLM),
    (AutoModelForPreTraining, MatmixForPreTraining),
    (AutoModelForSequenceClassification, MatmixForSequenceClassification),
    (AutoModelForTokenClassification, MatmixForTokenClassification),
    (AutoModelForCausalLM, MatmixForCausalLM),
):
    _auto.register(MatmixConfig, _model, exist_ok=True)
