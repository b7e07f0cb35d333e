"""Folders of models: which files hold the weights, and the index of weights that are split over several."""

import os
from pathlib import Path, PurePosixPath
from typing import Any, Final

from neulig_ray.documents import MOST_BYTES, bounded_json
from neulig_ray.errors import InputError
from neulig_ray.weights.tensor_file import unreadable

OPEN_CLIP, TRANSFORMERS = "open_clip_config.json", "config.json"
INDEX: Final = ".index.json"
# A model's weights, as the two libraries name them; the files to be preferred first.
WEIGHTS: Final = {
    OPEN_CLIP: (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    ),
    TRANSFORMERS: (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}
_KNOWN: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", INDEX)
_MOST_LISTED: Final = 10


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of the model in a folder: one, or all that its index names.

    Raises InputError, with the files that are there, for a folder in which none has a name that is known.
    """
    for candidate in _candidates(folder):
        if (file := folder / candidate).is_file():
            return shards(file) if candidate.endswith(INDEX) else [file]
    there = sorted(file.name for file in folder.iterdir() if file.name.endswith(_KNOWN))
    rest = f" and {len(there) - _MOST_LISTED} more" if len(there) > _MOST_LISTED else ""
    listing = (
        f"in it: {', '.join(there[:_MOST_LISTED])}{rest}; name one of them" if there else "none is in it"
    )
    wanted = ", ".join(name for names in WEIGHTS.values() for name in names)
    raise InputError(f"{str(folder)!r} is a folder with none of {wanted}: name a file of tensors ({listing})")


def _candidates(folder: Path) -> list[str]:
    """The names to look for: those of a library whose configuration is there come first."""
    configured = [names for config, names in WEIGHTS.items() if (folder / config).is_file()]
    ordered = [*configured, *(names for names in WEIGHTS.values() if names not in configured)]
    return [name for names in ordered for name in names]


def shards(index: Path) -> list[Path]:
    """The files that an index names, in order of their names.

    They lie beside it, or below: a name that leads out of the folder is refused. What a name leads to may be
    a link, where the index is one too, into the same folder (as in the hub's cache). Raises InputError also
    for an index that is none, and for files that are not there.
    """
    folder = index.parent
    names = shard_names(index)
    if lacking := [name for name in names if not (folder / name).is_file()]:
        rest = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(f"{folder}: {index.name} names {lacking[0]}{rest}, which is not there: get it too")
    allowed = (Path(os.path.realpath(folder)), Path(os.path.realpath(index)).parent)
    for name in names:
        real = Path(os.path.realpath(folder / name))
        if not any(real.is_relative_to(place) for place in allowed):
            raise InputError(
                f"{folder}: {index.name} names {name}, a link that leads out of its folder, to {real}: put "
                "the file itself beside the index"
            )
    files = [folder / name for name in names]
    for number, file in enumerate(files):
        if any(file.samefile(other) for other in files[:number]):
            raise InputError(
                f"{folder}: {index.name} names {file.name}, the same file as another that it names"
            )
    return files


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises InputError where it cannot be read, or is none."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path} has {size} bytes of JSON, and at most {MOST_BYTES} are read")
        found = bounded_json(path.read_bytes(), str(path))
    except OSError as error:
        raise unreadable(str(path), error) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object, but a {type(found).__name__}: download it again")
    return found


def shard_names(index: Path) -> list[str]:
    """The names of files in an index; raises InputError for no index, and names of what lies elsewhere."""
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise InputError(f"{index} has no weight_map that tells the file of each tensor: download it again")
    for name in (names := sorted(set(found.values()))):
        path = PurePosixPath(name)
        if not name or "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"{index} names {name[:200]!r}, which is no file below its folder: it is damaged or hostile; "
                "download the model again"
            )
    return names
