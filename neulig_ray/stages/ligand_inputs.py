"""A trained ligand read from the storage, and what is kept at inference with it."""

import functools

from neulig_ray.ligand.files import read_ligand
from neulig_ray.ligand.gate import EXPERTS
from neulig_ray.ligand.portland import Portland
from neulig_ray.results.granularities import granularity_of
from neulig_ray.stages.read_inputs import load_bare_tower
from neulig_ray.stages.search import LIGAND_FILE
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage


def load_ligand(storage: Storage, artifact: Artifact) -> tuple[Portland, dict[str, float]]:
    """The ligands of a cell, and the setting that was chosen for them."""
    info = storage.manifest(artifact)["info"]
    about = {name: info[name] for name in ("alignment_weight", "learning_rate")}
    return read_ligand(storage.load(artifact, LIGAND_FILE)), about


@functools.lru_cache(maxsize=8)
def tower_parameters(arch: str) -> int:
    """Numbers in one visual tower's parameters."""
    return sum(p.numel() for p in load_bare_tower(arch).parameters())


def kept_parameters(single: Portland, arch: str, granularity: str) -> int:
    """Numbers kept at inference: one static model, or every expert, the gate, and what it looks through."""
    if granularity_of(granularity).static:
        return tower_parameters(arch)
    gate = sum(tensor.numel() for tensor in single.state().values())
    sources = single.gate.sources(single.combinations[0])
    looks = 0 if single.gate.sees == EXPERTS.sees else len(sources)  # towers of origins, beside the experts'
    return (single.n + looks) * tower_parameters(arch) + gate
