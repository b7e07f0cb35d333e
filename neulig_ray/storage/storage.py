"""Where artifacts live: a local path or an object store, written whole or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pyarrow import fs

from neulig_ray.documents import MOST_BYTES, bounded_json
from neulig_ray.errors import InputError, StageError
from neulig_ray.parts import whole_file
from neulig_ray.redaction import redacted, without_secrets
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.layout import ABOUT, CORRECT, FOLDERS, TABLE, Top
from neulig_ray.storage.listing import Listing, leads_out, local_listing
from neulig_ray.storage.manifest import MANIFEST, is_within, read_manifest

Files = Mapping[str, bytes] | Iterator[tuple[str, bytes]]
_CLAIM_FILES: dict[str, int] = {}
_PATIENCE: Final = (1.0, 4.0, 15.0)  # seconds before each further attempt after an error that may pass
_PASSING: Final = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}  # of a shared file system
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
T = TypeVar("T")


class Storage:
    """Artifacts under one URI (a path, s3://, gs://: what Ray's storage_path accepts).

    An artifact exists when its manifest does: the manifest holds the sha256 and the size in bytes of each
    of its files and is written last. Writing an artifact twice is harmless: the bytes are the same.
    What an object store or a shared file system refuses is tried again for 20 s, then a StageError.
    Nothing outside is read, written or removed, whatever manifests and links say: that is an InputError.
    """

    def __init__(self, uri: str) -> None:
        """Raises InputError when no file system answers to the URI's scheme."""
        self.local = "://" not in uri or uri.startswith("file://")
        try:
            if self.local:
                path = uri.removeprefix("file://")
                self._fs: fs.FileSystem = fs.LocalFileSystem()
                self.root = str(Path(path).expanduser().resolve())
            else:
                self._fs, self.root = fs.FileSystem.from_uri(uri)
        except (ValueError, OSError, RuntimeError) as error:  # a loop of links, the home of nobody
            raise InputError(
                f"--storage {uri!r}: {error}. Use a local path, s3://bucket/prefix or gs://bucket/prefix."
            ) from error
        self.uri = self.root if self.local else uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.uri,)

    @property
    def shown(self) -> str:
        """The URI for people's eyes and for files: without user, password and keys."""
        return redacted(self.uri)

    def full(self, path: str) -> str:
        """The path of `path` on this storage's own file system."""
        return f"{self.root}/{path}" if path else self.root

    def place(self, path: str) -> str:
        """`full` of a path that is about to be used; raises InputError where it leads out of the storage."""
        full = self.full(path)
        if path and not is_within(path):
            raise InputError(f"{full!r} is no path within the storage {self.root}")
        if self.local and (target := leads_out(self.root, full)):
            raise InputError(
                f"{full} is a link that leads out of the storage, to {target}: move what it points to here"
            )
        return full

    def child_uri(self, path: str) -> str:
        """The URI of a folder, as Ray's storage_path takes it."""
        if self.local:
            return f"{self.uri.rstrip('/')}/{path}"
        place, mark, options = self.uri.partition("?")  # s3://bucket/prefix?endpoint_override=HOST:PORT
        return f"{place.rstrip('/')}/{path}{mark}{options}"

    def check_writable(self) -> None:
        """Raises InputError, naming the storage and the remedy, when a file cannot be written there."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self._write(self.full(probe), b"")
            self._fs.delete_file(self.full(probe))
        except OSError as error:
            raise InputError(
                f"--storage {self.uri!r} cannot be written: {error}. Name another folder or bucket, "
                "or mend its permissions."
            ) from error
        self._check_kinds({**dict.fromkeys(FOLDERS, True), Top.CLAIMS: False})

    def check_experiment(self, name: str) -> None:
        """Raises InputError where an experiment's results could not be written into its folder."""
        files = {f"{name}/{file}": False for file in (TABLE, ABOUT, Top.REPORT)}
        self._check_kinds({name: True, f"{name}/{CORRECT}": True, **files})
        other = next((x for x in self.top() if x != name and x.casefold() == name.casefold()), None)
        if other is not None and name not in self.top():
            raise InputError(
                f"name {name!r} differs from {other!r}, which the storage has, by case alone: on some file "
                "systems the two would be one folder. Choose another name."
            )

    def _check_kinds(self, folders: Mapping[str, bool]) -> None:
        """Raises InputError for a file where a folder is to be, and the other way about."""
        for path, folder in folders.items():
            place = Path(self.place(path))
            if self.local and place.exists() and place.is_dir() != folder:
                kinds = ("a file", "a folder") if folder else ("a folder", "a file")
                raise InputError(f"{place} is {kinds[0]}, where {kinds[1]} is to be: move it away")

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all: under its final name only when every byte is there."""
        target = self.place(path)
        self._attempt(f"write {target}", lambda: self._write(target, data))

    def _write(self, target: str, data: bytes) -> None:
        if not self.local:
            with self._fs.open_output_stream(target) as stream:  # an object appears when it is whole
                stream.write(data)
            return
        self._fs.create_dir(os.path.dirname(target), recursive=True)
        with whole_file(Path(target)) as stream:
            stream.write(data)

    def _attempt(self, what: str, work: Callable[[], T]) -> T:
        """What `work` gives; raises FileNotFoundError at once, other errors as StageError."""
        for wait in (*_PATIENCE, None):
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                if wait is None or (self.local and error.errno not in _PASSING):
                    raise StageError(f"cannot {what}: {error}") from error
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def read(self, path: str, most: int | None = None) -> bytes:
        """The bytes of a file, the first `most` of them; raises FileNotFoundError."""

        def work() -> bytes:
            with self._open(path) as stream:
                return bytes(stream.read(most))

        return self._attempt(f"read {self.full(path)}", work)

    def read_json(self, path: str) -> Any:
        """The value of a JSON file; raises FileNotFoundError, and InputError as `bounded_json` does."""
        return bounded_json(self.read(path, MOST_BYTES + 1), self.full(path))

    def download(self, path: str, target: Path) -> None:
        """Copy a file to a local path, a piece at a time; raises FileNotFoundError."""

        def work() -> None:
            with target.open("wb") as out:
                for piece in self._pieces(path):
                    out.write(piece)

        self._attempt(f"copy {self.full(path)} to {target}", work)

    def sha256(self, path: str) -> str:
        """The hash of a file, read a piece at a time; raises FileNotFoundError."""

        def work() -> str:
            digest = hashlib.sha256()
            for piece in self._pieces(path):
                digest.update(piece)
            return digest.hexdigest()

        return self._attempt(f"read {self.full(path)}", work)

    def _pieces(self, path: str) -> Iterator[bytes]:
        with self._open(path) as stream:
            while piece := stream.read(1 << 24):
                yield piece

    def _open(self, path: str) -> Any:
        place = self.place(path)
        if self.local and not stat.S_ISREG(os.stat(place).st_mode):  # a pipe would be waited for
            raise OSError(errno.EINVAL, "no file, but a folder, a pipe or a device")
        return self._fs.open_input_stream(place, compression=None)

    def size(self, path: str) -> int | None:
        """The bytes of a file; None where there is none."""
        place = self.place(path)
        info = self._attempt(f"look at {place}", lambda: self._fs.get_file_info(place))
        return int(info.size) if info.type == fs.FileType.File else None

    def commit(self, artifact: Artifact, files: Files, info: Mapping[str, Any]) -> None:
        """Write the files, then the manifest with their hashes and `info` (plain JSON values).

        Files too large to be in memory together come one by one from an iterator; `info` is read after it.
        """
        listed = {}
        for name, data in files.items() if isinstance(files, Mapping) else files:
            self.write(f"{artifact.path}/{name}", data)
            listed[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest: dict[str, Any] = {
            "kind": artifact.kind,
            "label": artifact.label,
            "fingerprint": artifact.fingerprint,
            "files": listed,
            "info": dict(info),
        }
        self.write(f"{artifact.path}/{MANIFEST}", json.dumps(without_secrets(manifest), indent=1).encode())

    def exists(self, artifact: Artifact) -> bool:
        """Whether its manifest is there. An empty one, which a machine that lost power leaves, is none."""
        return bool(self.size(f"{artifact.path}/{MANIFEST}"))

    def manifest(self, artifact: Artifact) -> dict[str, Any]:
        """What `commit` recorded; raises FileNotFoundError when the artifact does not exist."""
        return self.manifest_at(artifact.path)

    def manifest_at(self, folder: str) -> dict[str, Any]:
        """The manifest of an artifact's folder; raises as `manifest` does."""
        path = f"{folder}/{MANIFEST}"
        return read_manifest(self.read(path, MOST_BYTES + 1), self.full(path))

    def load(self, artifact: Artifact, name: str) -> bytes:
        """A file of an artifact."""
        return self.read(f"{artifact.path}/{name}")

    def load_json(self, artifact: Artifact, name: str) -> Any:
        """The value of a JSON file of an artifact."""
        return self.read_json(f"{artifact.path}/{name}")

    def delete_tree(self, path: str) -> None:
        """Remove a folder with all below it, if it is there; of links, not what they name."""
        place = self.place(path)
        remove = shutil.rmtree if self.local else self._fs.delete_dir
        with contextlib.suppress(FileNotFoundError):
            self._attempt(f"remove {place}", lambda: remove(place))

    def listing(self, path: str) -> Listing:
        """All files below a folder, and what else lies there, or cannot be looked at."""
        if self.local:
            return local_listing(self.root, path)
        selector = fs.FileSelector(self.place(path), recursive=True, allow_not_found=True)
        found = self._attempt(f"list {self.full(path)}", lambda: self._fs.get_file_info(selector))
        return Listing([info for info in found if info.type == fs.FileType.File])

    def files(self, path: str) -> list[fs.FileInfo]:
        """All files below a folder, with their sizes; raises StageError where a part of it cannot be read."""
        found = self.listing(path)
        if hidden := {**found.links, **found.unread}:
            folder, why = min(hidden.items())
            raise StageError(f"cannot list {self.full(folder)}: {why}")
        return found.files

    def top(self) -> dict[str, bool]:
        """The names at the top of the storage -> whether each is a folder."""
        if self.local:
            with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
                return {entry.name: entry.is_dir() for entry in entries}
            return {}
        selector = fs.FileSelector(self.root, allow_not_found=True)
        found = self._attempt(f"list {self.root}", lambda: self._fs.get_file_info(selector))
        return {info.base_name: info.type == fs.FileType.Directory for info in found}

    @contextlib.contextmanager
    def claim(self, artifact: Artifact, *, wait: bool) -> Iterator[bool]:
        """Hold the right to make `artifact`; yields False when another process holds it and not `wait`.

        Claims are the kernel's locks on single bytes of one file, at the fingerprint's offset: a killed
        process lets go, and thousands of claims need one file handle. Object stores cannot lock: there
        every claim is granted, and two makers write the same bytes.
        """
        if not self.local:
            yield True
            return
        handle, offset = self._claims(), int(artifact.fingerprint, 16) >> 2  # below 2**62
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, offset)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise StageError(f"cannot lock {self.full(Top.CLAIMS)}: {error}") from error
            yield True  # a file system without locks is like an object store
            return
        try:
            yield True
        finally:
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, offset)

    def _claims(self) -> int:
        # Closing any handle of the file would drop the process's locks on it: one stays open for good.
        if self.root not in _CLAIM_FILES:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                Path(self.root).mkdir(parents=True, exist_ok=True)
                _CLAIM_FILES[self.root] = os.open(self.full(Top.CLAIMS), flags)
            except OSError as error:
                raise StageError(f"cannot open {self.full(Top.CLAIMS)}: {error.strerror}") from error
        return _CLAIM_FILES[self.root]
