"""What stands for the objects of a foreign pickle: views of numbers in the file, and inert placeholders."""

import math
from typing import Any, NamedTuple

MOST_NAMED = 100  # inert names and things left out that are told
LONGEST_NAMED = 200
# The largest models of one file have some ten thousand tensors, ten levels deep.
MOST_TENSORS, DEEPEST, LONGEST_NAMES = 1 << 18, 100, 1 << 26
# torch's name -> safetensors' (or torch's, where it has none), the class of storages, bytes of a number.
DTYPES = {
    "float64": ("F64", "Double", 8),
    "float32": ("F32", "Float", 4),
    "float16": ("F16", "Half", 2),
    "bfloat16": ("BF16", "BFloat16", 2),
    "int64": ("I64", "Long", 8),
    "int32": ("I32", "Int", 4),
    "int16": ("I16", "Short", 2),
    "int8": ("I8", "Char", 1),
    "uint8": ("U8", "Byte", 1),
    "bool": ("BOOL", "Bool", 1),
    "uint16": ("U16", "", 2),
    "uint32": ("U32", "", 4),
    "uint64": ("U64", "", 8),
    "complex64": ("complex64", "ComplexFloat", 8),
    "complex128": ("complex128", "ComplexDouble", 16),
    "qint8": ("qint8", "QInt8", 1),
    "quint8": ("quint8", "QUInt8", 1),
    "qint32": ("qint32", "QInt32", 4),
    "float8_e4m3fn": ("F8_E4M3", "", 1),
    "float8_e5m2": ("F8_E5M2", "", 1),
    "float8_e4m3fnuz": ("float8_e4m3fnuz", "", 1),
    "float8_e5m2fnuz": ("float8_e5m2fnuz", "", 1),
    "float8_e8m0fnu": ("F8_E8M0", "", 1),
}
WIDTHS: dict[str, int] = {name: width for name, _, width in DTYPES.values()}


class Unreadable(Exception):
    """The file holds no tensors that can be read here."""


class Inert:
    """An object of a class that is not rebuilt. It takes what the pickle gives it and does nothing."""

    name = ""
    state: Any = None

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def _absorb(self, *arguments: Any) -> "Inert":
        return type(self)()

    __call__ = __setitem__ = append = extend = add = _absorb


class StorageRecord:
    """Numbers that tensors are views of, from `offset` on in the file, or in the file SIDE.

    `dtype`: as safetensors calls it. Before torch 1.6 files say last where the numbers are.
    """

    def __init__(self, dtype: str, numel: int, offset: int = 0, *, side: bool = False) -> None:
        self.dtype, self.numel, self.offset, self.side = dtype, numel, offset, side

    @property
    def nbytes(self) -> int:
        return self.numel * WIDTHS[self.dtype]


class Tensor(NamedTuple):
    """A tensor as a view: `start` and `stride` count numbers of the storage."""

    storage: StorageRecord
    dtype: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        begin = self.storage.offset + self.start * WIDTHS[self.dtype]
        return {"dtype": self.dtype, "shape": self.shape, "stride": self.stride, "begin": begin,
                "side": self.storage.side}  # fmt: skip

    @property
    def nbytes(self) -> int:
        return math.prod([WIDTHS[self.dtype], *self.shape])


class DType(str):
    """A dtype that a pickle names; itself the name that safetensors has for it."""

    __slots__ = ()
