"""Ligands from Python: trained on embeddings in memory, or read from files and storages."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from neulig_ray.api.experts import check_labels
from neulig_ray.api.merge_inputs import Finder, Input, Model
from neulig_ray.errors import InputError, unknown
from neulig_ray.experiment.config import Ligand
from neulig_ray.experiment.search_space import REFERENCE
from neulig_ray.ligand.coopvec import betas
from neulig_ray.ligand.data import LigandData, task_of
from neulig_ray.ligand.files import described, ligand_bytes
from neulig_ray.ligand.portland import LINEAR, Portland
from neulig_ray.ligand.recipe import DEFAULT, LigandInput, LigandRecipe, Objective, Rate, Semi
from neulig_ray.ligand.training import train_ligands
from neulig_ray.ligand.weighted_offset import Offsets
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.pipeline.options import RunOptions
from neulig_ray.weights.sources import State

_LEARNING_RATE, _ALIGNMENT_WEIGHT = REFERENCE


class Gate:
    """A trained ligand for one combination of n experts: embeddings of an image in, its beta out.

    `experts`: their labels, "task" or "task@origin", in the order of beta. `sources`: whose embeddings it
    looks at, the experts' or, of other gates than the paper's, their origins'. `about`: how it was made.
    """

    def __init__(self, portland: Portland, about: Mapping[str, Any] | None = None) -> None:
        if len(portland.combinations) != 1:
            raise ValueError(f"a gate is of one combination, not of {len(portland.combinations)}")
        self.portland = portland
        self.about = dict(about or {})

    @property
    def experts(self) -> tuple[str, ...]:
        return self.portland.combinations[0]

    @property
    def sources(self) -> tuple[str, ...]:
        return self.portland.gate.sources(self.experts)

    def __repr__(self) -> str:
        return f"Gate of {', '.join(self.experts)}"

    def beta(self, z: Mapping[str, ArrayLike] | ArrayLike) -> torch.Tensor:
        """beta float32 (N, n), rows in the simplex, of N images.

        `z`: each expert's embeddings of them (N, d), not normalised, by its label; or all as one array
        (n, N, d) in the order of `experts`; of other gates the `sources`' instead, for `origin-blocks` what
        `block_features` gives. Raises InputError for a missing expert and for wrong shapes.
        """
        if isinstance(z, Mapping):
            check_labels(self.sources, z)
            parts = [_embedding(z[label], f"z[{label!r}]") for label in self.sources]
        else:
            stacked = np.asarray(z, np.float32)
            if stacked.ndim != 3 or len(stacked) != len(self.sources):
                whose = "experts" if self.sources == self.experts else "origins"
                raise InputError(
                    f"z is of shape {stacked.shape}: give (n, N, d) of {len(self.sources)} {whose}, or a dict"
                )
            parts = [_embedding(part, f"z[{number}]") for number, part in enumerate(stacked)]
        dim = self.portland.inputs // len(self.sources)
        shapes = {part.shape for part in parts}
        if len(shapes) > 1 or parts[0].shape[1] != dim:
            whose = "expert" if self.sources == self.experts else "origin"
            raise InputError(f"z is of shapes {sorted(shapes)}: each {whose} gives (N, {dim})")
        return betas(self.portland, [torch.from_numpy(part) for part in parts])

    def merge(self, experts: Mapping[str, Model], beta: ArrayLike) -> dict[str, torch.Tensor]:
        """The merged state sum_i beta_i theta_i, with the first expert's dtypes, on the CPU.

        `experts`: label -> model as for `nl.merge`, at least this gate's. `beta` (n,): one image's, or a
        mean over images. BatchNorm statistics are mixed as parameters are (the paper's rule), integer
        buffers are the first expert's. Raises InputError for a missing expert, for models that do not fit
        together, and for a beta that is not in the simplex.
        """
        weights = torch.as_tensor(np.asarray(beta, np.float32))
        if weights.shape != (len(self.experts),):
            raise InputError(
                f"beta is of shape {tuple(weights.shape)}: one merged model has one beta, "
                f"({len(self.experts)},); a mean over images is beta.mean(0)"
            )
        if not weights.isfinite().all() or bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > 1e-3:
            raise InputError(
                f"beta {weights.tolist()} is not in the simplex: weights from 0 on that sum to 1"
            )
        check_labels(self.experts, experts)
        states = _states({label: experts[label] for label in self.experts})
        first = next(iter(states.values()))
        merged = ExpertStack.from_states(states).combine(weights)
        return {name: merged[name].to(tensor.dtype) for name, tensor in first.items()}

    def save(self, path: str | Path) -> Path:
        """Write it as a safetensors file, which `load_ligand` reads."""
        path = Path(path)
        path.write_bytes(ligand_bytes(self.portland, self.about))
        return path


def train_ligand(
    embeddings: Mapping[tuple[str, str], ArrayLike],
    labels: Mapping[str, ArrayLike] | None,
    heads: Mapping[str, ArrayLike],
    *,
    objective: Objective = "sup",
    epochs: int = Ligand.epochs,
    batch_size: int = Ligand.batch_size,
    learning_rate: float = _LEARNING_RATE,
    alignment_weight: float | None = None,
    alignment_form: Literal["scalar", "gram"] = Ligand.alignment_form,
    input: LigandInput = DEFAULT.input,
    rate: Rate = DEFAULT.rate,
    average: float = DEFAULT.average,
    semi: Semi = DEFAULT.semi,
    experts: Mapping[str, Model] | None = None,
    seed: int = 0,
) -> Gate:
    """Train the paper's ligand, beta(x) = softmax(A [z_1; ...; z_n] + b), on stored embeddings.

    `embeddings`: (expert, task) -> (N, d), not normalised: how each expert sees the train images of every
    expert's task. An expert is called "task" or "task@origin", after its own task. `labels`: task -> int
    (N,), or None where the objective is not `sup`; `heads`: task -> the zero-shot head (C, d) of its expert.

    `objective`: the prediction term L_b, cross-entropy (`sup`), what `semi` says, the entropy of predictions
    or the information that they hold (`semi`), or the cross-entropy of beta with the own task (`route`).
    `alignment_weight`: alpha in alpha L_a + L_b; L_a needs the experts' weights, `experts`: label -> model.
    None: the reference's 0.01 where they are given, else 0. `alignment_form`: of L_a. `input`, `rate` and
    `average` as an experiment's `ligand` has them: what the linear map is trained on, whether the learning
    rate falls, and the share of the last rounds whose weights are averaged; the paper has `raw`, `constant`,
    0 and `entropy`. Everything is a function of
    `seed`: with an experiment's settings it is the experiment's ligand.

    Raises InputError for arrays that are missing or do not fit together, and TrainingDiverged for a loss
    that is not finite.

    Example:
        >>> import numpy as np
        >>> import neulig_ray as nl
        >>> rng = np.random.default_rng(0)
        >>> labels = {"a": rng.integers(0, 3, 64), "b": rng.integers(0, 2, 64)}
        >>> z = {(e, t): rng.normal(size=(64, 8)) + (e == t) for e in labels for t in labels}
        >>> heads = {"a": rng.normal(size=(3, 8)), "b": rng.normal(size=(2, 8))}
        >>> gate = nl.train_ligand(z, labels, heads, epochs=2)
        >>> gate.beta({"a": z["a", "a"], "b": z["b", "a"]}).shape
        torch.Size([64, 2])
    """
    recipe = LigandRecipe(input=input, rate=rate, average=average, semi=semi)
    combination = tuple(sorted({expert for expert, _ in embeddings}))
    if labels is None and objective == "sup":
        raise InputError("labels is None, but the objective 'sup' needs them: give them, or objective='semi'")
    if labels is None:
        labels = {task: np.zeros(len(np.asarray(z)), np.int64) for (_, task), z in embeddings.items()}
    data = _data(combination, embeddings, labels, heads)
    if alignment_weight is None:
        alignment_weight = 0.0 if experts is None else _ALIGNMENT_WEIGHT
    form = torch.zeros(len(combination), len(combination))
    if alignment_weight:
        if experts is None:
            raise InputError(
                f"alignment_weight {alignment_weight} is of L_a, which is made of the experts' weights: give "
                "experts={label: model}, or alignment_weight=0"
            )
        check_labels(combination, experts)
        stack = ExpertStack.from_states(_states({label: experts[label] for label in combination}))
        form = Offsets.measure(stack).form(combination, alignment_form)
    settings: dict[str, Any] = {
        "objective": objective,
        "learning_rate": learning_rate,
        "alignment_weight": alignment_weight,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    portland = train_ligands([combination], data, form[None], recipe=recipe, **settings)
    return Gate(portland, {**settings, "alignment_form": alignment_form, **recipe.identity})


def load_ligand(
    source: str | Path,
    experts: Sequence[str] | None = None,
    *,
    seed: int | None = None,
    storage: str | Path = RunOptions.storage,
) -> Gate:
    """A ligand out of a file, or out of a storage by its artifact's name, `ligand:ARCH.ORIGIN.nN.sup`.

    `experts`: the combination that is meant, in any order, where the file has those of several. `seed`: which
    of its ligands; None: the first.

    Raises InputError for what is no ligand, and where combination or seed is not there or has to be named.

    Example:
        >>> import neulig_ray as nl
        >>> gate = nl.load_ligand("ligand:tiny-rn.seed-0.n2.sup", storage="./neulig-storage")
        >>> gate.experts
        ('digits@seed-0', 'textures@seed-0')
    """
    with tempfile.TemporaryDirectory(prefix="neulig-ligand-") as folder:
        opened = Finder(str(storage), Path(folder))(source, str(source), str(source))
        portland, about = _read(opened)
    known = list(dict.fromkeys(portland.combinations))
    listing = "; ".join(", ".join(combination) for combination in known)
    if experts is None and len(known) > 1:
        raise InputError(f"{source} has ligands of {len(known)} combinations, experts= is one of: {listing}")
    meant = known if experts is None else [c for c in known if sorted(c) == sorted(experts)]
    if not meant:
        raise InputError(f"{source} has no ligand of {', '.join(experts or ())}, but of: {listing}")
    try:
        return Gate(portland.select(portland.member(meant[0], seed)), about)
    except ValueError:
        raise unknown(f"seed of {source}:", str(seed), map(str, dict.fromkeys(portland.seeds))) from None


def _read(opened: Input) -> tuple[Portland, dict[str, Any]]:
    about, source = dict(opened.about), opened.checkpoint.source
    if about.get("kind") != "ligand" or not set(LINEAR) <= source.specs.keys():
        raise InputError(f"{opened.given} is no ligand: `neulig search` and Gate.save write such files")
    state = {name: source.read(name).view(spec.shape) for name, spec in source.specs.items()}
    try:
        portland = described(about, state)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{opened.given} is damaged: {error}; copy it again") from error
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise InputError(f"{opened.given} holds NaN or infinite values: its training failed, make it again")
    form = ("format", "kind", "combinations", "normalised", "seeds", "gate", "hidden")
    return portland, {key: value for key, value in about.items() if key not in form}


def _states(models: Mapping[str, Model]) -> dict[str, State]:
    """The models' tensors in memory, in their dtypes."""
    with tempfile.TemporaryDirectory(prefix="neulig-states-") as folder:
        find = Finder(RunOptions.storage, Path(folder))
        opened = [find(model, label, label) for label, model in models.items()]
        return {
            found.label: {
                name: found.checkpoint.source.read(name).view(spec.shape)
                for name, spec in found.checkpoint.source.specs.items()
            }
            for found in opened
        }


def _data(
    combination: tuple[str, ...],
    embeddings: Mapping[tuple[str, str], ArrayLike],
    labels: Mapping[str, ArrayLike],
    heads: Mapping[str, ArrayLike],
) -> LigandData:
    """What the ligand sees; raises InputError, naming it, for what is missing or cannot be used."""
    if len(combination) < 2:
        raise InputError(f"embeddings are of {len(combination)} experts: a ligand weights two or more")
    own = {label: task_of(label) for label in combination}
    for label, task in own.items():
        for what, given in (("labels", labels), ("heads", heads)):
            if task not in given:
                raise InputError(
                    f"{what} lack the task {task!r} of the expert {label!r}: experts are called TASK or "
                    f"TASK@ORIGIN ({what} are of {', '.join(given) or 'nothing'})"
                )
        for other in own.values():
            if (label, other) not in embeddings:
                raise InputError(
                    f"embeddings lack {(label, other)!r}: every expert sees the images of every expert's task"
                )
    data = LigandData(
        {
            (label, task): _embedding(embeddings[label, task], f"embeddings[{label!r}, {task!r}]")
            for label in combination
            for task in own.values()
        },
        {task: _labels(labels[task], task) for task in own.values()},
        {label: _embedding(heads[task], f"heads[{task!r}]") for label, task in own.items()},
    )
    data.check(combination)
    return data


def _embedding(given: ArrayLike, what: str) -> np.ndarray:
    array = np.ascontiguousarray(given, np.float32)
    if array.ndim != 2:
        raise InputError(f"{what} is of shape {array.shape}: give (N, d)")
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds NaN or infinite values")
    return array


def _labels(given: ArrayLike, task: str) -> np.ndarray:
    array = np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"labels[{task!r}] are {array.dtype} of shape {array.shape}: give int (N,)")
    return np.ascontiguousarray(array, np.int64)
