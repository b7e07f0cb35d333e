"""What the names in a pickle mean here: few make tensors, all others placeholders."""

import collections
import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

from .objects import (
    DEEPEST,
    DTYPES,
    LONGEST_NAMED,
    MOST_NAMED,
    WIDTHS,
    DType,
    Inert,
    StorageRecord,
    Tensor,
    Unreadable,
)


def _sizes(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if len(found) > DEEPEST or not all(type(value) is int and 0 <= value < 1 << 62 for value in found):
        raise Unreadable("a tensor has a shape that is none")
    return found


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    return _view(storage, getattr(storage, "dtype", ""), offset, size, stride)


def _typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any,
                  *rest: Any) -> Tensor:  # fmt: skip
    if not isinstance(dtype, DType):
        raise Unreadable("a tensor is of a dtype that is none")
    return _view(storage, str(dtype), offset, size, stride)


def _view(storage: Any, dtype: str, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(storage, StorageRecord):
        raise Unreadable("a tensor is a view of something that is not a storage of numbers")
    (start,), shape, strides = _sizes([offset]), _sizes(size), _sizes(stride)
    if len(shape) != len(strides):
        raise Unreadable(f"a tensor of shape {shape} has {len(strides)} strides")
    numel = storage.nbytes // WIDTHS[dtype]
    last = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    wanted = math.prod(shape)
    if wanted > numel or (wanted and last >= numel) or start > numel:
        raise Unreadable(f"a tensor of shape {shape} is larger than what is stored of it")
    return Tensor(storage, dtype, start, shape, strides)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    return function(*arguments)  # one of the functions here, or a placeholder: there is nothing else


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise Unreadable("it holds a text in another encoding than pickle's")
    return text.encode("latin1")


REBUILT: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _encoded,
}
REBUILT |= {("torch", torch_name): DType(name) for torch_name, (name, _, _) in DTYPES.items()}
REBUILT |= {
    (module, f"{storage}Storage"): DType(name)
    for name, storage, _ in DTYPES.values()
    for module in ("torch", "torch.cuda")
    if storage
}
REBUILT |= {(module, "UntypedStorage"): DType("U8") for module in ("torch", "torch.storage")}


class Unpickler(pickle.Unpickler):
    """`storage(dtype, key, numel)` gives the storages that the pickle names; `nested(data)` that of a pickle
    within it; `left` collects other names."""

    def __init__(
        self,
        file: BinaryIO,
        storage: Callable[[str, str, int], StorageRecord],
        nested: Callable[[bytes], StorageRecord],
        left: set[str],
    ) -> None:
        super().__init__(file)
        self._storage, self._nested, self._left = storage, nested, left

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._nested
        if (module, name) in REBUILT:
            return REBUILT[module, name]
        full = f"{module}.{name}"
        if len(self._left) < MOST_NAMED:
            self._left.add(full[:LONGEST_NAMED])
        return type("Inert", (Inert,), {"name": full[:LONGEST_NAMED]})

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid:
            raise Unreadable("it refers to something that is not a storage of numbers")
        if pid[0] == "module" and len(pid) > 1:  # a class with its source, as torch.save wrote it before 1.6
            return pid[1]
        if pid[0] != "storage" or len(pid) < 5 or not isinstance(pid[1], DType) or (len(pid) > 5 and pid[5]):
            raise Unreadable("it refers to something that is not a storage of numbers")
        (numel,) = _sizes([pid[4]])
        return self._storage(str(pid[1]), str(pid[2]), numel)
