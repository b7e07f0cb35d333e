"""A checkpoint of another project as it lies on the disk: its tensors, its configuration, its hash."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from neulig_ray.documents import bounded_json
from neulig_ray.errors import InputError
from neulig_ray.models.archs import Arch
from neulig_ray.models.formats import hub
from neulig_ray.models.formats.huggingface import check_config
from neulig_ray.models.formats.preprocessing import check_preprocessing
from neulig_ray.models.origin_source import HUB
from neulig_ray.models.tower_files import differing, load_tensors
from neulig_ray.weights.folders import INDEX, OPEN_CLIP, TRANSFORMERS, WEIGHTS, read_object, shards
from neulig_ray.weights.metadata import HEADER_KEY
from neulig_ray.weights.pickles import pickled_tensors
from neulig_ray.weights.tensor_file import looks_safe, unreadable


@dataclass(frozen=True)
class Checkpoint:
    """`where` names it in messages; `sha256` is of its weights' bytes; `inert`: names left in a pickle.

    `key`: where in a file of several models its weights are; `others`: what stands there beside them.
    """

    where: str
    tensors: Mapping[str, Tensor]
    sha256: str
    config: Mapping[str, Any] | None = None
    library: str = ""  # whose configuration that is: the file's name, OPEN_CLIP or TRANSFORMERS
    inert: tuple[str, ...] = ()
    key: str = ""
    others: tuple[str, ...] = ()

    def check(self, arch: Arch, *, text: bool = False) -> None:
        """Raises InputError when the configuration is another arch's; a bare file has none to check."""
        if self.config is not None and self.library == TRANSFORMERS:
            check_config(self.config, arch, f"{self.where}/{self.library}", text=text)
        elif self.config is not None and (found := differing(arch.config, self.config)):
            raise InputError(
                f"{self.where}/{self.library}: it is not of {arch.name!r} (differs in {found}): "
                "name the arch that it is of"
            )


def locate(source: str, name: str = "") -> Path:
    """The file or folder of a path, or of `hf-hub:REPOSITORY`, downloaded unless it is in the cache.

    `name`: how an origin is called, for the remedy.
    """
    if source.startswith(HUB):
        return hub.download_repository(source.removeprefix(HUB), f"{name}=/path/to/folder".lstrip("="))
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"{source}: there is no such file or folder; a hub's model is {HUB}OWNER/NAME")
    return path


def digest(path: Path) -> str:
    """sha256 of a file; of a folder, that of the list of its configuration's and its weights' own."""
    if path.is_file():
        return _sha256(path)
    config, weights = _contents(path)
    return hashlib.sha256("\n".join(map(_sha256, [config, *weights])).encode()).hexdigest()


def read_checkpoint(path: Path, weights: str = "") -> Checkpoint:
    """A file (.safetensors, or what torch.save or pickle wrote), or a folder of open_clip or transformers.

    `weights`: the key, or the beginning of the names, of those to take where there are several models.
    Nothing of a pickle is run (see `weights.unpickling`). Raises InputError for what cannot be read.
    """
    if path.is_dir():
        config, files = _contents(path)
        found = read_object(config)
        if config.name == OPEN_CLIP:
            check_preprocessing(found.get("preprocess_cfg") or {}, str(path))
            found = found.get("model_cfg", found)
        tensors, more = _read(files, weights)
        return Checkpoint(str(path), tensors, digest(path), found, config.name, **more)
    tensors, more = _read(shards(path) if path.name.endswith(INDEX) else [path], weights)
    return Checkpoint(str(path), tensors, digest(path), **more)


def _read(files: list[Path], weights: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    inert: list[str] = []
    others: list[str] = []
    key = ""
    for file in files:
        try:
            with file.open("rb") as stream:
                start = stream.read(64)
        except OSError as error:
            raise unreadable(str(file), error) from error
        if file.suffix == ".safetensors" or looks_safe(start):
            found, header = load_tensors(file.read_bytes(), str(file))
            if HEADER_KEY in header:
                about = bounded_json(header[HEADER_KEY], f"{file}: its {HEADER_KEY!r} entry")
                kind = about.get("kind") if isinstance(about, dict) else None
                raise InputError(f"{file} is a {kind} file of neulig already: use it as it is")
        else:
            found, pickled = pickled_tensors(file, weights)
            inert += pickled.inert
            key, others = pickled.key, [*others, *pickled.others]
        if twice := found.keys() & tensors.keys():
            raise InputError(
                f"{file} holds {min(twice)!r}, and so does another file beside it: one is too many"
            )
        tensors |= found
    head = f"{weights}."
    if weights and not key and any(name.startswith(head) for name in tensors):  # names that no dict holds
        others += sorted({name.partition(".")[0] for name in tensors if not name.startswith(head)})
        tensors = {name.removeprefix(head): t for name, t in tensors.items() if name.startswith(head)}
        key = weights
    return tensors, {"inert": tuple(inert), "key": key, "others": tuple(others)}


def _contents(folder: Path) -> tuple[Path, list[Path]]:
    """The configuration and the files of weights of a folder."""
    for name, candidates in WEIGHTS.items():
        if not (config := folder / name).is_file():
            continue
        for candidate in candidates:
            if (file := folder / candidate).is_file():
                return config, shards(file) if candidate.endswith(INDEX) else [file]
        raise InputError(
            f"{folder} has {name}, but none of {', '.join(candidates)}: download its weights too"
        )
    raise InputError(
        f"{folder} has neither {' nor '.join(WEIGHTS)}: name a folder of open_clip or transformers, or a file"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
