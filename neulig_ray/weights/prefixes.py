"""Where one model holds another's tensors under a prefix, such as a whole CLIP its image tower."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from neulig_ray.errors import InputError
from neulig_ray.weights.tensor_file import Spec


@dataclass(frozen=True)
class Prefix:
    """What stands before the names that belong together: in the base, and in the experts."""

    base: str = ""
    experts: str = ""

    def in_base(self, name: str) -> str:
        """What the base calls an expert's tensor."""
        return self.base + name.removeprefix(self.experts)


SAME = Prefix()
_IMAGE_TOWERS: Final = {"visual", "vision_model", "vision_tower", "vision", "image_encoder", "vision_encoder"}


def find_prefix(
    base: Mapping[str, Spec], experts: Mapping[str, Spec], dispensable: Callable[[str], bool]
) -> Prefix | None:
    """The prefix under which the base has every tensor of `experts`, in its shape; None if there is none.

    It may lack what is `dispensable`. Equal names go before a prefix, and a prefix of the base's before one
    of the experts'; of several that fit, the one that names an image tower, as of a small CLIP whose text
    tower has the same shapes. Raises InputError where two prefixes fit and not one alone names such a tower.
    """

    def fits(prefix: Prefix) -> bool:
        for name, spec in experts.items():
            there = base.get(prefix.in_base(name))
            if there is None and not dispensable(name):
                return False
            if there is not None and there.shape != spec.shape:
                return False
        return True

    if fits(SAME):
        return SAME
    starts: dict[str, list[str]] = {}  # end of a base's name -> what stands before it
    for name in base:
        parts = name.split(".")
        for place in range(len(parts)):
            end = ".".join(parts[place:])
            starts.setdefault(end, []).append(name.removesuffix(end))
    for shared in shared_prefixes(experts):
        cores = sorted((name.removeprefix(shared) for name in experts), key=len, reverse=True)
        candidates = next((starts[core] for core in cores if core in starts), [])
        found = [start for start in sorted(candidates) if fits(Prefix(start, shared))]
        if "" in found:
            return Prefix("", shared)
        if len(found) > 1 and len(images := [start for start in found if _is_image_tower(start)]) == 1:
            found = images
        if len(found) > 1:
            raise InputError(
                f"the base has the experts' tensors more than once, under {' and '.join(map(repr, found))}: "
                "give a file with that part alone which they were fine-tuned from"
            )
        if found:
            return Prefix(found[0], shared)
    return None


def _is_image_tower(prefix: str) -> bool:
    return not _IMAGE_TOWERS.isdisjoint(prefix.split("."))


def shared_prefixes(names: Collection[str]) -> list[str]:
    """The prefixes, each ending with a dot, that all names have; the shortest, "", first."""
    found, first = [""], min(names, default="").split(".")
    for count in range(1, len(first)):
        prefix = ".".join(first[:count]) + "."
        if not all(name.startswith(prefix) and name != prefix for name in names):
            break
        found.append(prefix)
    return found
