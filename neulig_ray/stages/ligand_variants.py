"""Stage `variants`: ligands with another gate or objective than those that were searched for."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import Job, JobOutput, Needs, threads
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import Group
from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.experiment.search_space import Setting
from neulig_ray.ligand.files import ligand_bytes
from neulig_ray.ligand.gate import EXPERTS, GateSpec
from neulig_ray.ligand.recipe import Objective
from neulig_ray.ligand.weighted_offset import Offsets
from neulig_ray.stages.ligand_options import EACH, gate_of, label, objective_of
from neulig_ray.stages.ligands import Cell
from neulig_ray.stages.read_inputs import collaborators, read_split, read_stack
from neulig_ray.stages.search import LIGAND_FILE, cell_label, trained
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

VERSION = 1


@dataclass(frozen=True)
class VariantJob(Job):
    """Ligands trained with the setting that was chosen for the cell `chosen`."""

    artifact: Artifact
    group: Group
    objective: Objective
    gate: GateSpec
    experiment: Experiment
    models: ArchModels
    chosen: Artifact

    @property
    def combinations(self) -> tuple[tuple[str, ...], ...]:
        return self.group.combinations

    @property
    def expert_seed(self) -> int:
        return self.experiment.seed

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.experiment.ligand_seeds

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return (self.chosen, *self.models.inputs(), *self.models.blocks.values())

    @property
    def needs(self) -> Needs:
        return Needs(gpu=False)

    def cost(self, sizes: Sizes) -> Cost:
        return Cost()

    def make(self, storage: Storage) -> JobOutput:
        info = storage.manifest(self.chosen)["info"]
        setting = Setting(info["learning_rate"], info["alignment_weight"])
        keys = collaborators(self.group.combinations)
        train = read_split(storage, self.models, "train", keys, images=False)
        buffers = self.experiment.protocol == "paper"
        offsets = Offsets.measure(read_stack(storage, self.models, keys), include_buffers=buffers)
        portland = trained(self, setting, train, offsets, self.gate)
        about = {**dataclasses.asdict(setting), "alignment": self.objective, "status": "ok"}
        return {LIGAND_FILE: ligand_bytes(portland, about)}, about


def plan_variants(
    experiment: Experiment,
    specs: Sequence[MethodSpec],
    cells: Sequence[Cell],
    models: Mapping[str, ArchModels],
) -> list[VariantJob]:
    """The ligands that gated methods name and no cell has, for the experts of the experiment's seed.

    Their setting is the one chosen for the same objective, or else for the first of the experiment's.
    """
    e, found = experiment, {}
    for group in dict.fromkeys(cell.group for cell in cells):
        own = {cell.objective: cell for cell in cells if cell.group == group}
        for spec in specs:
            gate, named = gate_of(spec), objective_of(spec)
            for objective in get_args(Objective):
                if objective not in (e.alignment if named == EACH else (named,)):
                    continue
                if gate == EXPERTS and objective in own:
                    continue
                chosen = own.get(objective, own[e.alignment[0]]).artifact
                job = _variant(e, group, objective, gate, models[group.arch], chosen)
                found[job.artifact.fingerprint] = job
    return list(found.values())


def _variant(
    e: Experiment, group: Group, objective: Objective, gate: GateSpec, models: ArchModels, chosen: Artifact
) -> VariantJob:
    known = models.restricted(collaborators(group.combinations))
    known = known if gate.sees == "origin-blocks" else known.without_blocks()
    job = VariantJob(chosen, group, objective, gate, e, known, chosen)
    identity = {
        "models": [a.fingerprint for a in (*known.inputs(), *known.blocks.values())],
        "combinations": group.combinations,
        "alignment": objective,
        "gate": dataclasses.asdict(gate),
        "ligand": e.ligand.identity(e.protocol, objective),
        "seeds": e.ligand_seeds,
        "protocol": e.protocol,
        "setting": chosen.fingerprint,
        "threads": threads(e.cluster.trial_cpus),
    }
    name = cell_label(group, label(job))
    return dataclasses.replace(job, artifact=Artifact.of("ligand", name, VERSION, identity))
