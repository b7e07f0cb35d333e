"""Which family of published checkpoints an imported expert belongs to. One table never mixes two.

The families differ in their recipes, and in one of them in DTD's test accuracy (98 % against 79 % on val), so
that published means of one are not comparable with those of another (docs/paper.md).
"""

import re
from collections.abc import Sequence
from typing import Final

from neulig_ray.errors import InputError
from neulig_ray.stages.imported_experts import ImportedExpert
from neulig_ray.storage.storage import Storage

FUSIONBENCH, TALL_MASKS, TASK_VECTORS = "FusionBench", "TALL-masks", "task_vectors"

# What `neulig import` keeps of a source: a hub id, or the last two parts of a path.
_SOURCES: Final = (
    (FUSIONBENCH, re.compile(r"tanganke/|clip-vit-(base|large)-patch\d+_")),
    (TALL_MASKS, re.compile(r"tall_masks|(^|/)(non)?linear_finetuned\.pt$")),
    (TASK_VECTORS, re.compile(r"(^|/)finetuned\.pt$")),
)


def family_of(source: str) -> str | None:
    """The family that a source tells; None for one that tells none."""
    return next((family for family, pattern in _SOURCES if pattern.search(source)), None)


def check_families(experts: Sequence[ImportedExpert], storage: Storage, published: str = "") -> None:
    """Raises InputError for experts of two families, and of another one than the published rows' beside them.

    Experts whose source tells no family are anybody's; those that the storage lacks are told elsewhere.
    """
    found: dict[str, ImportedExpert] = {}
    for expert in experts:
        if family := family_of(expert.source or stored_source(expert, storage)):
            found.setdefault(family, expert)
    told = "; ".join(f"{expert.artifact.label} is of {family}" for family, expert in found.items())
    if len(found) > 1:
        raise InputError(
            f"experts of {len(found)} families of checkpoints: {told}. Their recipes differ, so that a table "
            "of both would compare nothing: name experts of one family"
        )
    if published and found and published not in found:
        raise InputError(
            f"the published rows are of the family {published}, but {told}: name that family's experts, or "
            "leave the rows out (--published '')"
        )


def stored_source(expert: ImportedExpert, storage: Storage) -> str:
    """The source that an expert's manifest tells, "" where the storage does not have the expert."""
    if not storage.exists(expert.artifact):
        return ""
    return str(storage.manifest(expert.artifact)["info"].get("source") or "")
