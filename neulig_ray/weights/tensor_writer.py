"""safetensors files written as they are made: in any order, from any thread, whole or not at all.

safetensors' own writer puts the metadata in an order that changes from process to process; ours keeps to one.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch

from neulig_ray.errors import InputError, StageError
from neulig_ray.parts import Part
from neulig_ray.weights.metadata import RESERVED
from neulig_ray.weights.tensor_file import DTYPES, LARGEST_HEADER, Spec

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def to_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A whole safetensors file: the same bytes for the same tensors and metadata, on every machine.

    Tensors keep their dtype; views and tensors that share memory are written one by one. Raises InputError
    for names that no reader could read.
    """
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    header, offsets, _ = _layout(specs, metadata)
    return b"".join(
        [header, *(_bytes_of(tensors[name]) for name in sorted(offsets, key=offsets.__getitem__))]
    )


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().reshape(-1).contiguous()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


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
        """Reserve the space on the disk; raises StageError where there is too little of it.

        Raises InputError for a path that cannot be written, and for names that no reader could read.
        """
        self.path = Path(path)
        header, self._offsets, self._size = _layout(specs, metadata)
        self.specs = specs
        try:
            self._part = Part(self.path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._handle = self._part.handle
        try:
            self._reserve()
            os.pwrite(self._handle, header, 0)
        except OSError as error:
            self._part.discard()
            raise self._unwritable(error) from error
        except BaseException:
            self._part.discard()
            raise

    def _reserve(self) -> None:
        """Take the space before the work. Where a file system or a kernel cannot, look whether it is free."""
        try:
            os.posix_fallocate(self._handle, 0, self._size)
        except (OSError, AttributeError) as error:  # some systems have no such call at all
            if getattr(error, "errno", None) in _NO_ROOM:
                raise
            if self._free() < self._size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error

    def _free(self) -> float:
        """Bytes that are free where the file is; infinity where nothing tells."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.path.parent).free
        return math.inf

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
        free = "" if math.isinf(self._free()) else f"; {self._free()} are free"
        return StageError(
            f"cannot write {self.path}: {error.strerror or error} (it takes {self._size} bytes{free})"
        )

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._part.discard()
            return
        try:
            self._part.keep()
        except OSError as error:
            raise self._unwritable(error) from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """A state dict as a file, whole or not at all; raises as `TensorWriter`."""
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with TensorWriter(path, specs, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.cpu())


def _layout(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """The header's bytes, each tensor's offset in the file, and the file's size.

    Tensors are ordered by alignment, the widest first, as safetensors' own writer does. Raises InputError
    for what no reader could read: a name that is the metadata's or no text, and a header that is too large.
    """
    entries: dict[str, Any] = {RESERVED: dict(metadata)} if metadata else {}
    position, places = 0, {}
    for name, spec in sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if name == RESERVED or not _is_text(name):
            raise InputError(
                f"a tensor is called {name!r}, which no safetensors file can hold: rename it in the model"
            )
        places[name] = position
        entries[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > LARGEST_HEADER:
        raise InputError(
            f"the names of {len(specs)} tensors and the metadata take {len(header)} bytes, and a safetensors "
            f"file's header has at most {LARGEST_HEADER}"
        )
    start = 8 + len(header)
    found = len(header).to_bytes(8, "little") + header
    return found, {name: start + place for name, place in places.items()}, start + position


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
