"""The tensors of a file that torch.save or pickle wrote, as safetensors; nothing of the file is run.

A script: `python -P unpickling.py SOURCE TARGET`, in a process of its own, with no import of ours. Of all
names in a pickle only those in `REBUILT` mean something, and what they mean is written here; every other
class or function is an inert placeholder: calling it gives another placeholder, and no code is imported for
it. Reads torch.save's zip format, its format before 1.6, and plain pickles (task_vectors' `finetuned.pt`).
"""

import collections
import io
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file of torch.save before 1.6
MOST_NAMED = 10


class Unreadable(Exception):
    """The file holds no tensors that can be read here."""


class Inert:
    """An object of a class that is not rebuilt. It takes what the pickle gives it and does nothing."""

    state: Any = None

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def _absorb(self, *arguments: Any) -> "Inert":
        return Inert()

    __call__ = __setitem__ = append = extend = add = _absorb


class Storage:
    """Numbers that tensors are views of."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    size = tuple(size)
    if math.prod(size) > storage.numbers.numel():
        raise Unreadable(f"a tensor of shape {size} is larger than what is stored of it")
    return storage.numbers.as_strided(size, tuple(stride), offset)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    return function(*arguments)  # one of the functions here, or a placeholder: there is nothing else


def _storage_of_bytes(data: bytes) -> Storage:
    found = read(io.BytesIO(data), set())
    if not isinstance(found, Storage):
        raise Unreadable("a storage pickled as bytes holds something else")
    return found


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding)


REBUILT: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage_of_bytes,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _encoded,
}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
REBUILT |= {(m, name): dtype for m in ("torch", "torch.cuda") for name, dtype in STORAGES.items()}


class Unpickler(pickle.Unpickler):
    """`storage(dtype, key, numel)` gives the storages that the pickle names; `left` collects other names."""

    def __init__(
        self, file: BinaryIO, storage: Callable[[torch.dtype, str, int], Storage], left: set[str]
    ) -> None:
        super().__init__(file)
        self._storage, self._left = storage, left

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in REBUILT:
            return REBUILT[module, name]
        self._left.add(f"{module}.{name}")
        return type("Inert", (Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class with its source, as torch.save wrote it before 1.6
            return pid[1]
        if pid[0] != "storage" or not isinstance(pid[1], torch.dtype) or (len(pid) > 5 and pid[5]):
            raise Unreadable("it refers to something that is not a storage of numbers")
        return self._storage(pid[1], str(pid[2]), int(pid[4]))


def _no_storage(dtype: torch.dtype, key: str, numel: int) -> Storage:
    raise Unreadable("it refers to a storage, but is a plain pickle and has none")


def read(file: BinaryIO, left: set[str]) -> Any:
    """The object that the file holds, placeholders for all but tensors and plain values."""
    start = file.read(2)
    file.seek(0)
    if start == b"PK":
        return _read_zip(file, left)
    first = Unpickler(file, _no_storage, left).load()
    return _read_old(file, left) if isinstance(first, int) and first == MAGIC else first


def _read_zip(file: BinaryIO, left: set[str]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise Unreadable("it is a TorchScript archive, a program and not a file of weights")
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Unreadable("it is a zip file, but not one that torch.save wrote")
        root = roots[0]
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise Unreadable("it was written on a machine of another byte order")
        known: dict[str, Storage] = {}

        def stored(name: str) -> bytes:
            entry = archive.getinfo(f"{root}{name}")
            if entry.compress_type != zipfile.ZIP_STORED:  # a small file that grows without end, maybe
                raise Unreadable(f"its {name} is compressed, which torch.save does not do")
            return archive.read(entry)

        def storage(dtype: torch.dtype, key: str, numel: int) -> Storage:
            if key not in known:
                known[key] = Storage(_numbers(stored(f"data/{key}"), dtype, numel))
            return known[key]

        return Unpickler(io.BytesIO(stored("data.pkl")), storage, left).load()


def _read_old(file: BinaryIO, left: set[str]) -> Any:
    """What follows the magic number: version, sizes, the object, the keys of storages, their numbers."""
    room = file.seek(0, io.SEEK_END)
    file.seek(0)
    known: dict[str, Storage] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> Storage:
        nonlocal room
        if key not in known:
            room -= numel * dtype.itemsize
            if numel < 0 or room < 0:
                raise Unreadable("its storages are larger than the file: it is cut")
            known[key] = Storage(torch.empty(numel, dtype=dtype))
        return known[key]

    for _ in range(3):
        Unpickler(file, _no_storage, left).load()
    found = Unpickler(file, storage, left).load()
    for key in Unpickler(file, _no_storage, left).load():
        numbers = known[str(key)].numbers
        if int.from_bytes(file.read(8), "little") != numbers.numel():
            raise Unreadable(f"its storage {key} has another size than its tensors say")
        numbers.copy_(_numbers(file.read(numbers.nbytes), numbers.dtype, numbers.numel()))
    return found


def _numbers(data: bytes, dtype: torch.dtype, numel: int) -> torch.Tensor:
    if len(data) < numel * dtype.itemsize:
        raise Unreadable("its numbers are cut")
    return (
        torch.frombuffer(bytearray(data), dtype=dtype, count=numel) if numel else torch.empty(0, dtype=dtype)
    )


def tensors(found: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a module, or of nested dicts, under the names of its state dict."""
    if isinstance(found, torch.Tensor):
        yield prefix.removesuffix("."), found
        return
    if isinstance(found, Inert):  # a module: what its state dict would hold
        state = found.state if isinstance(found.state, dict) else {}
        hidden = state.get("_non_persistent_buffers_set") or ()
        parts: list[Mapping[Any, Any]] = [state.get(name) or {} for name in ("_parameters", "_modules")]
        parts.append({k: v for k, v in (state.get("_buffers") or {}).items() if k not in hidden})
    else:
        parts = [found] if isinstance(found, Mapping) else []
    for part in parts:
        for name, value in part.items():
            if isinstance(name, str):
                yield from tensors(value, f"{prefix}{name}.")


def extract(source: Path, target: Path) -> dict[str, Any]:
    """Write the tensors of `source` to `target`; what was found, for the caller."""
    left: set[str] = set()
    with source.open("rb") as file:
        found = read(file, left)
    if isinstance(found, Mapping) and "state_dict" in found:  # a training's checkpoint: not its optimiser
        found = found["state_dict"]
    named = dict(tensors(found))
    names = sorted(left)
    if not named:
        raise Unreadable(f"it holds no tensors (names in it: {', '.join(names[:MOST_NAMED]) or 'none'})")
    # safetensors keeps no views: each tensor is stored for itself.
    safetensors.torch.save_file({k: t.detach().clone().contiguous() for k, t in named.items()}, target)
    return {"tensors": len(named), "inert": names}


_FORBIDDEN = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "socket.", "subprocess.")


def _refuse(event: str, arguments: Any) -> None:
    """A second fence: this process starts no other, and talks to nobody, whatever the file holds."""
    if event.startswith(_FORBIDDEN):
        raise Unreadable(f"it tried {event}")


def main(source: str, target: str) -> int:
    sys.addaudithook(_refuse)
    try:
        print(json.dumps(extract(Path(source), Path(target))))
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = (
            str(error)
            if isinstance(error, Unreadable)
            else f"it is damaged, or no file of torch.save or pickle ({type(error).__name__}: {error})"
        )
        print(json.dumps({"error": reason}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
