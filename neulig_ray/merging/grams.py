"""Gram matrices of the inputs of every linear map of a network, whatever it is called there.

A map y = x W^T with inputs x has the Gram matrix X^T X / rows, one row for each token or position. Kernels
are linear maps of the patches that they see. Hooks on modules would miss most of a CLIP tower: attention uses
its projections without calling a module, and `x @ proj` has none. So what is watched is the functions that a
parameter is given to.
"""

import inspect
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from neulig_ray.errors import InputError

# What is measured of `W` in y = x W (in, out), as open_clip's `proj`, is called "W.T": it belongs to W^T.
TRANSPOSED = ".T"
_PATCH_NUMBERS = 1 << 24  # of one piece of unfolded images: 64 MiB


def gram_key(statistics: Container[str], name: str) -> str | None:
    """What a parameter's Gram matrix is called among the statistics; None where it has none."""
    return next((key for key in (name, name + TRANSPOSED) if key in statistics), None)


def belongs(gram: tuple[int, ...], key: str, shape: tuple[int, ...]) -> bool:
    """Whether Gram matrices of shape `gram`, called `key`, can be those of a parameter of shape `shape`."""
    if len(shape) < 2:
        return False
    inputs = shape[0] if key.endswith(TRANSPOSED) else prod(shape[1:])
    groups = gram[0] if len(gram) == 3 else 1
    square = gram[-2:] == (inputs, inputs) and len(gram) in (2, 3)
    return square and groups > 0 and shape[0] % groups == 0


class _Enough(Exception):
    """All that is asked for has been seen of this batch."""


@torch.no_grad()
def measure_grams(
    tower: nn.Module, batches: Iterable[torch.Tensor], only: Collection[str] | None = None
) -> dict[str, torch.Tensor]:
    """Parameter name (see TRANSPOSED) -> X^T X / rows, float32 (in, in), on the CPU.

    The tower, in eval mode, stays as it is. A kernel (out, in / g, h, w) has g matrices over in / g * h * w
    numbers, (g, K, K) unless g is 1; the fused projection of an attention whose query, key and value differ
    has three. With `only`, each run stops when these parameters' inputs have been seen.

    Raises InputError where there is no image, and for an attention that cannot be followed.
    """
    device = next(tower.parameters()).device
    watch = _Watch(tower, only)
    for pixels in batches:
        watch.waiting = set(only or ())
        try:
            with watch:
                tower(pixels.to(device))
        except _Enough:
            pass
    if not watch.rows:
        raise InputError("no linear map has seen an input: give at least one image")
    return {name: (total / watch.rows[name]).cpu() for name, total in watch.totals.items()}


class _Watch(TorchFunctionMode):
    """While it is entered, adds up X^T X for the parameters of a tower."""

    def __init__(self, tower: nn.Module, only: Collection[str] | None) -> None:
        super().__init__()
        self.totals: dict[str, torch.Tensor] = {}
        self.rows: dict[str, int] = {}
        self.waiting: set[str] = set()
        self._only = only
        self._names = {id(parameter): name for name, parameter in tower.named_parameters()}

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        follow = _FOLLOWED.get(function)
        if follow is not None:
            follow(self, found, *args, **(kwargs or {}))
            if self._only is not None and not self.waiting:
                raise _Enough
        return found

    def wants(self, weight: Any) -> str | None:
        """The name of a parameter that is measured."""
        name = self._names.get(id(weight))
        return name if self._only is None or name in self._only else None

    def add(self, weight: Any, *inputs: torch.Tensor, transposed: bool = False) -> None:
        """Count inputs (..., in) of a parameter: one, or as many as its rows have groups."""
        name = self.wants(weight)
        if name is None:
            return
        self.waiting.discard(name)
        rows = [x.reshape(-1, x.shape[-1]).float() for x in inputs]
        grams = [x.T @ x for x in rows]
        key = name + TRANSPOSED * transposed
        gram = grams[0] if len(grams) == 1 else torch.stack(grams)
        self.totals[key] = self.totals[key] + gram if key in self.totals else gram
        self.rows[key] = self.rows.get(key, 0) + len(rows[0])


def _linear(
    watch: _Watch, out: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: Any = None
) -> None:
    watch.add(weight, input)


def _matmul(watch: _Watch, out: torch.Tensor, input: torch.Tensor, other: torch.Tensor) -> None:
    watch.add(other, input, transposed=True)


def _conv2d(
    watch: _Watch,
    out: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    if watch.wants(weight) is None:
        return
    if isinstance(padding, str):
        raise InputError(f"a convolution with padding {padding!r} cannot be measured: give it in pixels")
    numbers = weight[0].numel() * groups * out.shape[2:].numel()
    for images in torch.split(input, max(1, _PATCH_NUMBERS // numbers)):
        patches = F.unfold(images, weight.shape[2:], dilation, padding, stride)
        watch.add(weight, *patches.transpose(1, 2).chunk(groups, -1))


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


def _attention(watch: _Watch, out: tuple[torch.Tensor, Any], *args: Any, **kwargs: Any) -> None:
    """Inputs (length, batch, width). The output projection's are the values mixed by the attention."""
    bound = _ATTENTION.bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    inputs = (a["query"], a["key"], a["value"])
    if a["use_separate_proj_weight"]:
        weights = (a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"])
        for weight, x in zip(weights, inputs, strict=True):
            watch.add(weight, x)
    else:
        weights = a["in_proj_weight"].chunk(3)
        same = inputs[0] is inputs[1] and inputs[1] is inputs[2]
        watch.add(a["in_proj_weight"], *inputs[: 1 if same else 3])
    name = watch.wants(a["out_proj_weight"])
    if name is None:
        return
    mixed = _mixed_values(inputs, weights, a["in_proj_bias"], a["num_heads"], a["attn_mask"])
    repeated = F.linear(mixed, a["out_proj_weight"], a["out_proj_bias"])
    if not torch.allclose(repeated, out[0], rtol=1e-2, atol=1e-3 * float(out[0].abs().max())):
        raise InputError(f"the attention before {name!r} does more than can be followed (masks, added keys)")
    watch.add(a["out_proj_weight"], mixed)


def _mixed_values(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    heads: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """softmax(Q K^T / sqrt(width)) V of all heads side by side: (length, batch, width)."""
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    length, batch, _ = inputs[0].shape
    q, k, v = (
        F.linear(x, weight, b).view(len(x), batch, heads, -1).permute(1, 2, 0, 3)
        for x, weight, b in zip(inputs, weights, biases, strict=True)
    )
    return F.scaled_dot_product_attention(q, k, v, mask).permute(2, 0, 1, 3).reshape(length, batch, -1)


_FOLLOWED: dict[Any, Callable[..., None]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.multi_head_attention_forward: _attention,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
}
