"""What every image model offers, written once: timm's interface over three or four parts.

A family subclasses ``VisionModel``, hands the shared options to ``super().__init__`` and sets, in any order::

    self.stem     image (B, in_chans, H, W) -> map (B, h, w, C); has out_grid((H, W)) -> (h, w)
    self.stages   nn.ModuleList of vision.layers.Stage (or modules with forward, out_grid and grad_checkpointing):
                  map (B, h, w, C) -> map (B, h', w', C'). An isotropic model cuts its blocks into stages too.
    self.norm     a norm of the last map, for models that normalise before pooling; nn.Identity() otherwise
    self.head     vision.layers.Head(dim, num_classes, global_pool, norm after pooling, drop_rate, kind)

and then calls ``self.finish(dims, reductions)`` with the channels and the stride of each stage. Maps are channels-last
inside, so the tokens ``(B, h w, C)`` of a mixer are a view (``x.flatten(1, 2)``) and so is the channels-last image
``x.permute(0, 3, 1, 2)`` of a convolution. Outside they are what timm has: ``forward_features`` and intermediate
features are ``(B, C, h, w)``, views in channels-last memory.

Everything else is here: ``forward``, ``forward_features``, ``forward_head``, ``forward_intermediates`` (and with it
``features_only=True``), ``prune_intermediate_layers``, ``reset_classifier``, ``get_classifier``,
``set_grad_checkpointing``, ``group_matcher``, ``no_weight_decay``, ``feature_info``, ``resize_``. Where a family does
something between the parts (an embedding of positions, a token of its own), it does so inside a part; what a stage
hands to the end besides its map goes by ``aside`` and ``last``.

Another image size, in every family: ``img_size=`` (an int or ``(H, W)``) builds for it, ``model.resize_(img_size)``
carries the weights over to it, in place and once. A model without parts that are tied to the size runs on any image;
the others refuse what they are not for, by an error that names ``resize_``, and so does loading weights of another
size: build the model with their ``img_size``, load them, then call ``resize_``. Where the published code carries
weights over in every forward instead (DFFormer's backbones, iFormer, RaftMLP), ``dynamic_img_size=True`` does so.

A part that is tied to the grid (a mixer of fixed length, a position embedding) has ``resize_(grid)``, in place; the
model's own ``resize_(img_size)`` walks through the stages and calls it with the grid of the stage. A position
embedding that stands in the stem is reached too, with the stem's ``out_grid``.

Arguments that every family takes: ``depths``, ``dims`` and ``mixers``, by position too, and by name ``num_classes``,
``in_chans``, ``img_size``, ``global_pool``, ``drop_rate``, ``drop_path_rate``. ``drop_paths`` gives the rate of each
block, ``isolated`` keeps a mixer's random numbers from moving those of its surroundings. The draws of a published model
are for its own mixers; any other starts as it does by itself.

Weights of others: ``published`` on the class, source -> function (module, their state dict) -> our state dict; see
``matmix.load_published`` and ``vision.published``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from timm.models import register_notrace_function, register_notrace_module
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from matmix.mixers import Mixer
from matmix.mixers.calls import Input, explain_inputs, explaining, is_said
from matmix.mixers.options import checking_options
from matmix.ops.layers import StarReLU
from matmix.ops.marks import undecayed
from matmix.ops.seed import fork_seed
from matmix.ops.sizes import LengthError
from matmix.ranges import Count, Whole, shown
from vision.layers import Head
from vision.layers.stems import Grid
from vision.words import unknown_option

Size = Count | Sequence[Count]
MOST = 2**20
"""Pixels of a side of an image; beyond them sizes overflow within PyTorch."""


def image_size(size: Size) -> Grid:
    """An image size as ``(H, W)``; an int is a square."""
    sides = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(sides, tuple | list)
        or len(sides) != 2
        or not all(type(n) is int and 0 < n < MOST for n in sides)
    ):
        raise ValueError(f"img_size must be a positive integer below 2**20 or a pair (H, W) of them, got {shown(size)}")
    return sides[0], sides[1]


def drop_paths(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """The rate of stochastic depth of every block, stage by stage: linear from 0 to ``rate`` over all of them."""
    last, rates, done = max(1, sum(depths) - 1), [], 0
    for depth in depths:
        rates.append([rate * (done + i) / last for i in range(depth)])
        done += depth
    return rates


@contextmanager
def isolated(seed: int, name: str) -> Iterator[None]:
    """Build one part under random numbers of its own: models that differ in it alone share all other weights.

    ``seed`` is drawn once a model, ``int(torch.randint(2**31, (), device="cpu"))``.
    """
    with fork_seed(seed, name):
        yield


@register_notrace_function
def check_images(image: Tensor, channels: int) -> None:
    """Refuse what is no batch of images ``(B, channels, H, W)``."""
    if not isinstance(image, Tensor) or image.is_nested or image.dim() != 4 or image.shape[1] != channels:
        raise ValueError(
            f"images must be (B, {channels}, H, W), got {shown(image)}; in_chans= builds a model for other channels"
        )


# torch.fx sees a mixer as one node: inside it are matrices, which are no modules. So it does an activation that looks
# at dtypes.
register_notrace_module(Mixer)
register_notrace_module(StarReLU)


class VisionModel(nn.Module):
    """An image classifier and feature extractor, as timm expects one: images ``(B, in_chans, H, W)`` to logits.

    Args:
        num_classes: classes; 0 for pooled features ``(B, num_features)``.
        in_chans: channels of the images.
        img_size: their size, for what is tied to it.
    """

    # Sources of weights that the class can take, for matmix.load_published.
    published: ClassVar[dict[str, Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]]] = {}

    stem: nn.Module
    stages: nn.ModuleList
    norm: nn.Module
    head: Head

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse unknown options by an error that has the right word; Python's own has not."""
        known = options_of(cls)
        for option in options:
            if option not in known:
                raise TypeError(unknown_option(cls.__name__, option, known))
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checking_options(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, num_classes: Whole = 1000, in_chans: Count = 3, img_size: Size = 224) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.img_size = num_classes, in_chans, image_size(img_size)
        self.grad_checkpointing = False
        self.feature_norms: nn.ModuleList | None = None

    def finish(self, dims: Sequence[int], reductions: Sequence[int], feature_norms: Sequence[nn.Module] = ()) -> None:
        """State what the stages give; the last call of a family's constructor.

        Args:
            dims: channels of each stage's map.
            reductions: its stride with respect to the image.
            feature_norms: a norm for each stage's map, applied to intermediate features only (the published
                backbones for dense prediction); none otherwise.
        """
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        if feature_norms:
            self.feature_norms = nn.ModuleList(feature_norms)

    # ------------------------------------------------------------------ forward

    def _map(self, image: Tensor) -> Tensor:
        """The stem's map of an image that fits."""
        check_images(image, self.in_chans)
        x: Tensor = self.stem(image)
        return x

    def explain(self, error: Exception, method: str, given: dict[str, Any]) -> None:
        """After an error in a method: one in its place that says what of the image or map it has stumbled over."""
        name, x, too_long = type(self).__name__, given["x"], isinstance(error, LengthError)
        of_head = method == "forward_head"
        if is_said(error) and not too_long:
            return
        legend = f"B {self.num_features} h w" if of_head else f"B {self.in_chans} H W"
        explain_inputs(self, error, {"x": Input(legend, needed=True)}, given)
        if of_head or not isinstance(x, Tensor):
            return
        if too_long:
            raise LengthError(
                f"{name}: x must be images of img_size={self.img_size}, got {shown(x)}: {error}"
            ) from error
        coarsest = max(entry["reduction"] for entry in self.feature_info)
        if min(x.shape[2:]) < coarsest:
            least = f"{coarsest} x {coarsest} pixels"
            raise ValueError(f"{name}: x must be images of at least {least}, got {shown(x)}") from error

    @explaining
    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to the last map ``(B, num_features, h, w)``."""
        x, kept = self._map(x), []
        for stage in self.stages:
            x = stage(x)
            kept += self.aside(stage, x)
        return self.last(x, kept).permute(0, 3, 1, 2)

    def aside(self, stage: nn.Module, x: Tensor) -> list[Tensor]:
        """What ``last`` needs of a stage's map besides the last map; nothing, unless a family has shortcuts."""
        return []

    def last(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        """The last stage's map as the head gets it; ``kept`` is what ``aside`` gave, stage by stage."""
        return self.norm(x)

    @explaining
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits, or to what the classifier gets."""
        return self.head(x.permute(0, 2, 3, 1), pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    @explaining
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The last map and the maps of chosen stages.

        Args:
            x: images ``(B, in_chans, H, W)``.
            indices: the last n stages for an int, those listed otherwise, all for None.
            norm: pass the last stage's map through the model's last norm, where that comes before pooling. Feature
                norms, where the model has them, are always applied.
            stop_early: leave out the stages after the last one that is asked for.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: return the list alone.

        Returns:
            ``(last map, [maps])`` as ``forward_features`` gives the last one, or ``[maps]``.
        """
        given, output_fmt = output_fmt, str(getattr(output_fmt, "value", output_fmt))
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {shown(given)}")
        wanted, deepest = self._taken(indices)
        x, maps, kept, last = self._map(x), [], [], len(self.stages) - 1
        for index, stage in enumerate(self.stages):
            if (stop_early or intermediates_only) and index > deepest:
                break
            x = stage(x)
            kept += self.aside(stage, x)
            if index in wanted:
                taken = self.last(x, kept) if norm and index == last else x
                if self.feature_norms is not None:
                    taken = self.feature_norms[index](x)
                maps.append(taken if output_fmt == "NHWC" else taken.permute(0, 3, 1, 2))
        if intermediates_only:
            return maps
        if not stop_early or deepest == last:
            x = self.last(x, kept)
        return x.permute(0, 3, 1, 2), maps

    def _taken(self, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
        """Numbers of the stages that are meant, and the last of them."""
        count = len(self.stages)
        if isinstance(indices, tuple | list):
            fit = len(indices) > 0 and all(type(i) is int and -count <= i < count for i in indices)
        else:
            fit = indices is None or (type(indices) is int and 0 < indices <= count)
        if not fit:
            raise ValueError(
                f"indices must be how many of the {count} stages, or their numbers from {-count} to {count - 1}, "
                f"got {shown(indices)}"
            )
        return feature_take_indices(count, indices)  # type: ignore[arg-type]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last one asked for and, unless told otherwise, the head; ``indices`` as above."""
        wanted, deepest = self._taken(indices)
        cut = deepest < len(self.stages) - 1
        self.stages = self.stages[: deepest + 1]
        if self.feature_norms is not None:
            self.feature_norms = nn.ModuleList(
                module if i in wanted else nn.Identity() for i, module in enumerate(self.feature_norms[: deepest + 1])
            )
        if cut:
            self.num_features = self.head_hidden_size = self.head.dim = self.feature_info[deepest]["num_chs"]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self.head.norm = nn.Identity()
            self.reset_classifier(0, "")
        return wanted

    # ------------------------------------------------------------------ what timm's scripts call

    def get_classifier(self) -> nn.Module:
        """The module from pooled features to logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for another number of classes (0 for none), and another pooling unless None."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.fc.to(like.device, like.dtype).train(self.training)

    @property
    def global_pool(self) -> str:
        """The pooling in use."""
        return self.head.pool_type

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what they need."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for rates that fall with depth."""
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)", (0,)),
            (r"^(?:norm|feature_norms)", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not to be decayed although they are no vectors (states of recurrences, positions); each
        part names its own, see ``matmix.ops.marks``."""
        return undecayed(self)

    # ------------------------------------------------------------------ other sizes

    def stage_grids(self, img_size: Size) -> list[Grid]:
        """The grid of every stage for images of a size."""
        grid = self.stem.out_grid(image_size(img_size))  # type: ignore[operator]
        grids = []
        for stage in self.stages:
            grid = stage.out_grid(grid)  # type: ignore[operator]
            grids.append(grid)
        if min(map(min, grids)) < 1:
            raise ValueError(f"img_size must leave every stage a map of at least 1 x 1, got {img_size!r}: {grids}")
        return grids

    def resize_(self, img_size: Size) -> Self:
        """Adapt what is tied to the built size (mixers of fixed length, position embeddings) to another, in place."""
        size, grids = image_size(img_size), self.stage_grids(img_size)
        _resize(self.stem, self.stem.out_grid(size))  # type: ignore[operator]
        for stage, grid in zip(self.stages, grids, strict=True):
            _resize(stage, grid)
        self.img_size = size
        self._traits = {**getattr(self, "_traits", {}), "img_size": size}  # where timm notes it
        return self

    def set_input_size(self, img_size: Size) -> None:
        """timm's name of ``resize_``."""
        self.resize_(img_size)

    def explain_shapes(self, names: Collection[str]) -> str:
        """What it means that weights have other shapes, where these are tied to the image size alone; else ""."""
        tied = tuple(f"{name}." for name, module in self.named_modules() if name and _is_tied(module))
        if not names or not all(name.startswith(tied) for name in names):
            return ""
        return (
            f"they seem to be for another image size than img_size={self.img_size}: build the model with theirs, "
            f"load them, then call resize_({self.img_size})"
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """PyTorch's own; its error says so where the weights are for another image size."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a table of names and tensors, got {shown(state_dict)}")
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            ours = self.state_dict()
            wrong = [name for name in ours if name in state_dict and ours[name].shape != state_dict[name].shape]
            hint = self.explain_shapes(wrong)
            if not hint:
                raise
            raise RuntimeError(f"{error}\n\tOf the shapes: {hint}") from error


def _is_tied(module: nn.Module) -> bool:
    """Whether a part has weights for one grid."""
    if isinstance(module, Mixer):
        return module.traits.length == "fixed" or getattr(module, "built", None) is not None
    return callable(getattr(module, "resize_", None))


def _resize(module: nn.Module, grid: Grid) -> None:
    """Call the outermost ``resize_`` of every part."""
    for child in module.children():
        resize = getattr(child, "resize_", None)
        if callable(resize):
            with torch.no_grad():
                resize(grid)
        else:
            _resize(child, grid)


def options_of(cls: type[VisionModel]) -> list[str]:
    """The arguments of a model class; one that passes ``**options`` on to its parent has the parent's too."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if name != "self"]
