"""Where the tensors of a file lie that torch.save or pickle wrote; nothing of the file is run.

A script: `python -I -S unpickling.py SOURCE SIDE KEY`, in a process of its own, without torch and without
any import of ours. It writes JSON: of each tensor the dtype, shape, strides and where its numbers begin in
SOURCE. Numbers that lie inside a pickle are copied to the file SIDE. Of all names in a pickle only those in
`REBUILT` mean something, and what they mean is written here; every other class or function is an inert
placeholder: calling it gives another placeholder, and no code is imported for it. Reads torch.save's zip
format, its format before 1.6, and plain pickles (task_vectors' `finetuned.pt`).
"""

import collections
import gc
import io
import json
import math
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file of torch.save before 1.6
MOST_NAMED = 100  # inert names and things left out that are told
LONGEST_NAMED = 200
MEMORY = 1 << 30  # bytes beyond what is mapped after the imports, and four times the file
# The largest models of one file have some ten thousand tensors, ten levels deep.
MOST_TENSORS, DEEPEST, LONGEST_NAMES = 1 << 18, 100, 1 << 26
# Where training programs keep the state dict inside what they save; the first of these is taken.
NESTS = ("state_dict", "model_state_dict", "model", "module")
# What the keys of a training's own state have in their names, and those of whole models.
_TRAINING = ("optim", "sched", "scaler", "rng")
_MODELS = ("model", "state", "ema", "param", "weight", "net", "module", "student", "teacher", "swa", "avg")


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


class Storage:
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

    storage: Storage
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
    if not isinstance(storage, Storage):
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
_DTYPES = {
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
WIDTHS: dict[str, int] = {name: width for name, _, width in _DTYPES.values()}
REBUILT |= {("torch", torch_name): DType(name) for torch_name, (name, _, _) in _DTYPES.items()}
REBUILT |= {
    (module, f"{storage}Storage"): DType(name)
    for name, storage, _ in _DTYPES.values()
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
        storage: Callable[[str, str, int], Storage],
        nested: Callable[[bytes], Storage],
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


def _no_storage(dtype: str, key: str, numel: int) -> Storage:
    raise Unreadable("it refers to a storage, but is a plain pickle and has none")


class Side:
    """Numbers that lie inside a pickle, and so nowhere in the file that a reader could be sent to: copied."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room
        self._known: dict[
            int, tuple[bytes, Storage]
        ] = {}  # the bytes are held, so that no other has their id

    def storage(self, data: Any, left: set[str]) -> Storage:
        if id(data) in self._known:
            return self._known[id(data)][1]
        if not isinstance(data, bytes):
            raise Unreadable("a storage pickled as bytes is no bytes")
        found = read(io.BytesIO(data), left, self)
        if not isinstance(found, Storage):
            raise Unreadable("a storage pickled as bytes holds something else")
        if not found.side:
            self._room -= found.nbytes
            if self._room < 0:
                raise Unreadable("its storages are larger than the file")
            place = self._file.tell()
            self._file.write(data[found.offset : found.offset + found.nbytes])
            found = Storage(found.dtype, found.numel, place, side=True)
        self._known[id(data)] = data, found
        return found


def read(file: BinaryIO, left: set[str], side: Side) -> Any:
    """The object that the file holds, placeholders for all but tensors and plain values."""
    start = file.read(2)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)

    def nested(data: bytes) -> Storage:
        return side.storage(data, left)

    if start == b"PK":
        return _read_zip(file, size, nested, left)
    first = Unpickler(file, _no_storage, nested, left).load()
    return _read_old(file, size, nested, left) if isinstance(first, int) and first == MAGIC else first


Nested = Callable[[bytes], Storage]


def _read_zip(file: BinaryIO, size: int, nested: Nested, left: set[str]) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(name.endswith("/constants.pkl") for name in names):
            raise Unreadable("it is a TorchScript archive, a program and not a file of weights")
        places = _places(file, size, entries)
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Unreadable("it is a zip file, but not one that torch.save wrote")
        root = roots[0]

        def content(name: str, most: int) -> bytes:
            offset, length = places[f"{root}{name}"]
            if length > most:
                raise Unreadable(f"its {name} has {length} bytes")
            file.seek(offset)
            return file.read(length)

        if f"{root}byteorder" in places and content("byteorder", 100) != b"little":
            raise Unreadable("it was written on a machine of another byte order")
        known: dict[str, Storage] = {}

        def storage(dtype: str, key: str, numel: int) -> Storage:
            if key not in known:
                if f"{root}data/{key}" not in places:
                    raise Unreadable(f"its storage {key[:LONGEST_NAMED]} is not there")
                offset, length = places[f"{root}data/{key}"]
                if numel * WIDTHS[dtype] > length:
                    raise Unreadable("its numbers are cut")
                known[key] = Storage(dtype, numel, offset)
            if known[key].dtype != dtype or known[key].numel != numel:
                raise Unreadable(f"its storage {key[:LONGEST_NAMED]} is of two kinds")
            return known[key]

        return Unpickler(io.BytesIO(content("data.pkl", size)), storage, nested, left).load()


def _places(file: BinaryIO, size: int, entries: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Name -> offset and length of every entry's bytes. All are checked, whichever are read afterwards.

    A compressed entry may grow without end, and one whose sizes differ, or that lies upon another, lies.
    """
    places: dict[str, tuple[int, int]] = {}
    for entry in entries:
        name = entry.filename[:LONGEST_NAMED]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Unreadable(f"its entry {name} is compressed, which torch.save does not do")
        if entry.flag_bits & 1:
            raise Unreadable(f"its entry {name} is encrypted")
        if entry.file_size != entry.compress_size:
            raise Unreadable(
                f"its entry {name} says that it has {entry.file_size} bytes, and takes {entry.compress_size}"
            )
        file.seek(entry.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise Unreadable(f"its entry {name} is not where the list of entries says")
        method, stored, declared = struct.unpack("<8xH8xII", header[:26])
        if method != zipfile.ZIP_STORED:
            raise Unreadable(f"its entry {name} is compressed, which torch.save does not do")
        # Zero: sizes follow the entry; all ones: they stand in the entry's extra field.
        if {stored, declared} - {0, 0xFFFFFFFF, entry.file_size}:
            raise Unreadable(f"its entry {name} says two sizes, {declared} and {entry.file_size} bytes")
        offset = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if offset + entry.file_size > size:
            raise Unreadable(f"its entry {name} is cut: it would take {entry.file_size} bytes")
        if entry.filename in places:
            raise Unreadable(f"it has two entries {name}")
        places[entry.filename] = offset, entry.file_size
    end = 0
    for name, (offset, length) in sorted(places.items(), key=lambda item: item[1]):
        if offset < end:
            raise Unreadable(f"its entry {name[:LONGEST_NAMED]} lies upon another")
        end = offset + length
    return places


def _read_old(file: BinaryIO, size: int, nested: Nested, left: set[str]) -> Any:
    """What follows the magic number: version, machine, the object, the keys of storages, their numbers."""
    known: dict[str, Storage] = {}

    def storage(dtype: str, key: str, numel: int) -> Storage:
        found = known.setdefault(key, Storage(dtype, numel))
        if (found.dtype, found.numel) != (dtype, numel):
            raise Unreadable(f"its storage {key[:LONGEST_NAMED]} is of two kinds")
        return found

    for _ in range(2):
        Unpickler(file, _no_storage, nested, left).load()
    found = Unpickler(file, storage, nested, left).load()
    keys = Unpickler(file, _no_storage, nested, left).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(known):
        raise Unreadable("it does not say where its storages are")
    for key in map(str, keys):
        if int.from_bytes(file.read(8), "little") != known[key].numel:
            raise Unreadable(f"its storage {key[:LONGEST_NAMED]} has another size than its tensors say")
        known[key].offset = file.tell()
        if known[key].offset + known[key].nbytes > size:
            raise Unreadable("its numbers are cut")
        file.seek(known[key].nbytes, io.SEEK_CUR)
    return found


def parts_of(found: Any) -> dict[str, Any]:
    """What a dict, or a module's state dict, has under names: tensors, and what may hold more of them."""
    if isinstance(found, Inert):
        state = found.state if isinstance(found.state, dict) else {}
        hidden = state.get("_non_persistent_buffers_set")
        hidden = {name for name in hidden if isinstance(name, str)} if isinstance(hidden, (set, list)) else ()
        held = [state.get(name) for name in ("_parameters", "_modules", "_buffers")]
        pairs = [
            (name, value)
            for number, part in enumerate(held)
            if isinstance(part, dict)
            for name, value in part.items()
            if number < 2 or name not in hidden
        ]
    else:
        pairs = list(found.items()) if isinstance(found, dict) else []
    return {name: value for name, value in pairs if isinstance(name, str)}


class Names:
    """The tensors below an object, under the names of its state dict. Each object is looked at once."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # -1 while its parts are counted
        self._held: list[Any] = []  # so that no other object takes an id that is known

    def count(self, found: Any, depth: int = 0) -> int:
        """How many names lead to a tensor; one that two names lead to counts twice, as in a state dict."""
        if isinstance(found, Tensor):
            return 1
        if not isinstance(found, (dict, Inert)):
            return 0
        if (known := self._counts.get(id(found))) is not None:
            if known < 0:
                raise Unreadable("it holds a dict or module that holds itself")
            return known
        if depth > DEEPEST:
            raise Unreadable(f"its dicts or modules are nested more than {DEEPEST} levels deep")
        self._counts[id(found)] = -1
        self._held.append(found)
        total = sum(self.count(value, depth + 1) for value in parts_of(found).values())
        self._counts[id(found)] = total
        return total

    def flat(self, found: Any, prefix: str = "") -> dict[str, Tensor]:
        """Name -> tensor. Raises Unreadable for more than a file of weights has."""
        if (count := self.count(found)) > MOST_TENSORS:
            raise Unreadable(f"it gives {count} names to tensors, and at most {MOST_TENSORS} are read")
        named: dict[str, Tensor] = {}
        self._room = LONGEST_NAMES
        self._flatten(found, prefix, named)
        return named

    def _flatten(self, found: Any, prefix: str, named: dict[str, Tensor]) -> None:
        for name, value in parts_of(found).items():
            full = f"{prefix}{name}"
            if not self.count(value):
                continue
            if not isinstance(value, Tensor):
                self._flatten(value, f"{full}.", named)
                continue
            self._room -= len(full)
            if self._room < 0:
                raise Unreadable(f"the names of its tensors take more than {LONGEST_NAMES} letters")
            if full in named:
                raise Unreadable(f"it has two tensors of the name {full[:LONGEST_NAMED]!r}")
            named[full] = value


class Choice(NamedTuple):
    """Which part of a file its weights are: the keys that lead there, and the keys that were passed over."""

    found: Any
    key: str
    others: tuple[str, ...]


def choose(found: Any, wanted: str, names: Names) -> Choice:
    """The weights in what a program saved: a state dict, a module, or one of these under a key.

    Two parts that are models of one kind (`model` and `ema`) are refused unless `wanted` names one. Where
    there is one model alone, it is taken whatever `wanted` says.
    """
    key, others = "", []
    while isinstance(found, dict):
        parts = parts_of(found)
        held = {
            name: value
            for name, value in parts.items()
            if not isinstance(value, Tensor)
            and names.count(value)
            and not any(word in name.lower() for word in _TRAINING)
        }
        fitting = [name for name in held if f"{wanted}.".startswith(f"{name}.")]
        chosen: str | None = max(fitting, key=len, default=None)
        if chosen is not None:
            wanted = wanted.removeprefix(chosen).removeprefix(".")
        elif wanted and len(held) > 1:
            known = ", ".join(repr(f"{key}{name}"[:LONGEST_NAMED]) for name in list(held)[:MOST_NAMED])
            raise Unreadable(f"it has no weights under {wanted!r}: --weights-key takes one of {known}")
        elif twins := _twins(held, names):
            shown = " and ".join(repr(f"{key}{name}"[:LONGEST_NAMED]) for name in twins[:MOST_NAMED])
            raise Unreadable(f"it holds several models, {shown}: choose one with --weights-key KEY")
        else:
            loose = any(isinstance(value, Tensor) and value.shape for value in parts.values())
            known_nests = [name for name in NESTS if name in held]
            if known_nests:
                chosen = known_nests[0]
            elif len(held) == 1 and not loose:
                (chosen,) = held
        if chosen is None:
            break
        others += [f"{key}{name}" for name in parts if name != chosen and names.count(parts[name])]
        found, key = held[chosen], f"{key}{chosen}."
    return Choice(found, key.removesuffix("."), tuple(others))


def _twins(held: Mapping[str, Any], names: Names) -> list[str]:
    """Two or more parts that are models of one kind: most of their tensors have one name and shape.

    Parts of one model may be alike too, as encoder and decoder are: one of them is called as models are.
    """
    kinds = {}
    for part, value in held.items():
        flat = names.flat(value)
        ends = ((".".join(name.split(".")[-2:]), tensor.shape) for name, tensor in flat.items())
        kinds[part] = collections.Counter(ends)
    for part in (part for part in held if any(word in part.lower() for word in _MODELS)):
        kind = kinds[part]
        alike = [
            other
            for other, theirs in kinds.items()
            if 2 * (kind & theirs).total() > max(kind.total(), theirs.total())
        ]
        if len(alike) > 1:
            return alike
    return []


def extract(source: Path, side: Path, wanted: str) -> dict[str, Any]:
    """What is known of the file's weights, for the caller; see `main`."""
    left: set[str] = set()
    size = source.stat().st_size
    with source.open("rb") as file, side.open("wb") as copies:
        found = read(file, left, Side(copies, size))
    names = Names()
    choice = choose(found, wanted, names)
    named = names.flat(choice.found)
    inert = sorted(left)
    if not named:
        kind = choice.found.name if isinstance(choice.found, Inert) else type(choice.found).__name__
        raise Unreadable(f"it holds no tensors ({kind}; names in it: {', '.join(inert[:10]) or 'none'})")
    total = sum(tensor.nbytes for tensor in named.values())
    if total > MEMORY + 4 * size:
        raise Unreadable(f"its tensors would take {total} bytes, the file has {size}")
    loose = {} if isinstance(choice.found, Inert) else parts_of(choice.found)
    odd = {name: _kind(value) for name, value in loose.items() if not names.count(value)}
    return {
        "tensors": {name: tensor.record() for name, tensor in named.items()},
        "inert": inert,
        "key": choice.key[:LONGEST_NAMED],
        "others": [name[:LONGEST_NAMED] for name in choice.others[:MOST_NAMED]],
        "odd": {name[:LONGEST_NAMED]: kind for name, kind in list(odd.items())[:MOST_NAMED]},
        "module": choice.found.name if isinstance(choice.found, Inert) else "",
    }


def _kind(value: Any) -> str:
    return (value.name or "object") if isinstance(value, Inert) else type(value).__name__


_FORBIDDEN = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "socket.", "subprocess.")


def _refuse(event: str, arguments: Any) -> None:
    """A second fence: this process starts no other, and talks to nobody, whatever the file holds."""
    if event.startswith(_FORBIDDEN):
        raise Unreadable(f"it tried {event}")


def _limit_memory(size: int) -> None:
    """No more memory than a file of this size needs, beyond what this process has mapped already."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except (ImportError, OSError):
        return  # no Linux: the time that the caller gives is the only limit
    most = mapped + MEMORY + 4 * size
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(source: str, side: str, wanted: str) -> int:
    """Print the findings as JSON, or {"error": ...}."""
    sys.addaudithook(_refuse)
    gc.disable()  # it would look through what a file builds again and again
    status = 1
    try:
        _limit_memory(os.stat(source).st_size)
        told = json.dumps(extract(Path(source), Path(side), wanted))
        status = 0
    except Unreadable as error:
        told = json.dumps({"error": str(error)})
    except MemoryError:
        told = json.dumps({"error": "it takes more memory than 1 GiB and four times the file's size"})
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = f"{type(error).__name__}: {str(error)[:LONGEST_NAMED]}"
        told = json.dumps({"error": f"it is damaged, or no file of torch.save or pickle ({reason})"})
    sys.stdout.write(told)
    sys.stdout.flush()
    os._exit(status)  # taking apart what a hostile file had built may overflow the stack


if __name__ == "__main__":
    main(*sys.argv[1:])
