"""The safetensors format by slices: headers, positioned reads, and files written as they are made.

safetensors' own library maps whole files; pages that were read then count as resident memory. Merging reads
each number once, so positioned reads into small buffers keep memory flat.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch

from neulig_ray.errors import InputError, StageError

DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_CONVERT = "Convert it to safetensors with `neulig import`, which runs nothing of it."


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a stored tensor, and where its bytes begin."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself. Offsets count from the beginning of the file, in bytes."""

    specs: Mapping[str, Spec]
    metadata: Mapping[str, str]


def parse_header(start: bytes, size: int, where: str) -> Header:
    """The header, of which `start` holds the bytes, of a file of `size` bytes.

    Raises InputError, naming `where`, for a pickle, a file of another kind, and a truncated or damaged one.
    """
    safe = start[8:9] == b"{"  # a header's length, the first bytes, may look like anything
    if start[:2] == b"PK" and not safe:
        raise InputError(f"{where} is a zip file, as torch.save writes, not safetensors. {_CONVERT}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not safe:
        raise InputError(f"{where} is a pickle, not safetensors. {_CONVERT}")
    length = int.from_bytes(start[:8], "little")
    if where.endswith(".index.json"):
        raise InputError(
            f"{where} lists the files of a model that is split into several: save it as one safetensors file"
        )
    if size < 8 or start[8:9] != b"{":
        raise InputError(f"{where} is not a safetensors file ({size} bytes)")
    if size < 8 + length:
        raise InputError(
            f"{where} is truncated: {size} bytes, but its header alone takes {8 + length}; copy it again"
        )
    try:
        entries = dict(json.loads(start[8 : 8 + length]))
        metadata = {str(k): str(v) for k, v in dict(entries.pop("__metadata__", {})).items()}
        for name, entry in entries.items():
            if str(entry["dtype"]) not in DTYPES:
                raise InputError(
                    f"{where}: {name!r} is {entry['dtype']}, which is not read here: convert it, to one of "
                    f"{', '.join(DTYPES)}"
                )
        specs = {name: _spec(entry, 8 + length) for name, entry in entries.items()}
    except InputError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{where} is damaged: its header cannot be read ({error}); copy it again") from error
    end = max((spec.offset + spec.nbytes for spec in specs.values()), default=0)
    if size < end:
        raise InputError(f"{where} is truncated: {size} of {end} bytes; copy it again")
    return Header(specs, metadata)


def _spec(entry: Mapping[str, Any], data: int) -> Spec:
    begin, end = map(int, entry["data_offsets"])
    spec = Spec(tuple(map(int, entry["shape"])), DTYPES[entry["dtype"]], data + begin)
    if begin < 0 or min(spec.shape, default=0) < 0 or spec.nbytes != end - begin:
        raise ValueError(f"bytes {begin} to {end} for {entry['dtype']} of shape {spec.shape}")
    return spec


class TensorFile:
    """A safetensors file, read by slices. Reading is safe from several threads at once."""

    def __init__(self, path: Path | str) -> None:
        """Raises InputError for what cannot be read or is not a whole safetensors file."""
        self.path = Path(path)
        try:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(self._handle).st_size
            start = os.pread(self._handle, 16, 0)
            if start[8:9] == b"{":
                start = os.pread(self._handle, min(size, 8 + int.from_bytes(start[:8], "little")), 0)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        header = parse_header(start, size, str(path))
        self.specs, self.metadata = header.specs, header.metadata

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Numbers start..stop of a tensor's flat view, in its own dtype."""
        spec = self.specs[name]
        stop = spec.numel if stop is None else stop
        found = torch.empty(stop - start, dtype=spec.dtype)
        if found.numel():
            self._fill(found, spec.offset + start * spec.dtype.itemsize)
        return found

    def _fill(self, tensor: torch.Tensor, offset: int) -> None:
        view = tensor.view(torch.uint8).numpy().data
        while len(view):
            count = os.preadv(self._handle, [view], offset)
            if not count:
                raise StageError(f"{self.path} became shorter while it was read")
            view, offset = view[count:], offset + count

    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None:
        """Fill `out` (float32, flat) with numbers of a tensor from `start` on, converted."""
        spec = self.specs[name]
        if spec.dtype == out.dtype:
            self._fill(out, spec.offset + start * spec.dtype.itemsize)
        else:
            out.copy_(self.read(name, start, start + out.numel()))

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            with contextlib.suppress(OSError):
                os.close(handle)


def check_range(wide: torch.Tensor, narrow: torch.Tensor, name: str, where: str) -> None:
    """Raises StageError where a conversion to the dtype of `narrow` made infinity of a number."""
    floats = narrow.dtype.is_floating_point and wide.dtype.is_floating_point
    if not floats or torch.finfo(narrow.dtype).max >= torch.finfo(wide.dtype).max:
        return
    if narrow.isfinite().all():
        return
    lost = narrow.isinf().reshape(-1) & wide.isfinite().reshape(-1)
    if lost.any():
        dtype, largest = str(narrow.dtype).removeprefix("torch."), torch.finfo(narrow.dtype).max
        wider = "float32 or bfloat16" if narrow.dtype == torch.float16 else "float32"
        raise StageError(
            f"cannot write {where}: {name!r} has numbers beyond {dtype}'s largest ({largest:g}): "
            f"write {wider} (--dtype)"
        )


class TensorWriter:
    """A safetensors file that is written in any order, from any thread; it appears whole or not at all.

    Used as a context: at the end the file takes its name, on an error the unfinished one is removed.
    """

    def __init__(self, path: Path | str, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
        """Reserve the space on the disk; raises StageError where there is too little of it."""
        self.path = Path(path)
        self._part = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.part")
        header, self._offsets, self._size = _layout(specs, metadata)
        self.specs = specs
        try:
            self._handle = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error
        try:
            os.posix_fallocate(self._handle, 0, self._size)
            os.pwrite(self._handle, header, 0)
        except OSError as error:
            self._discard()
            raise self._unwritable(error) from error

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        """Put numbers of a tensor's flat view in their place, from `start` on, in the file's dtype.

        Raises StageError for a full disk, and for numbers that half precision would turn into infinity.
        """
        spec = self.specs[name]
        flat = tensor.detach().reshape(-1).to(spec.dtype).contiguous()
        if not flat.numel():
            return
        check_range(tensor, flat, name, str(self.path))
        view = flat.view(torch.uint8).numpy().data
        offset = self._offsets[name] + start * spec.dtype.itemsize
        try:
            while len(view):
                count = os.pwrite(self._handle, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StageError:
        free = ""
        with contextlib.suppress(OSError):
            free = f"; {shutil.disk_usage(self.path.parent).free} are free"
        return StageError(
            f"cannot write {self.path}: {error.strerror or error} (it takes {self._size} bytes{free})"
        )

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        os.close(self._handle)
        os.replace(self._part, self.path)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._handle)
        with contextlib.suppress(OSError):
            self._part.unlink()


def _layout(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """The header's bytes, each tensor's offset in the file, and the file's size.

    Tensors are ordered by alignment, the widest first, as safetensors' own writer does.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position, places = 0, {}
    for name, spec in sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        places[name] = position
        entries[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    start = 8 + len(header)
    found = len(header).to_bytes(8, "little") + header
    return found, {name: start + place for name, place in places.items()}, start + position
