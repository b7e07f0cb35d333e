"""A GPU that is not there: tensors on a device of its own that refuse the CPU's company, but compute on it.

Within `pretended_gpu()`, `tensor.to(GPU)` and `torch.zeros(3, device=GPU)` give such tensors. What a GPU
refuses is refused: an operation on tensors of both devices (but for numbers without dimensions), and
`.numpy()`. Values are the CPU's, so that a whole evaluation can be held against one without it. What a GPU's
own kernels do, its memory and its speed are not seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("lazy:0")  # "cuda" would do, were it not that backward passes look for its driver
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Pretended(torch.Tensor):
    """`inner`: the tensor on the CPU that it is."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Pretended":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what is made on a device, or moved there."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(function, args, kwargs or {})


def _compute(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, Pretended)]
    here = [t for t in tensors if not isinstance(t, Pretended) and t.dim()]
    if there and here and function not in _MOVES:
        raise RuntimeError(f"{function}: tensors on the GPU and on the CPU")
    plain_args, plain = tree_map_only(Pretended, lambda t: t.inner, (args, dict(kwargs)))
    to_there = bool(there)
    if function is _MOVES[1]:
        to_there = isinstance(args[0], Pretended)
    elif kwargs.get("device") is not None:
        to_there = torch.device(kwargs["device"]).type == GPU.type
        plain["device"] = "cpu"
    found = function(*plain_args, **plain)
    if not to_there:
        return found
    return return_and_correct_aliasing(function, args, kwargs, tree_map_only(torch.Tensor, Pretended, found))


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    lifting = torch._C._only_lift_cpu_tensors()
    overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=GPU) moves, which the mode sees
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),  # the others are the CPU's own
            _Mode(),
        ):
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(lifting)
        torch.__future__.set_overwrite_module_params_on_conversion(overwriting)
