"""What lies below a local folder: files, and what is none or cannot be looked at."""

import os
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs


class Listing(NamedTuple):
    """Paths in the storage -> why they are none of the files. `links` and `unread` folders may hide some."""

    files: list[fs.FileInfo]
    odd: dict[str, str] = {}  # noqa: RUF012 - of a tuple that nobody changes
    links: dict[str, str] = {}  # noqa: RUF012
    unread: dict[str, str] = {}  # noqa: RUF012


def leads_out(root: str, full: str) -> str | None:
    """Where a path below `root` ends, links followed, if that is outside; `root` has none."""
    real = os.path.realpath(full)
    return None if real == root or real.startswith(f"{root.rstrip('/')}/") else real


def local_listing(root: str, path: str) -> Listing:
    """The files below `root`/`path`. Links to files within `root` count, to folders not."""
    found = Listing([], {}, {}, {})
    if target := leads_out(root, f"{root}/{path}"):
        found.links[path] = f"a link that leads out of the storage, to {target}"
        return found
    folders = [path]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(f"{root}/{folder}" if folder else root) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    place = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(place)
                    else:
                        _enter(found, root, place)
        except FileNotFoundError:  # never there, or removed meanwhile
            continue
        except OSError as error:
            found.unread[folder] = error.strerror or str(error)
    return found


def _enter(found: Listing, root: str, place: str) -> None:
    path = Path(root, place)
    try:
        if path.is_symlink():
            if target := leads_out(root, str(path)):
                found.links[place] = f"a link that leads out of the storage, to {target}"
                return
            if not path.exists():
                found.odd[place] = "a link to nothing"
                return
        if path.is_dir():
            found.links[place] = "a link to a folder"
            return
        if not path.is_file():
            found.odd[place] = "neither a file nor a folder"
            return
        about = path.stat()
    except FileNotFoundError:  # removed meanwhile
        return
    except OSError as error:
        found.odd[place] = error.strerror or str(error)
        return
    found.files.append(fs.FileInfo(str(path), fs.FileType.File, size=about.st_size, mtime=about.st_mtime))
