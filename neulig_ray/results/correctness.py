"""Which images each row got right: bits beside the rows, so that any two rows can be compared in pairs.

A safetensors file of packed bits (uint8, the first image in the highest bit of the first byte). For each ROW,
named by `row_key`: `ROW/images`, a bit for each image of the split up to the last one that the row looked at,
set where it did; `ROW/merging` and `ROW/ensembling`, a bit for each of those in the order of the split, set
where the prediction was right. One of the two may be missing, as its accuracy is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from safetensors import SafetensorError, deserialize

from neulig_ray.errors import InputError

LARGEST: Final = 64 * 2**20  # bytes of a file: beyond a hundred rows of a million images
SIDES: Final = ("merging", "ensembling")
_KEY: Final = ("task", "granularity", "buffers", "order_seed", "seed")


def row_key(row: Mapping[Any, Any]) -> str:
    """The name of a row among those of its evaluation: task|granularity|buffers|order_seed|seed."""
    return "|".join(_word(row.get(name)) for name in _KEY)


def _word(value: Any) -> str:
    return "" if value is None or value is pd.NA or value != value else str(value)


@dataclass(frozen=True)
class Correctness:
    """The packed bits of one row, as in the file."""

    images: bytes
    merging: bytes | None = None
    ensembling: bytes | None = None

    @classmethod
    def of(
        cls, positions: np.ndarray, merging: np.ndarray | None = None, ensembling: np.ndarray | None = None
    ) -> "Correctness":
        """Of images at `positions` (N,) in their split, in any order, and what was right of them, (N,) bool.

        Raises ValueError where an image comes twice.
        """
        order = np.argsort(positions, kind="stable")
        seen = np.zeros(int(positions.max()) + 1 if len(positions) else 0, bool)
        seen[positions] = True
        if seen.sum() != len(positions):
            raise ValueError("a row looks at each image once")
        sides = (None if side is None else _packed(side[order]) for side in (merging, ensembling))
        return cls(_packed(seen), *sides)

    @property
    def count(self) -> int:
        """How many images the row looked at."""
        return int(_unpacked(self.images).sum())

    def right(self, side: str) -> np.ndarray | None:
        """What was right of the row's images (count,) bool, in the split's order; None for no such side."""
        bits: bytes | None = getattr(self, side)
        return None if bits is None else _unpacked(bits)[: self.count]


def read(data: bytes, where: str) -> dict[str, Correctness]:
    """The rows of a file. Raises InputError, naming `where`, for a damaged one and one of another format."""
    if len(data) > LARGEST:
        raise InputError(f"{where} has more than {LARGEST >> 20} MiB, more than this package writes")
    try:
        stored = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _damaged(where, str(error)) from None
    found: dict[str, dict[str, bytes]] = {}
    for name, part in stored:
        key, _, what = name.rpartition("/")
        if not key or what not in ("images", *SIDES) or part["dtype"] != "U8" or len(part["shape"]) != 1:
            raise _damaged(where, f"{name!r} is {part['dtype']} of shape {part['shape']}, no row's bits")
        found.setdefault(key, {})[what] = bytes(part["data"])
    for key, parts in found.items():
        _check(key, parts, where)
    return {key: Correctness(**parts) for key, parts in found.items()}


def _check(key: str, parts: Mapping[str, bytes], where: str) -> None:
    if "images" not in parts or len(parts) < 2:
        raise _damaged(where, f"the row {key} has {' and '.join(sorted(parts))} alone")
    count = int(_unpacked(parts["images"]).sum())
    if parts["images"].endswith(b"\0"):
        raise _damaged(where, f"the images of {key} end with some that it does not have")
    for side in SIDES:
        bits = parts.get(side)
        if bits is None:
            continue
        if len(bits) != -(-count // 8) or _unpacked(bits)[count:].any():
            raise _damaged(where, f"{key}/{side} has {len(bits)} bytes, which do not fit {count} images")


def _damaged(where: str, reason: str) -> InputError:
    return InputError(f"{where} is damaged: {reason}; fetch it again, or remove it")


def _packed(bits: np.ndarray) -> bytes:
    return np.packbits(bits.astype(bool)).tobytes()


def _unpacked(bits: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bits, np.uint8)).astype(bool)
