"""Files that appear whole or not at all: written beside their final name, which they take at the end.

The writer holds a lock on what it writes. A process that was killed holds none: whoever writes the same file
next removes what it left. Where a file system knows no locks, a day without a write says the same.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_SILENCE: Final = 86400.0  # seconds without a write
_UNIQUE: Final = r"\.[0-9a-f]{32}\.part"


class Part:
    """What becomes `target`: an empty file, or an empty folder, at `path`; `handle` is open on it.

    `keep` gives it its name, `discard` removes it; after either the other does nothing.
    """

    def __init__(self, target: Path, *, folder: bool = False) -> None:
        """Raises OSError where it cannot be made."""
        sweep(target)
        self.target, self._folder, self.handle = target, folder, -1
        try:
            while not self._made():
                self._close()
        except BaseException:
            self.discard()
            raise

    def _made(self) -> bool:
        """Make and lock it; False where another process swept it before it was locked."""
        self.path = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex}.part")
        if self._folder:
            self.path.mkdir()
            self.handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.stat(self.path), os.fstat(self.handle))
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError:
            return True  # a file system without locks

    def keep(self) -> None:
        """Raises OSError where what was written cannot be kept; it is removed then."""
        try:
            if not self._folder:
                os.close(os.dup(self.handle))  # file systems on a network tell here of a disk that is full
            os.replace(self.path, self.target)
        except OSError:
            self.discard()
            raise
        self._close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            _remove(self.path)
        self._close()

    def _close(self) -> None:
        if self.handle >= 0:
            with contextlib.suppress(OSError):
                os.close(self.handle)
        self.handle = -1


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A stream of bytes that becomes the file `target`; on any exception nothing is left. Raises OSError."""
    part = Part(target)
    try:
        with os.fdopen(os.dup(part.handle), "wb") as stream:
            yield stream
        part.keep()
    except BaseException:
        part.discard()
        raise


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to that becomes `target`, which is not there yet; else as `whole_file`."""
    part = Part(target, folder=True)
    try:
        yield part.path
        part.keep()
    except BaseException:
        part.discard()
        raise


def sweep(target: Path) -> None:
    """Remove what dead processes left of `target`, and never what a live one is writing."""
    ours = re.compile(rf"\.{re.escape(target.name)}{_UNIQUE}")
    with contextlib.suppress(OSError):
        for path in [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]:
            with contextlib.suppress(OSError):
                _sweep(path)


def _sweep(path: Path) -> None:
    folder = path.is_dir()
    handle = os.open(path, (os.O_RDONLY if folder else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except BlockingIOError:
        pass  # its writer lives
    except OSError:
        if time.time() - os.fstat(handle).st_mtime > _SILENCE:
            _remove(path)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
