"""A checkpoint of another project as it lies on the disk: its tensors, its configuration, its hash."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from neulig_ray.errors import InputError
from neulig_ray.models.archs import Arch
from neulig_ray.models.foreign import hub
from neulig_ray.models.foreign.huggingface import check_config
from neulig_ray.models.foreign.pickles import pickled_tensors
from neulig_ray.models.foreign.preprocessing import check_preprocessing
from neulig_ray.models.sources import HUB
from neulig_ray.models.weights import HEADER_KEY, differing, load_tensors


@dataclass(frozen=True)
class Checkpoint:
    """`where` names it in messages; `sha256` is of its weights' bytes; `inert`: names left in a pickle."""

    where: str
    tensors: Mapping[str, Tensor]
    sha256: str
    config: Mapping[str, Any] | None = None
    library: str = ""  # whose configuration that is: the file's name, hub.OPEN_CLIP or hub.TRANSFORMERS
    inert: tuple[str, ...] = field(default=())

    def check(self, arch: Arch, *, text: bool = False) -> None:
        """Raises InputError when the configuration is another arch's; a bare file has none to check."""
        if self.config is not None and self.library == hub.TRANSFORMERS:
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


def read_checkpoint(path: Path) -> Checkpoint:
    """A file (.safetensors, or what torch.save or pickle wrote), or a folder of open_clip or transformers.

    Nothing of a pickle is run (see `unpickling`). Raises InputError for what cannot be read.
    """
    if path.is_dir():
        config, weights = _contents(path)
        tensors, inert = _read(weights)
        try:
            found = json.loads(config.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{config} is not JSON ({error}): download it again") from error
        if config.name == hub.OPEN_CLIP:
            check_preprocessing(found.get("preprocess_cfg") or {}, str(path))
            found = found.get("model_cfg", found)
        return Checkpoint(str(path), tensors, digest(path), found, config.name, inert)
    tensors, inert = _read([path])
    return Checkpoint(str(path), tensors, digest(path), inert=inert)


def _read(files: list[Path]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    tensors: dict[str, Tensor] = {}
    inert: list[str] = []
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(9)
        if file.suffix == ".safetensors" or start[8:9] == b"{":
            found, header = load_tensors(file.read_bytes(), str(file))
            if HEADER_KEY in header:
                kind = json.loads(header[HEADER_KEY]).get("kind")
                raise InputError(f"{file} is a {kind} file of neulig already: use it as it is")
        else:
            found, left = pickled_tensors(file)
            inert += left
        tensors |= found
    return tensors, tuple(inert)


def _contents(folder: Path) -> tuple[Path, list[Path]]:
    """The configuration and the files of weights of a folder."""
    for name, candidates in hub.WEIGHTS.items():
        if not (config := folder / name).is_file():
            continue
        for candidate in candidates:
            weights = folder / candidate
            if weights.is_file() and candidate.endswith(".index.json"):
                parts = sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()))
                if lacking := [part for part in parts if not (folder / part).is_file()]:
                    raise InputError(f"{folder}: {weights.name} names {lacking[0]}, which is not there")
                return config, [folder / part for part in parts]
            if weights.is_file():
                return config, [weights]
        raise InputError(
            f"{folder} has {name}, but none of {', '.join(candidates)}: download its weights too"
        )
    raise InputError(
        f"{folder} has neither {' nor '.join(hub.WEIGHTS)}: name a folder of open_clip or transformers, "
        "or a file"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
