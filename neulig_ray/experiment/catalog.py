"""The models of one arch, by name: what later stages look artifacts up in."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from neulig_ray.experiment.combinations import origin_of
from neulig_ray.ligand.data import task_of
from neulig_ray.storage.artifact import Artifact


@dataclass(frozen=True)
class ArchModels:
    """Artifacts of one arch. Keys: collaborators "task@origin", origins by name, tasks by name.

    `embeddings` are keyed by (collaborator or origin name, task), `blocks`, the block features, by (origin
    name, task). Only gates that see them need `blocks`: they are not among the inputs of everyone.
    """

    arch: str
    origins: dict[str, Artifact] = field(default_factory=dict)
    heads: dict[str, Artifact] = field(default_factory=dict)
    experts: dict[str, Artifact] = field(default_factory=dict)
    embeddings: dict[tuple[str, str], Artifact] = field(default_factory=dict)
    data: dict[str, Artifact] = field(default_factory=dict)
    blocks: dict[tuple[str, str], Artifact] = field(default_factory=dict)

    def restricted(self, keys: Iterable[str]) -> "ArchModels":
        """Only what a combination of these collaborators needs, in an order of its own."""
        keys = sorted(keys)
        tasks = sorted({task_of(key) for key in keys})
        origins = sorted({origin_of(key) for key in keys})
        looks = [(model, task) for model in (*keys, *origins) for task in tasks]
        return ArchModels(
            self.arch,
            {o: self.origins[o] for o in origins},
            {k: self.heads[k] for k in keys},
            {k: self.experts[k] for k in keys},
            {look: self.embeddings[look] for look in looks if look in self.embeddings},
            {t: self.data[t] for t in tasks},
            {look: self.blocks[look] for look in looks if look in self.blocks},
        )

    def without_blocks(self) -> "ArchModels":
        """The same for what no gate that sees block features has a part in."""
        return dataclasses.replace(self, blocks={})

    def inputs(self) -> tuple[Artifact, ...]:
        return (
            *self.origins.values(),
            *self.heads.values(),
            *self.experts.values(),
            *self.embeddings.values(),
        )
