"""safetensors files read by slices.

safetensors' own library says what a header means. It maps whole files, though; pages that were read then
count as resident memory. Merging reads each number once, so positioned reads into small buffers keep memory
flat.
"""

import contextlib
import errno
import json
import math
import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from neulig_ray.errors import InputError, StageError
from neulig_ray.weights.metadata import RESERVED

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
LARGEST_HEADER: Final = 100_000_000  # bytes; no reader takes a larger one
_CONVERT = "Convert it to safetensors with `neulig import`, which runs nothing of it."
T = TypeVar("T")


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a stored tensor, and where its bytes begin."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def looks_safe(start: bytes) -> bool:
    """Whether a file that begins so may be safetensors: its first bytes, a length, may look like anything."""
    rest = start[8:].lstrip(b" \t\r\n")
    return rest[:1] == b"{" or (len(start) > 8 and not rest)


def refuse_others(start: bytes, size: int, where: str) -> None:
    """Raises InputError, naming `where`, for what is no safetensors file, as its first bytes tell."""
    if looks_safe(start):
        length = int.from_bytes(start[:8], "little")
        if size < 8 + length:
            raise InputError(
                f"{where} is truncated: {size} bytes, but its header alone takes {8 + length}; copy it again"
            )
        if length > LARGEST_HEADER:
            raise InputError(
                f"{where} has a header of {length} bytes, and readers take at most {LARGEST_HEADER}"
            )
        return
    if start[:2] == b"PK":
        raise InputError(f"{where} is a zip file, as torch.save writes, not safetensors. {_CONVERT}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise InputError(f"{where} is a pickle, not safetensors. {_CONVERT}")
    raise InputError(f"{where} is not a safetensors file ({size} bytes)")


def damaged(where: str, header: bytes, size: int, error: Exception) -> InputError:
    """The error for a file whose header (its length included) the library refuses."""
    reason = str(error).partition(": ")[2] or str(error)
    if "JSON" in reason or "UTF-8" in reason:
        return InputError(f"{where} is damaged: its header cannot be read ({reason}); copy it again")
    with contextlib.suppress(ValueError, TypeError, LookupError):
        entries = json.loads(header[8:])  # the library has read it: it is neither deep nor damaged
        entries.pop(RESERVED, None)
        for name, entry in entries.items():
            (begin, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
            if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
                reason += f": {name!r} has bytes {begin} to {end} for {dtype} of shape {shape}"
                break
        if "not fully covered" in reason:
            end = len(header) + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            if size < end:
                return InputError(f"{where} is truncated: {size} of {end} bytes; copy it again")
            reason = f"{size - end} bytes follow its last tensor"
    return InputError(f"{where} is damaged: {reason}; copy it again")


def not_read(where: str, name: str, dtype: str) -> InputError:
    """The error for a tensor of a dtype that nothing here computes with."""
    return InputError(
        f"{where}: {name!r} is {dtype}, which is not read here: convert it, to one of {', '.join(DTYPES)}"
    )


def unreadable(where: str, error: OSError) -> InputError:
    """The error for a file that the system does not open or read."""
    if error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return InputError(
            f"{where} cannot be read: too many files are open; this process may have {most} at once. Raise "
            f"the limit in the shell that starts it (`ulimit -n {max(4 * most, 4096)}`), or name fewer files"
        )
    return InputError(f"{where} cannot be read: {error.strerror or error}")


def with_more_files(opening: Callable[[], T]) -> T:
    """What `opening` gives; where too many files are open, once more under the highest limit allowed."""
    try:
        return opening()
    except OSError as error:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return opening()


class Reader:
    """A file that is read by positions, from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for what cannot be opened."""
        self.path = path
        try:
            self._handle = with_more_files(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self.size = os.fstat(self._handle).st_size
            self.start = os.pread(self._handle, 64, 0)
        except OSError as error:
            raise unreadable(str(path), error) from error

    def fill(self, tensor: torch.Tensor, offset: int) -> None:
        """Fill a contiguous tensor with the bytes from `offset` on."""
        if not tensor.numel():
            return
        view = tensor.view(-1).view(torch.uint8).numpy().data
        while len(view):
            try:
                count = os.preadv(self._handle, [view], offset)
            except OSError as error:
                raise StageError(f"{self.path} cannot be read any more: {error.strerror or error}") from error
            if not count:
                raise StageError(f"{self.path} became shorter while it was read")
            view, offset = view[count:], offset + count

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            with contextlib.suppress(OSError):
                os.close(handle)


class TensorFile:
    """A safetensors file, read by slices. Reading is safe from several threads at once."""

    def __init__(self, path: Path | str) -> None:
        """Raises InputError for what cannot be read or is not a whole safetensors file."""
        self.path = Path(path)
        self._file = Reader(self.path)
        refuse_others(self._file.start, self._file.size, str(path))
        self.specs, self.metadata = self._header()

    def _header(self) -> tuple[Mapping[str, Spec], Mapping[str, str]]:
        length = 8 + int.from_bytes(self._file.start[:8], "little")
        try:
            with with_more_files(self._opened) as file:
                # By offset, and without gaps: so each begins where the one before it ends.
                found = [(name, file.get_slice(name)) for name in file.offset_keys()]
                stored = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in found}
                metadata = dict(file.metadata() or {})
        except SafetensorError as error:
            header = torch.empty(min(length, self._file.size), dtype=torch.uint8)
            self._file.fill(header, 0)
            raise damaged(str(self.path), header.numpy().tobytes(), self._file.size, error) from error
        except OSError as error:
            raise unreadable(str(self.path), error) from error
        specs, offset = {}, length
        for name, (shape, dtype) in stored.items():
            if dtype not in DTYPES:
                raise not_read(str(self.path), name, dtype)
            specs[name] = Spec(shape, DTYPES[dtype], offset)
            offset += specs[name].nbytes
        return specs, metadata

    def _opened(self) -> Any:
        try:
            return safe_open(self.path, "np")
        except FileNotFoundError as error:  # so it tells of any failure to open; this file has been opened
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Numbers start..stop of a tensor's flat view, in its own dtype."""
        spec = self.specs[name]
        stop = spec.numel if stop is None else stop
        found = torch.empty(stop - start, dtype=spec.dtype)
        self._file.fill(found, spec.offset + start * spec.dtype.itemsize)
        return found

    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None:
        """Fill `out` (float32, flat) with numbers of a tensor from `start` on, converted."""
        spec = self.specs[name]
        if spec.dtype == out.dtype:
            self._file.fill(out, spec.offset + start * spec.dtype.itemsize)
        else:
            out.copy_(self.read(name, start, start + out.numel()))
