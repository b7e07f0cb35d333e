"""What the tracker is told beside the results table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OK = "ok"


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One (arch, origin, n) of an experiment. `fingerprint`: of what determines its search and ligands.

    A changed fingerprint is another cell, recorded beside the earlier one. It has the rows of all seeds;
    `seed` is the first. `origin` as in the results, comma-joined where collaborators differ. `ligand_files`:
    safetensors by file name.
    """

    arch: str
    origin: str
    n: int
    seed: int
    fingerprint: str
    ligand_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One setting of a search, beside the experts of `expert_seed` where there are several.

    Accuracies on val in percent at granularity `task`; status as in results.
    """

    arch: str
    origin: str
    n: int
    seed: int
    alignment: str
    learning_rate: float
    alignment_weight: float
    val_merging: float | None = None
    val_ensembling: float | None = None
    seconds: float = 0.0
    status: str = OK
    fingerprint: str = ""
    selected: bool = False
    expert_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExpertCurve:
    """The fine-tuning of one expert. Each epoch has `epoch` and any of loss, val_accuracy, seconds."""

    arch: str
    origin: str
    task: str
    seed: int
    fingerprint: str
    epochs: Sequence[Mapping[str, float]] = ()
    test_accuracy: float | None = None
    status: str = OK
