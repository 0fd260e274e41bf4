"""Tasks, trainer, studies, reports and the command line."""

from matmix.experiments.registry import register_task
from matmix.experiments.task import Batch, Recipe, Split, Task
from matmix.experiments.tensor_task import TensorTask

__all__ = ["Batch", "Recipe", "Split", "Task", "TensorTask", "register_task"]
