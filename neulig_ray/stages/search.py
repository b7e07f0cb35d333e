"""Stage `search`: Ray Tune trains the ligands of every cell with every setting of its search.

A cell is (arch, origin, n, objective); a trial trains the ligands of all its combinations and seeds, stacked,
with one setting. All missing trials of all cells are one Tune run, so that its actors are started once.
"""

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

import torch

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.device import use_processor
from neulig_ray.cluster.jobs import JobOutput, Resources, ensure, runnable, threads, told
from neulig_ray.cluster.progress import StageProgress
from neulig_ray.cluster.run_context import Failures, RunContext
from neulig_ray.errors import TrainingDiverged
from neulig_ray.evaluation.ligand_rows import task_accuracies
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import Group
from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.search_space import Setting, settings
from neulig_ray.ligand.data import task_of
from neulig_ray.ligand.files import ligand_bytes
from neulig_ray.ligand.gate import EXPERTS, GateSpec
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.recipe import Objective
from neulig_ray.ligand.training import train_ligands
from neulig_ray.ligand.weighted_offset import Offsets
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.work import forward_flops
from neulig_ray.stages.read_inputs import SharedSplit, collaborators, load_bare_tower, read_split, read_stack
from neulig_ray.storage.artifact import Artifact, fingerprint
from neulig_ray.storage.scratch import Scratch, scratch
from neulig_ray.storage.storage import Storage

VERSION = 2
LIGAND_FILE = "ligand.safetensors"


@dataclass(frozen=True)
class Trial:
    """One setting of one cell, of the experts of one seed: a ligand for each combination and ligand seed.

    `cell`: the ligands that will be chosen of this trial and its siblings. Where they are, none is made.
    """

    artifact: Artifact
    arch: str
    combinations: tuple[tuple[str, ...], ...]
    objective: Objective
    setting: Setting
    experiment: Experiment
    inputs: tuple[Artifact, ...]
    models: ArchModels
    cell: Artifact

    def cost(self, sizes: Sizes) -> Cost:
        """Looks of merged models at val; the training itself, on stored embeddings, is not counted."""
        flops, limit = forward_flops(self.arch), self.experiment.search.val_images
        total = Cost()
        for combination in self.combinations:
            for key in combination:
                total += sizes.passes(self.models.data[task_of(key)], "val", flops, limit)
            width = len(combination) * ARCHS[self.arch].config["embed_dim"]
            total += Cost(bytes=4 * (width + 1) * len(combination))
        seeds = len(self.experiment.ligand_seeds)
        return Cost(seeds * total.flops, seeds * total.bytes, total.unknown)


def cell_label(group: Group, kind: str) -> str:
    """How the ligands of a cell are called, whatever their seeds; `kind`: their objective."""
    return f"{group.arch}.{group.origin}.n{group.n}.{kind}"


def trial_artifacts(
    experiment: Experiment, group: Group, objective: Objective, models: ArchModels
) -> dict[Setting, Artifact]:
    """The trials of a cell whose experts are those of the experiment's `seed`, by their setting."""
    inputs = models.restricted(collaborators(group.combinations)).inputs()
    common = {
        "models": [artifact.fingerprint for artifact in inputs],
        "combinations": group.combinations,
        "alignment": objective,
        "ligand": experiment.ligand.identity(experiment.protocol, objective),
        "seeds": experiment.ligand_seeds,
        "protocol": experiment.protocol,
        "val_images": experiment.search.val_images,
        "drawn_by": experiment.drawn_by,
        "threads": threads(experiment.cluster.trial_cpus),
    }
    label = cell_label(group, objective)
    return {
        setting: Artifact.of(
            "trial",
            f"{label}.lr{setting.learning_rate:g}.alpha{setting.alignment_weight:g}",
            VERSION,
            {**common, "setting": dataclasses.asdict(setting)},
        )
        for setting in settings(experiment.search, experiment.drawn_by)
    }


def plan_trials(
    experiment: Experiment,
    group: Group,
    objective: Objective,
    models: ArchModels,
    cell: Artifact,
    artifacts: Mapping[Setting, Artifact],
) -> tuple[Trial, ...]:
    """A trial for each setting of a cell's search; `artifacts`: as `trial_artifacts` names them."""
    inputs = models.restricted(collaborators(group.combinations)).inputs()
    return tuple(
        Trial(artifact, group.arch, group.combinations, objective, setting, experiment, inputs, models, cell)
        for setting, artifact in artifacts.items()
    )


def run(context: RunContext, trials: Sequence[Trial], resources: Resources) -> None:
    """Make the missing trials, adding to the failures what could not be made."""
    storage = context.storage
    ready = runnable([t for t in trials if not storage.exists(t.cell)], context.failures)
    missing = sum(not storage.exists(trial.artifact) for trial in ready)
    with context.reporter.stage("search", len(trials), len(trials) - missing) as stage:
        if not missing:
            return
        context.cluster.start()
        stage.slots = context.cluster.slots(cpus=resources.cpus, gpus=0)
        name = f"search-{fingerprint([trial.artifact.fingerprint for trial in ready])}"
        with scratch(storage, f"tune/{name}") as own:

            def make(mine: list[Trial]) -> Failures:
                return _tune(own, mine, storage, resources, stage)

            made = ensure(storage, ready, make, stage)
            own.sweep(lambda folder: True)
        context.failures.update(made)


def train_trial(
    trial: Trial, train: SharedSplit, val: SharedSplit, offsets: Offsets, stack: ExpertStack
) -> JobOutput:
    """The ligands of one setting, and what they reach on val; a divergence is a result too."""
    e, started = trial.experiment, time.perf_counter()
    about: dict[str, Any] = {
        **dataclasses.asdict(trial.setting),
        "alignment": trial.objective,
        "status": "ok",
    }
    files = {}
    try:
        portland = trained(trial, trial.setting, train, offsets, EXPERTS)
        reached = task_accuracies(
            portland,
            stack=stack,
            tower=load_bare_tower(trial.arch),
            arch=ARCHS[trial.arch],
            val=val.data,
            images=val.images,
            limit=e.search.val_images,
            seed=e.drawn_by,
        )
        about["val_merging"] = fmean(row["merging_accuracy"] for row in reached)
        about["val_ensembling"] = fmean(row["ensembling_accuracy"] for row in reached)
        files[LIGAND_FILE] = ligand_bytes(portland, about)
    except TrainingDiverged as error:
        about["status"] = f"failed: {error}"
    about["seconds"] = time.perf_counter() - started
    return files, about


class Stacked(Protocol):
    """What ligands are trained for, side by side."""

    @property
    def combinations(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def experiment(self) -> Experiment: ...


def trained(job: Stacked, setting: Setting, train: SharedSplit, offsets: Offsets, gate: GateSpec) -> Portland:
    """The ligands of a job with one setting: for every seed one of each combination."""
    e = job.experiment
    every = [(combination, seed) for seed in e.ligand_seeds for combination in job.combinations]
    return train_ligands(
        [combination for combination, _ in every],
        train.data,
        torch.stack([offsets.form(c, e.ligand.alignment_form) for c, _ in every]),
        objective=job.objective,
        learning_rate=setting.learning_rate,
        alignment_weight=setting.alignment_weight,
        epochs=e.ligand.epochs,
        batch_size=e.ligand.batch_size,
        recipe=e.ligand.recipe(e.protocol),
        gate=gate,
        seed=[seed for _, seed in every],
    )


def _tune(
    own: Scratch,
    trials: list[Trial],
    storage: Storage,
    resources: Resources,
    stage: StageProgress,
) -> Failures:
    """One Tune run over the trials; what it cannot make comes back with the reason.

    Nothing of an interrupted run is taken up: its finished trials are artifacts, and not among these.
    """
    import ray
    from ray import tune

    by_name = {trial.artifact.fingerprint: trial for trial in trials}
    shared = {
        place: ray.put(gather([t for t in trials if _place(t) == place], storage))
        for place in dict.fromkeys(map(_place, trials))
    }
    trainable = tune.with_resources(
        tune.with_parameters(
            _trial, trials=by_name, shared=shared, storage=storage, threads=resources.threads
        ),
        {"cpu": resources.cpus},
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name=fingerprint(list(by_name)),
            storage_path=storage.child_uri(own.path),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            verbose=0,
        ),
    )
    errors: dict[str, Exception] = {}
    with _following(trials, storage, stage):
        try:
            errors = {r.config["trial"]: r.error for r in tuner.fit() if r.error is not None}
        except Exception as error:  # Tune itself: what it did not make has failed for this reason
            errors = dict.fromkeys(by_name, error)
    tries = f" (tried {resources.max_failures + 1} times)"
    failures = {
        fp: told(error) + tries for fp, error in errors.items() if not storage.exists(by_name[fp].artifact)
    }
    for fp, reason in failures.items():
        stage.finished(by_name[fp].artifact.label, reason, failed=True)
    return failures


@contextmanager
def _following(trials: list[Trial], storage: Storage, stage: StageProgress) -> Iterator[None]:
    """Count trials as they appear in the storage: Tune would pickle a callback that holds the console."""
    finished = threading.Event()
    waiting = list(trials)

    def look() -> None:
        for trial in [trial for trial in waiting if storage.exists(trial.artifact)]:
            waiting.remove(trial)
            stage.finished(trial.artifact.label)

    def follow() -> None:
        while not finished.wait(1.0):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        look()


def _place(trial: Trial) -> str:
    """Whose experts a trial is of."""
    return f"{trial.arch}/{trial.experiment.seed}"


def gather(trials: Sequence[Trial], storage: Storage) -> dict[str, Any]:
    """What the trials of one arch and expert seed share, as arrays: Ray hands these out without copies."""
    models = trials[0].models
    keys = collaborators(c for trial in trials for c in trial.combinations)
    stack = read_stack(storage, models, keys)
    return {
        "train": read_split(storage, models, "train", keys, images=False),
        "val": read_split(storage, models, "val", keys, images=True),
        "stack": stack.to_arrays(),
        "offsets": Offsets.measure(stack, include_buffers=trials[0].experiment.protocol == "paper"),
    }


def _trial(
    config: Mapping[str, str],
    trials: Mapping[str, Trial],
    shared: Mapping[str, Any],
    storage: Storage,
    threads: int,
) -> None:
    """The trainable: one trial in an actor that goes on to the next one."""
    import ray
    from ray import tune

    use_processor(threads)
    trial = trials[config["trial"]]
    if not storage.exists(trial.artifact):
        data = ray.get(shared[_place(trial)])
        stack = ExpertStack.from_arrays(data["stack"])
        files, about = train_trial(trial, data["train"], data["val"], data["offsets"], stack)
        storage.commit(trial.artifact, files, about)
    info = storage.manifest(trial.artifact)["info"]
    tune.report(
        {"val_merging": info.get("val_merging", 0.0), "val_ensembling": info.get("val_ensembling", 0.0)}
    )
