"""Which ligand a gated method's options name: its gate and its objective."""

import dataclasses
from collections.abc import Collection
from typing import Final, Protocol

from neulig_ray.experiment.combinations import Group
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.gate import EXPERTS, GateSpec
from neulig_ray.ligand.recipe import Objective
from neulig_ray.storage.artifact import Artifact

GATE_OPTIONS: Final = ("gate", "hidden", "objective")
EACH: Final = "each"  # of the experiment's objectives


class Ligands(Protocol):
    """The ligands of one (arch, origin, n) and objective, of one gate, beside the experts of one seed."""

    @property
    def artifact(self) -> Artifact: ...
    @property
    def group(self) -> Group: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def gate(self) -> GateSpec: ...
    @property
    def expert_seed(self) -> int: ...
    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the ligands of each combination."""
        ...


def gate_of(spec: MethodSpec) -> GateSpec:
    """The gate that a method's options name, the paper's by default."""
    given = dict(spec.options)
    return GateSpec(sees=given.get("gate", EXPERTS.sees), hidden=given.get("hidden", EXPERTS.hidden))


def objective_of(spec: MethodSpec) -> str:
    """The objective that a method's options name, `each` by default."""
    return str(dict(spec.options).get("objective", EACH))


def serves(ligands: Ligands, spec: MethodSpec, objectives: Collection[str]) -> bool:
    """Whether a gated method weighs experts by these ligands; `objectives`: the experiment's."""
    named = objective_of(spec)
    return gate_of(spec) == ligands.gate and ligands.objective in (objectives if named == EACH else (named,))


def without_gate(spec: MethodSpec) -> MethodSpec:
    """The method with what it does to beta alone."""
    return dataclasses.replace(spec, options=tuple(o for o in spec.options if o[0] not in GATE_OPTIONS))


def label(ligands: Ligands) -> str:
    """The objective, and a gate that is not the paper's."""
    gate = ligands.gate
    sees = "" if gate.sees == EXPERTS.sees else f".{gate.sees}"
    return f"{ligands.objective}{sees}{f'.hidden{gate.hidden}' if gate.hidden else ''}"
