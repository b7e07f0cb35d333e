"""Where an origin comes from, as people write it: `seed-0`, `openai`, a path, `hf-hub:...`, `fuse:...`."""

import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from neulig_ray.errors import InputError

HUB = "hf-hub:"
FUSE = "fuse:"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"  # no "@", "," or "+": names are parts of keys


@dataclass(frozen=True)
class OriginSource:
    """An origin's name in keys and columns, what kind of place it comes from, and the place.

    `fused`: ORIGIN:TASK+TASK, the mean of experts of another origin.
    `tag`: an open_clip pretrained tag, or a word that is none: which, is known where the arch is.
    """

    name: str
    kind: Literal["seed", "path", "hub", "fused", "tag"]
    place: str

    @property
    def seed(self) -> int:
        """K of our own pre-training `seed-K`."""
        return int(self.place.removeprefix("seed-"))


def parse_origin(given: str) -> OriginSource:
    """Raises InputError for a name that cannot be part of a key."""
    named = re.fullmatch(rf"({_NAME})=(.+)", given)
    name, place = (named[1], named[2]) if named else ("", given)
    if place.startswith(HUB):
        found = OriginSource(name or place.rpartition("/")[2], "hub", place.removeprefix(HUB))
    elif place.startswith(FUSE):
        mixed = place.removeprefix(FUSE)
        found = OriginSource(name or "fuse." + re.sub(r"[:+]", ".", mixed), "fused", mixed)
    elif re.fullmatch(r"seed-\d+", place):
        found = OriginSource(place, "seed", place)
        if name:
            raise InputError(f"origin {given!r}: {place} keeps its own name; write {place}")
    elif place.endswith(SUFFIXES) or "/" in place or place in (".", ".."):
        path = PurePath(place)
        found = OriginSource(name or (path.stem if place.endswith(SUFFIXES) else path.name), "path", place)
    else:
        found = OriginSource(name or place, "tag", place)
    if not re.fullmatch(_NAME, found.name):
        raise InputError(
            f"origin {given!r}: {found.name!r} cannot be its name (letters, digits, '_', '.' and '-' can); "
            f"give it one: --origins NAME={place}"
        )
    return found


def shipped(arch_name: str, origin: str) -> Path | None:
    """The origin file that came with the package, or None. A .json of the same stem tells how it was made."""
    path = Path(str(importlib.resources.files("neulig_ray.models"))) / "origins"
    path /= f"{arch_name}.{origin}.safetensors"
    return path if path.is_file() else None
