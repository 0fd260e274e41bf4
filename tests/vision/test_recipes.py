"""The papers' recipes, against what is known of them."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

import vision
from matmix.experiments.task import Recipe
from matmix.experiments.trainer import new_optimizer
from vision.recipes import FINE_TUNING, IMAGES, TRAINING, epochs, published
from vision.tasks.imagenet import ImageNet

# Families without a known recipe: their papers or repositories do not state it.
UNKNOWN = ("affnet", "activemlp", "hydra_vit", "metaformer", "ffnet_seg")


def test_every_model_has_a_recipe_or_says_that_there_is_none():
    used = set()
    for name in vision.list_models():
        if name.startswith(UNKNOWN):
            with pytest.raises(ValueError, match=f"no recipe 'published' is known for model '{name}'"):
                published(name)
            continue
        settings, recipe = published(name)
        ImageNet(architecture=name, **settings)
        used.add(next(function for pattern, function in TRAINING.items() if re.fullmatch(pattern, name)))
        assert recipe.batch_size % (settings.get("repeats", 1) * 8) == 0 and recipe.accumulate == 1
        assert recipe.steps * recipe.batch_size == pytest.approx(300 * IMAGES, rel=5e-3)  # an epoch's rest is left out
    assert len(used) >= 5 and {"baselines", "convformer", "caformer", "dfformer"} <= {one.__name__ for one in used}


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "batch", "warmup", "drop"),
    [
        ("poolformerv2_m48", "adamw", 4e-3, 4096, 5, 0.4),
        ("randformer_m48", "adamw", 4e-3, 4096, 5, 0.3),
        ("convformer_b36", "adamw", 4e-3, 4096, 20, 0.6),
        ("caformer_s18", "lamb", 8e-3, 4096, 20, 0.15),
        ("poolformer_s36", "adamw", 4e-3, 4096, 5, 0.2),
        ("dfformer_s18", "adamw", 1e-3, 1024, 20, 0.2),
        ("cdfformer_b36", "adamw", 1e-3, 1024, 20, 0.6),
        ("raftmlp_l", "adamw", 2e-3, 2048, 5, 0.1),
        ("inception_former_l", "adamw", 1e-3, 1056, 5, 0.5),
        ("ffnet_2", "adamw", 1e-3, 1024, 5, 0.15),
        ("gfnet_xs", "adamw", 1e-3, 1024, 5, 0.1),
        ("vmamba_v0_t", "adamw", 1e-3, 1024, 20, 0.1),
        ("vmamba_b_s2l15", "adamw", 1e-3, 1024, 20, 0.6),
    ],
)
def test_published_values(name, optimizer, lr, batch, warmup, drop):
    settings, recipe = published(name)
    assert (recipe.optimizer, recipe.lr, recipe.batch_size, settings["drop_path"]) == (optimizer, lr, batch, drop)
    assert recipe.warmup * 300 == pytest.approx(warmup) and recipe.weight_decay == 0.05
    assert settings["auto_augment"] == "rand-m9-mstd0.5-inc1" and settings["cutmix"] == 1.0
    steps = recipe.steps
    assert recipe.lr_at(round(warmup / 300 * steps)) == pytest.approx(lr, rel=1e-3)
    assert recipe.lr_at(steps - 1) == pytest.approx(1e-6 if name == "inception_former_s" else 1e-5, rel=0.01)


def test_the_difference_to_timms_schedule_is_as_stated():
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = CosineLRScheduler(optimizer, 300, lr_min=0.0, warmup_t=20, warmup_lr_init=1e-6)
    ours = Recipe(steps=300, lr=1.0, warmup=20 / 300)
    gaps = [ours.lr_at(epoch) - theirs._get_lr(epoch)[0] for epoch in range(20, 300)]
    assert max(map(abs, gaps)) == pytest.approx(0.063, abs=0.001) and min(gaps) > -1e-9


def test_fine_tuning_at_384():
    for name, lr in (("convformer_m36", 5e-5), ("caformer_m36", 1e-4)):
        settings, recipe = published(name, "published-384")
        assert settings["img_size"] == 384 and settings["mixup"] == settings["cutmix"] == 0.0
        assert recipe.lr_at(0) == recipe.lr_at(recipe.steps - 1) == pytest.approx(lr) and recipe.ema == 0.9999
        assert math.isclose(recipe.steps * 1024, 30 * IMAGES, rel_tol=1e-3)
    with pytest.raises(ValueError, match=r"no recipe 'published-384' is known for model 'dfformer_s18'"):
        published("dfformer_s18", "published-384")
    assert len(FINE_TUNING) == 1


def test_named_recipes_of_a_task():
    task, recipe = ImageNet(architecture="caformer_m36(img_size=192)").named_recipe("published")
    assert (task.drop_path, task.dropout, recipe.optimizer) == (0.4, 0.4, "lamb")
    with pytest.raises(ValueError, match="did you mean published"):
        ImageNet(architecture="caformer_m36").named_recipe("publishd")


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "sgd"])
def test_optimizers_spare_vectors_and_what_the_model_names(name):
    model = vision.create_model(
        "metaformer_s18",
        depths=(1, 1, 1, 1),
        dims=(8, 8, 8, 8),
        mixers="pooling, pooling, s6, attention",
        pos_embed=True,
    )
    spared = model.no_weight_decay()
    assert spared
    groups = new_optimizer(model, Recipe(optimizer=name, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(1 for _ in model.parameters())
    for key, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 and key not in spared else 0.0), key


def test_lamb_of_the_recipe_is_timms():
    from timm.optim import Lamb

    recipe = epochs(1, batch=64, lr=0.1, warmup=0, optimizer="lamb")
    optimizer = new_optimizer(nn.Linear(4, 4), recipe)
    assert isinstance(optimizer, Lamb) and optimizer.defaults["betas"] == (0.9, 0.999)


def test_unknown_optimizers_are_named():
    with pytest.raises(ValueError, match=r"Recipe.optimizer='lambb' is no optimizer of timm; did you mean lamb"):
        new_optimizer(nn.Linear(2, 2), Recipe(optimizer="lambb"))
