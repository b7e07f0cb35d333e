"""The files that torch.save and pickle write: zip archives, their format before torch 1.6, plain pickles."""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

from .objects import LONGEST_NAMED, WIDTHS, StorageRecord, Unreadable
from .rebuilding import Unpickler

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file of torch.save before 1.6


def _no_storage(dtype: str, key: str, numel: int) -> StorageRecord:
    raise Unreadable("it refers to a storage, but is a plain pickle and has none")


class SideFile:
    """Numbers that lie inside a pickle, and so nowhere in the file that a reader could be sent to: copied."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room
        self._known: dict[
            int, tuple[bytes, StorageRecord]
        ] = {}  # the bytes are held, so that no other has their id

    def storage(self, data: Any, left: set[str]) -> StorageRecord:
        if id(data) in self._known:
            return self._known[id(data)][1]
        if not isinstance(data, bytes):
            raise Unreadable("a storage pickled as bytes is no bytes")
        found = read(io.BytesIO(data), left, self)
        if not isinstance(found, StorageRecord):
            raise Unreadable("a storage pickled as bytes holds something else")
        if not found.side:
            self._room -= found.nbytes
            if self._room < 0:
                raise Unreadable("its storages are larger than the file")
            place = self._file.tell()
            self._file.write(data[found.offset : found.offset + found.nbytes])
            found = StorageRecord(found.dtype, found.numel, place, side=True)
        self._known[id(data)] = data, found
        return found


def read(file: BinaryIO, left: set[str], side: SideFile) -> Any:
    """The object that the file holds, placeholders for all but tensors and plain values."""
    start = file.read(2)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)

    def nested(data: bytes) -> StorageRecord:
        return side.storage(data, left)

    if start == b"PK":
        return _read_zip(file, size, nested, left)
    first = Unpickler(file, _no_storage, nested, left).load()
    return _read_old(file, size, nested, left) if isinstance(first, int) and first == MAGIC else first


Nested = Callable[[bytes], StorageRecord]


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
        known: dict[str, StorageRecord] = {}

        def storage(dtype: str, key: str, numel: int) -> StorageRecord:
            if key not in known:
                if f"{root}data/{key}" not in places:
                    raise Unreadable(f"its storage {key[:LONGEST_NAMED]} is not there")
                offset, length = places[f"{root}data/{key}"]
                if numel * WIDTHS[dtype] > length:
                    raise Unreadable("its numbers are cut")
                known[key] = StorageRecord(dtype, numel, offset)
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
    known: dict[str, StorageRecord] = {}

    def storage(dtype: str, key: str, numel: int) -> StorageRecord:
        found = known.setdefault(key, StorageRecord(dtype, numel))
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
