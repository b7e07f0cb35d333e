"""The manifest of an artifact: which files it has, with their hashes, and what its stage says of them."""

import re
from pathlib import Path
from typing import Any, Final

from neulig_ray.documents import MOST_BYTES, bounded_json
from neulig_ray.errors import InputError

MANIFEST: Final = "manifest.json"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def read_manifest(data: bytes | str, where: str) -> dict[str, Any]:
    """A manifest's content: at least `files` (name -> sha256, bytes) and `info`.

    A storage may come from somebody else. Raises InputError, naming `where`, for what is no manifest and for
    one whose files would lie outside its folder.
    """
    found = bounded_json(data, where)
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("files", "info")):
        raise InputError(f"{where} is no manifest: it lists no files. {_REMEDY}")
    for name, about in found["files"].items():
        if not is_within(name) or name == MANIFEST:
            raise InputError(f"{where} names the file {name!r}, which is not one of its folder. {_REMEDY}")
        if not (
            isinstance(about, dict)
            and isinstance(about.get("bytes"), int)
            and _SHA256.fullmatch(str(about.get("sha256")))
        ):
            raise InputError(f"{where} gives no hash and size of the file {name!r}. {_REMEDY}")
    return found


_REMEDY: Final = (
    "This package did not write it so: fetch the artifact again, or remove its folder, and the same command "
    "makes it anew."
)


def manifest_in(folder: Path) -> dict[str, Any]:
    """The manifest in a local folder; raises as `read_manifest` does, and OSError."""
    path = folder / MANIFEST
    with path.open("rb") as stream:
        return read_manifest(stream.read(MOST_BYTES + 1), str(path))


def is_within(path: str) -> bool:
    """Whether a relative path stays below the folder that it is taken from, whatever that is."""
    return not any(part in ("", ".", "..") for part in path.split("/")) and not set(path) & {"\0", "\\"}
