"""What the files of a run do not hold is refused before anything is trained."""

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType

from matmix.experiments.step import new_accelerator


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_models_are_refused(monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    with pytest.raises(ValueError, match=f"copies of the model .DDP., got {kind}: checkpoints and weights of sharded"):
        new_accelerator("no")
