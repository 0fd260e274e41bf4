"""The mixers of installable packages, with the weights of ours.

A peer takes our mixer and its grid, and gives back the other module and how tokens go in and out of it: a peer on
channels-first images is given such an image, and is not charged for the way there.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Grid = tuple[int, ...]

MISSING: set[str] = set()  # packages that a comparison asked for in vain


class Peer(NamedTuple):
    """A module of another package."""

    label: str
    module: nn.Module
    enter: Callable[[Tensor], Tensor]  # tokens (B, L, D) to its input, not timed
    run: Callable[[Tensor], Tensor]  # timed
    leave: Callable[[Tensor], Tensor]  # its output to tokens, not timed
    tolerance: float = 1e-3  # of the outputs, which are compared; GPU kernels round to tf32 or less inside


def peers_of(name: str, mixer: Any, grid: Grid) -> list[Peer]:
    """The peers of a mixer that are installed here and fit its grid."""
    found = [make(mixer, grid) for make in _PEERS.get(name, [])]
    return [peer for group in found for peer in group]


def _installed(package: str) -> bool:
    if importlib.util.find_spec(package) is not None:
        return True
    MISSING.add(package)
    return False


def _same(x: Tensor) -> Tensor:
    return x


def _tokens(label: str, module: nn.Module, run: Callable[[Tensor], Tensor], tolerance: float = 1e-3) -> list[Peer]:
    """A peer that takes tokens as they are."""
    return [Peer(label, module, _same, run, _same, tolerance)]


def _images(label: str, module: nn.Module, grid: Grid) -> list[Peer]:
    """A peer on channels-first images, in both memory formats."""

    def image(x: Tensor, memory: torch.memory_format) -> Tensor:
        return x.mT.unflatten(-1, grid).contiguous(memory_format=memory)

    def tokens(y: Tensor) -> Tensor:
        return y.flatten(2).mT

    last = torch.channels_last
    return [
        Peer(label, module, lambda x: image(x, torch.contiguous_format), module, tokens),
        Peer(f"{label}, channels last", module, lambda x: image(x, last), module, tokens),
    ]


# ------------------------------------------------------------------ timm


def _sep_conv(mixer: Any, grid: Grid) -> list[Peer]:
    if not _installed("timm") or len(grid) != 2:
        return []
    from timm.models.metaformer import SepConv

    module = SepConv(mixer.dim, expansion_ratio=mixer.inner / mixer.dim, kernel_size=mixer.kernel)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict({n: v.reshape(shapes[n]) for n, v in mixer.state_dict().items()})
    return _images("timm SepConv", module, grid)


def _pooling(mixer: Any, grid: Grid) -> list[Peer]:
    if not _installed("timm") or len(grid) != 2:
        return []
    from timm.models.metaformer import Pooling

    return _images("timm Pooling", Pooling(mixer.window), grid)


def _attention(mixer: Any, grid: Grid) -> list[Peer]:
    peers = []
    if _installed("timm") and len(grid) == 2:
        from timm.models.metaformer import Attention

        module = Attention(mixer.dim, head_dim=mixer.head_dim)
        module.load_state_dict(mixer.state_dict())
        peers += _tokens("timm Attention", module, module)
    torch_one = nn.MultiheadAttention(mixer.dim, mixer.heads, bias=False, batch_first=True)
    torch_one.load_state_dict({"in_proj_weight": mixer.qkv.weight, "out_proj.weight": mixer.proj.weight})
    return [
        *peers,
        *_tokens("nn.MultiheadAttention", torch_one, lambda x: torch_one(x, x, x, need_weights=False)[0]),
    ]


# ------------------------------------------------------------------ transformers


def _fnet(mixer: Any, grid: Grid) -> list[Peer]:
    if not _installed("transformers") or len(grid) != 1:
        return []
    from transformers import FNetConfig
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    module = FNetBasicFourierTransform(FNetConfig(hidden_size=mixer.dim))
    return _tokens("transformers FNet", module, lambda x: module(x)[0])


def _s6(mixer: Any, grid: Grid) -> list[Peer]:
    peers = []
    # Its gradient takes an index a token, quadratic in L: half a minute at L = 1024.
    if not torch.cuda.is_available() and _installed("transformers") and grid[0] <= 1024:
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        config = MambaConfig(
            hidden_size=mixer.dim, state_size=mixer.d_state, conv_kernel=mixer.conv1d.size, num_hidden_layers=1
        )
        module = MambaMixer(config, 0)
        module.load_state_dict(mixer.state_dict())
        peers += _tokens("transformers Mamba", module, module)
    return peers + _mamba_ssm("Mamba", mixer, d_conv=mixer.conv1d.size)


def _ssd(mixer: Any, grid: Grid) -> list[Peer]:
    peers = []
    if not torch.cuda.is_available() and _installed("transformers"):
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        config = Mamba2Config(
            hidden_size=mixer.dim,
            num_heads=mixer.heads,
            head_dim=mixer.head_dim,
            state_size=mixer.d_state,
            n_groups=mixer.groups,
            conv_kernel=mixer.conv1d.size,
            num_hidden_layers=1,
        )
        module = Mamba2Mixer(config, 0)
        module.load_state_dict(mixer.state_dict())
        peers += _tokens("transformers Mamba-2", module, module)
    return peers + _mamba_ssm("Mamba2", mixer, d_conv=mixer.conv1d.size, headdim=mixer.head_dim, ngroups=mixer.groups)


# ------------------------------------------------------------------ CUDA only


def _mamba_ssm(name: str, mixer: Any, **options: Any) -> list[Peer]:
    """A layer of mamba-ssm, with the weights of ours."""
    if not (torch.cuda.is_available() and _installed("mamba_ssm")):
        return []
    # By the module's own path: the package's front imports language models too.
    path = {"Mamba": "mamba_simple", "Mamba2": "mamba2", "Mamba3": "mamba3"}[name]
    layer = getattr(importlib.import_module(f"mamba_ssm.modules.{path}"), name)
    module = layer(mixer.dim, d_state=mixer.d_state, **options).cuda()
    module.load_state_dict(mixer.state_dict())
    if importlib.util.find_spec("causal_conv1d") is None:
        module.use_mem_eff_path = False  # Mamba-2's one kernel for all, which asks for that package
        MISSING.add("causal_conv1d")
    return _tokens(f"mamba-ssm {name}", module, module, 2e-2)


def _fla(package: str, function: str, call: Callable[..., Any], note: str = "") -> Callable[[Any, Grid], list[Peer]]:
    """The product by a kernel of flash-linear-attention, between our projections.

    Args:
        package: of its ``ops``.
        function: its name there.
        call: the function and our matrix and values to its result, ``(B, L, H, W)``.
        note: what is to be known of the comparison, for its label.
    """

    def make(mixer: Any, grid: Grid) -> list[Peer]:
        if not (torch.cuda.is_available() and _installed("fla")):
            return []
        kernel = getattr(importlib.import_module(f"fla.ops.{package}"), function)

        def run(x: Tensor) -> Tensor:
            matrix, values, rest = mixer.project(x, mixer._context(x, grid, None))
            mixed = call(kernel, matrix, values.transpose(1, 2))[0]
            return mixer.merge(mixed.transpose(1, 2), rest)

        return _tokens(f"flash-linear-attention {function}{note}", mixer, run, 2e-2)

    return make


def _scalar_decay(kernel: Callable[..., Any], matrix: Any, values: Tensor) -> Any:
    decay = matrix.log_decay.expand(values.shape[0], -1, -1).mT
    return kernel(matrix.outputs.transpose(1, 2), matrix.inputs.transpose(1, 2), values, g=decay, scale=1.0)


def _own_decay(kernel: Callable[..., Any], matrix: Any, values: Tensor) -> Any:
    """Of retention: the kernel knows the decays of the heads."""
    return kernel(matrix.outputs.transpose(1, 2), matrix.inputs.transpose(1, 2), values, scale=1.0)


def _channel_decay(kernel: Callable[..., Any], matrix: Any, values: Tensor) -> Any:
    query, key, decay = (t.transpose(1, 2) for t in (matrix.outputs, matrix.inputs, matrix.log_decay))
    return kernel(query, key, values, g=decay, scale=1.0)


def _delta(kernel: Callable[..., Any], matrix: Any, values: Tensor) -> Any:
    read, _, strength = matrix.factors  # the kernel takes half types only
    query, key = (t.transpose(1, 2).bfloat16() for t in (read.outputs, read.inputs))
    mixed, state = kernel(query, key, values.bfloat16(), beta=strength.entries.mT.bfloat16(), scale=1.0)
    return mixed.to(values.dtype), state


_PEERS: dict[str, list[Callable[[Any, Grid], list[Peer]]]] = {
    "sep_conv": [_sep_conv],
    "pooling": [_pooling],
    "attention": [_attention],
    "fnet": [_fnet],
    "s6": [_s6],
    "ssd": [_ssd],
    "mamba3": [lambda mixer, grid: _mamba_ssm("Mamba3", mixer, headdim=mixer.head_dim)],
    "retention": [_fla("retention", "chunk_retention", _own_decay)],
    "gla": [_fla("gla", "chunk_gla", _channel_decay)],
    "simple_gla": [_fla("simple_gla", "chunk_simple_gla", _scalar_decay)],
    "delta_rule": [_fla("delta_rule", "chunk_delta_rule", _delta, ", in bfloat16")],
}
