"""A method of each kind, from one file outside the package, is planned and measured by its own function.

What would be stored is replaced by the small models of the helpers.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from isolated import only_the_packages_own
from small_models import ARCH, SmallTower, make_data, make_images, make_states, make_tower
from torch import nn

from neulig_ray.cluster.cost import Cost
from neulig_ray.errors import InputError
from neulig_ray.evaluation import model_files
from neulig_ray.evaluation.granularity import RULES
from neulig_ray.experiment.config import Evaluation as Settings
from neulig_ray.experiment.config import Experiment, Search
from neulig_ray.ligand.coopvec import coopvecs
from neulig_ray.ligand.data import LigandData
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models import tower_files
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import preprocess
from neulig_ray.models.tower_files import spec_of
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.report import console, html, plots
from neulig_ray.results import correctness, schema
from neulig_ray.results.granularities import GRANULARITIES, OWN
from neulig_ray.seeds import stable_generator
from neulig_ray.stages import evaluation_jobs, ligand_inputs, merge_inputs, merged_models, statistics
from neulig_ray.stages.evaluations import PlannedEvaluation
from neulig_ray.stages.merged_models import ModelJob
from neulig_ray.stages.read_inputs import SharedSplit
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS as TASK_REGISTRY
from neulig_ray.tasks import Split
from neulig_ray.weights.sources import StateSource

OF_0_1 = Path(__file__).parent / "plugins_of_0_1"
KEYS = ("a@seed-0", "b@seed-0")
TASKS = ("a", "b")
STATES = make_states(KEYS)
BASE = make_tower(8).state_dict()
GATE = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(1))
PORTLAND = Portland([KEYS], GATE, torch.zeros(1, 2))
SIZE = sum(p.numel() for p in SmallTower().parameters())


def tower_of(state: Mapping[str, torch.Tensor]) -> SmallTower:
    tower = SmallTower()
    tower.load_state_dict(state)
    return tower.eval()


def seen_by(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(preprocess(images, ARCH)).numpy()


def split_data(split: str) -> LigandData:
    """What the experts and the origin see."""
    found = make_data(split, STATES)
    origin = {("seed-0", t): seen_by(tower_of(BASE), make_images(split)[t]) for t in found.labels}
    return replace(found, embeddings={**found.embeddings, **origin})


SPLITS = {split: split_data(split) for split in ("val", "test")}
STATISTICS: dict[str, StateSource] = {}  # by fingerprint: what was measured
TEST, IMAGES = SPLITS["test"], make_images("test")


def logits(z: np.ndarray, key: str) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True) @ TEST.heads[key].T


def percent(scores: np.ndarray, task: str) -> float:
    return 100 * float((scores.argmax(-1) == TEST.labels[task]).mean())


def accuracies(models: Mapping[str, nn.Module]) -> dict[str, float]:
    """Of a model for each task, on the test split."""
    return {key[0]: percent(logits(seen_by(models[key[0]], IMAGES[key[0]]), key), key[0]) for key in KEYS}


# One file for each kind ------------------------------------------------------------------------------------

STREAMED = '''
from neulig_ray.merging import streamed

@streamed("mine", paper="none", coefficients=lambda n, *, first=0.75: None)
def mine(tensors, *, base, first=0.75):
    """Towards the first expert."""
    return base + first * (tensors[0] - base)
'''
MASKED = '''
from neulig_ray.merging import masked

@masked("mine", paper="none")
def mine(tensors, *, base):
    """Where a task's own vector is positive."""
    return (tensors - base).sum(0), tensors > base
'''
MEASURED = '''
import torch
from neulig_ray.merging import measured

def measure(tower, images, head, seed=0, *, examples=4):
    return {"brightness": images.pixels(torch.arange(examples)).mean()[None] + seed}

@measured("mine", paper="none", measure=measure)
def mine(tensors, *, statistics, factor=1.0):
    """The experts, as their images are bright."""
    weights = [factor * float(known["brightness"]) for known in statistics]
    return sum(w * t for w, t in zip(weights, tensors, strict=True))
'''
TRAINED = '''
from neulig_ray.merging import trained

@trained("mine", paper="none", needs=("base", "unlabelled images"))
def mine(inputs, *, steps=2):
    """A state that depends on images."""
    assert len(inputs.images[inputs.labels[0]]) and inputs.base is not None
    return {n: t * 1.5 if n == "proj.weight" else t for n, t in inputs.experts[inputs.labels[1]].items()}
'''
ROUTED = '''
from torch import nn
from neulig_ray.merging import routed

class Sum(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, images):
        return sum(part(images) for part in self.parts)

@routed("mine", paper="none", needs=())
def mine(inputs):
    """Both experts."""
    import copy
    towers = []
    for state in inputs.experts.values():
        towers.append(copy.deepcopy(inputs.tower))
        towers[-1].load_state_dict(state)
    return Sum(towers).eval()
'''
TRUNK_AND_TAILS = '''
import copy
from torch import nn
from neulig_ray.merging import MergedModels, routed

class WithTail(nn.Module):
    def __init__(self, trunk, tail):
        super().__init__()
        self.trunk, self.tail = trunk, tail

    def forward(self, images):
        return self.tail(self.trunk.bn(self.trunk.conv(images)).relu().flatten(1))

@routed("mine", paper="none", needs=("base", "task at test"))
def mine(inputs):
    """The base's trunk for all, the experts' own last layers."""
    trunk = copy.deepcopy(inputs.tower)
    trunk.load_state_dict(inputs.base)
    trunk.proj = nn.Identity()
    models = []
    for state in inputs.experts.values():
        tail = copy.deepcopy(inputs.tower.proj)
        tail.load_state_dict({"weight": state["proj.weight"], "bias": state["proj.bias"]})
        models.append(WithTail(trunk, tail).eval())
    return MergedModels.counted(inputs.by_task(models), inputs)
'''
GATED = '''
from neulig_ray.merging import gated

@gated("mine", paper="none")
def mine(beta, *, power=2.0):
    """The other expert's beta, to a power."""
    return beta.flip(-1) ** power
'''
SELECTING = '''
import torch
from neulig_ray.merging import gated

@gated("mine", paper="none", selects=True)
def mine(beta):
    """The expert of the least beta."""
    return torch.nn.functional.one_hot(beta.argmin(-1), beta.shape[-1]).to(beta.dtype)
'''
ENSEMBLE = '''
import torch
from neulig_ray.merging import ensemble

@ensemble("mine", paper="none")
def mine(embeddings, head, *, weight=0.9, seed=0):
    """The first expert, above all."""
    assert seed == 5
    return (weight * embeddings[0] + (1 - weight) * embeddings[1]) @ head.T
'''
REFERENCE = '''
from neulig_ray.merging import reference

@reference("mine", paper="none")
def mine(embeddings, head, *, sign=-1.0):
    """The least likely class of the expert."""
    return sign * embeddings @ head.T
'''
OF_ORIGIN = REFERENCE.replace('paper="none"', 'paper="none", of="origin"')


@pytest.fixture
def merged() -> dict[Artifact, ModelJob]:
    """The jobs that make the planned evaluations' models."""
    return {}


@pytest.fixture
def plan(
    tmp_path: Path, merged: dict[Artifact, ModelJob]
) -> Iterator[Callable[..., list[PlannedEvaluation]]]:
    """Evaluations that an experiment plans for the method of a plugin."""

    def planned(text: str, options: str = "", **changes: Any) -> list[PlannedEvaluation]:
        file = tmp_path / "mine.py"
        file.write_text(text)
        load_plugins(read_plugins([str(file)]))
        e = Experiment(
            name="kinds", archs=("tiny-rn",), tasks=("digits", "textures"), n=(2,), alignment=("sup",),
            methods=(f"mine{options}",), search=Search(trials=1, val_images=30), seed=5,
        )  # fmt: skip
        made = make_plan(replace(e, **changes))
        merged.update({job.artifact: job for job in made.merged})
        return made.evaluations

    with only_the_packages_own():
        yield planned


@pytest.fixture
def measure(
    monkeypatch: pytest.MonkeyPatch, merged: dict[Artifact, ModelJob], tmp_path: Path
) -> Callable[[PlannedEvaluation], list[dict[str, Any]]]:
    """Runs an evaluation's job on small models: digits are task a, textures b.

    Where its models are made before, it runs with these and with models that it makes itself.
    """
    named = {"digits": "a", "textures": "b"}

    def read_split(*given: Any, **_: Any) -> SharedSplit:
        data, other = SPLITS[given[2]], {v: k for k, v in named.items()}
        called = lambda key: key if key == "seed-0" else f"{other[key[0]]}{key[1:]}"  # noqa: E731
        return SharedSplit(
            {(called(key), other[t]): z for (key, t), z in data.embeddings.items() if t in TASKS},
            {other[t]: labels for t, labels in data.labels.items() if t in TASKS},
            {called(key): head for key, head in data.heads.items()},
            {other[t]: images for t, images in make_images(given[2]).items() if t in TASKS},
        )

    def load_split(storage: Storage, artifact: Artifact, split: str) -> Split:
        task = named[artifact.label.partition("@")[0].split(".")[0]]
        labels = SPLITS[split].labels[task] if split in SPLITS else np.zeros(len(make_images(split)[task]))
        return Split(make_images(split)[task], labels)

    keys = ("digits@seed-0", "textures@seed-0")
    states = dict(zip(keys, STATES.values(), strict=True))
    portland = Portland([keys], PORTLAND.weight.detach(), PORTLAND.bias.detach(), seeds=[5])
    gate = {"alignment_weight": 0.5, "learning_rate": 0.1}
    monkeypatch.setattr(tower_files, "tower_spec", lambda _: spec_of(SmallTower()))
    for module in (evaluation_jobs, ligand_inputs, merge_inputs, merged_models, model_files, statistics):
        for name, value in {
            "read_split": read_split,
            "load_split": load_split,
            "read_stack": lambda *_: ExpertStack.from_states(states),
            "load_clip": lambda *_: SimpleNamespace(visual=tower_of(BASE)),
            "load_bare_tower": lambda _: SmallTower(),
            "build_tower": lambda _: SmallTower(),
            "load_expert": lambda storage, artifact, arch: states[artifact.label.removeprefix("tiny-rn.")],
            "read_array": lambda storage, artifact, file: np.zeros((2, 6), np.float32),
            "open_statistics": lambda storage, artifact: STATISTICS[artifact.fingerprint],
            "ARCHS": {"tiny-rn": ARCH},
            "load_ligand": lambda *_: (portland, gate),
            "tower_parameters": lambda arch: SIZE,
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)

    def in_two_steps(evaluation: PlannedEvaluation, job: ModelJob, at_once: Any) -> None:
        storage = Storage(str(tmp_path / "store"))
        job.run(storage)
        files: Any = evaluation.job.make(storage)[0]
        first, second = (json.loads(f[evaluation_jobs.ROWS_FILE]) for f in (at_once, files))
        if storage.load_json(job.artifact, model_files.INDEX)["kept"]:  # else they are made once more
            spent = storage.manifest(job.artifact)["info"]["seconds"]
            assert all(row["seconds"] > spent > 0 for row in second)
        for row in (*first, *second):
            assert row.pop("seconds") > 0
            assert row.pop("peak_memory_bytes") > 0
        assert second == first
        kept = evaluation_jobs.CORRECT_FILE
        assert files.get(kept) == at_once.get(kept)

    def rows(evaluation: PlannedEvaluation) -> list[dict[str, Any]]:
        storage: Any = None
        settings = {name: value for name, value in evaluation.job.settings.items() if name != "model"}
        files, _ = replace(evaluation.job, settings=settings).make(storage)
        if model := evaluation.job.settings.get("model"):
            in_two_steps(evaluation, merged[model], files)
        found = json.loads(files[evaluation_jobs.ROWS_FILE])
        if kept := files.get(evaluation_jobs.CORRECT_FILE):
            bits = correctness.read(kept, "bits")
            for row in found:
                right = bits[correctness.row_key(row)].right("merging")
                reached = row["merging_accuracy"]
                assert (right is None) == (reached is None)
                assert right is None or 100 * right.mean() == pytest.approx(reached)
        else:
            assert all(row["status"].startswith("skipped") for row in found)
        return [{**evaluation.common, **row, "task": named[row["task"]]} for row in found]

    return rows


def by_task(rows: list[dict[str, Any]], column: str = "merging_accuracy") -> dict[str, Any]:
    return {row["task"]: row[column] for row in rows if row["buffers"] in ("", "average")}


def averaged() -> dict[str, torch.Tensor]:
    """The statistics and counters that every merge has."""
    return {
        n: torch.stack([s[n] for s in STATES.values()]).mean(0) if "running" in n else t
        for n, t in STATES[KEYS[0]].items()
    }


def parameters() -> list[str]:
    return [name for name, _ in SmallTower().named_parameters()]


# References, ensembles, gates: their own functions -------------


@pytest.mark.parametrize(
    ("text", "options", "sign", "model"),
    [
        (REFERENCE, "", -1, None),
        (REFERENCE, ":sign=1", 1, None),
        (OF_ORIGIN, "", -1, "seed-0"),
        (OF_ORIGIN, ":sign=1", 1, "seed-0"),
    ],
    ids=["expert", "expert-option", "origin", "origin-option"],
)
def test_a_reference_is_measured_by_its_own_function(
    text: str, options: str, sign: int, model: str | None, plan: Any, measure: Any
) -> None:
    evaluations = plan(text, options)
    assert [e.tasks for e in evaluations] == [("digits",), ("textures",)]
    for key, evaluation in zip(KEYS, evaluations, strict=True):
        (row,) = measure(evaluation)
        z = TEST.embeddings[model or key, key[0]]
        assert row["merging_accuracy"] == percent(sign * z @ TEST.heads[key].T, key[0])
        assert (row["n"], row["collaborators"]) == ((0, "") if model else (1, evaluation.tasks[0]))
        assert (row["granularity"], row["ensembling_accuracy"], row["parameters"]) == ("global", None, SIZE)
        assert not evaluation.job.needs.gpu


def test_a_gated_method_is_given_beta_and_measured_at_every_granularity(plan: Any, measure: Any) -> None:
    evaluations = plan(GATED, ":power=3.0")
    found = {e.common["granularity"]: measure(e) for e in evaluations}
    assert found.keys() == {
        "task", "sample", "global", "batch-first", "batch-mean", "batch-first-mixed", "batch-mean-mixed"
    }  # fmt: skip
    stack = ExpertStack.from_states(STATES)

    def weights(split: str, task: str) -> torch.Tensor:
        return coopvecs(PORTLAND, 0, SPLITS[split], task).flip(-1) ** 3

    for row, key in zip(found["task"], KEYS, strict=True):
        task = key[0]
        merged = {task: tower_of(stack.combine(weights("val", task).mean(0))) for task in TASKS}
        assert row["merging_accuracy"] == pytest.approx(accuracies(merged)[task])
        z = np.stack([TEST.embeddings[k, task] for k in KEYS])
        own = np.einsum("Nn,nNd->Nd", weights("test", task).numpy(), z)
        assert row["ensembling_accuracy"] == pytest.approx(percent(logits(own, key), task))
        assert (row["alignment"], row["alignment_weight"]) == ("sup", 0.5)
    everything = tower_of(stack.combine(torch.stack([weights("val", t).mean(0) for t in TASKS]).mean(0)))
    assert by_task(found["global"]) == pytest.approx(accuracies(dict.fromkeys(TASKS, everything)))
    first = stable_generator("order", 0, "digits").permutation(len(IMAGES["a"]))[0]
    one = tower_of(stack.combine(weights("test", "a")[first]))
    expected = percent(logits(seen_by(one, IMAGES["a"]), KEYS[0]), "a")
    assert {row["order_seed"] for row in found["batch-first"]} == set(range(5))
    in_order = [row for row in found["batch-first"] if row["order_seed"] == 0]
    assert by_task(in_order)["a"] == pytest.approx(expected)
    of_ligand = {e.common["granularity"]: measure(e) for e in plan(GATED, methods=("ligand",))}
    assert by_task(of_ligand["task"]) != by_task(found["task"]), "else it could be measured as the ligand is"


def test_a_gated_method_that_selects_is_measured_as_what_it_chose(plan: Any, measure: Any) -> None:
    (evaluation,) = plan(SELECTING)
    rows = measure(evaluation)
    for row, key in zip(rows, KEYS, strict=True):
        task = key[0]
        chosen = coopvecs(PORTLAND, 0, TEST, task).argmin(-1).tolist()
        z = np.stack([TEST.embeddings[KEYS[c], task][i] for i, c in enumerate(chosen)])
        assert row["merging_accuracy"] == pytest.approx(percent(logits(z, key), task))
        assert (row["granularity"], row["ensembling_accuracy"]) == ("sample", None)
    assert by_task(rows) != by_task(measure(*plan(SELECTING, methods=("hard-routing",))))


def test_an_ensemble_is_given_its_options_and_the_seed(plan: Any, measure: Any) -> None:
    (evaluation,) = plan(ENSEMBLE, ":weight=0.4")
    for row, key in zip(measure(evaluation), KEYS, strict=True):
        z = [TEST.embeddings[k, key[0]] for k in KEYS]
        expected = percent((0.4 * z[0] + 0.6 * z[1]) @ TEST.heads[key].T, key[0])
        assert row["ensembling_accuracy"] == pytest.approx(expected)
        assert (row["merging_accuracy"], row["parameters"]) == (None, 2 * SIZE)
    seeds = {e.job.artifact.fingerprint for seed in (5, 6) for e in plan(ENSEMBLE, seed=seed)}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            SELECTING.replace("torch.nn.functional.one_hot(beta.argmin(-1), beta.shape[-1])", "(beta / 2)"),
            "mine declares that it selects, but weighs several experts",
        ),
        (GATED.replace("beta.flip(-1) ** power", "beta[:, :1]"), r"mine gives \(37, 1\).*here \(37, 2\)"),
        (ENSEMBLE.replace(" @ head.T", ""), r"mine gives \(37, 6\).*here \(37, 3\)"),
        (REFERENCE.replace("sign * embeddings @ head.T", "None"), "mine gives a NoneType"),
    ],
    ids=["several", "gated", "ensemble", "reference"],
)
def test_what_is_no_weights_or_scores_is_refused(text: str, error: str, plan: Any, measure: Any) -> None:
    with pytest.raises(InputError, match=error):
        measure(plan(text)[0])


def test_without_a_prediction_term_there_is_no_gate(plan: Any) -> None:
    with pytest.raises(InputError, match=r"alignment is empty, but mine, which needs a ligand"):
        plan(GATED, alignment=())
    with pytest.raises(InputError, match=r"alignment is empty, but hard-routing"):
        plan(GATED, methods=("hard-routing",), alignment=())
    with pytest.raises(InputError, match=r"granularities is empty, but mine"):
        plan(GATED, evaluation=Settings(granularities=()))


def test_a_method_that_selects_needs_no_granularities(plan: Any) -> None:
    (evaluation,) = plan(SELECTING, evaluation=Settings(granularities=()))
    assert evaluation.common["granularity"] == "sample"


# Methods that merge parameters ------------------------------------------------------------------------------


def test_a_streamed_method(plan: Any, measure: Any) -> None:
    (evaluation,) = plan(STREAMED, ":first=0.5")
    state = averaged()
    for name in parameters():
        state[name] = (BASE[name] + STATES[KEYS[0]][name]) / 2
    rows = measure(evaluation)
    assert by_task(rows) == pytest.approx(accuracies(dict.fromkeys(TASKS, tower_of(state))))
    assert {(row["granularity"], row["parameters"]) for row in rows} == {("global", SIZE)}
    again = {row["task"]: row["merging_accuracy"] for row in rows if row["buffers"] == "re-estimated"}
    assert again.keys() == set(TASKS)
    assert evaluation.common["granularity"] == "global"


def test_a_masked_method(plan: Any, measure: Any) -> None:
    (evaluation,) = plan(MASKED)
    models = {}
    for key in KEYS:
        state = averaged()
        for name in parameters():
            total = sum(s[name] - BASE[name] for s in STATES.values())
            state[name] = BASE[name] + (STATES[key][name] > BASE[name]) * total
        models[key[0]] = tower_of(state)
    rows = measure(evaluation)
    assert by_task(rows) == pytest.approx(accuracies(models))
    assert {row["granularity"] for row in rows} == {evaluation.common["granularity"]} == {"task"}
    assert 2 * SIZE < rows[0]["parameters"] < 2.5 * SIZE, "masks count as bits"


def test_a_measured_method(plan: Any, measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (evaluation,) = plan(MEASURED, ":factor=2.0,examples=3")
    method = METHODS["mine"]
    experiment = Experiment(
        name="kinds", archs=("tiny-rn",), tasks=("digits", "textures"), n=(2,), alignment=("sup",),
        methods=("mine:factor=2.0,examples=3",), search=Search(trials=1, val_images=30), seed=5,
    )  # fmt: skip
    for job in make_plan(experiment).statistics:
        files, info = job.make(None)  # type: ignore[arg-type]
        assert info["options"] == {"examples": 3, "seed": 5}
        tensors = safetensors.torch.load(files[statistics.FILE])
        monkeypatch.setitem(STATISTICS, job.artifact.fingerprint, StateSource(tensors))
    weights = [2 * float(preprocess(make_images("train")[t][:3], ARCH).mean() + 5) for t in TASKS]
    state = averaged()
    for name in parameters():
        state[name] = sum(w * s[name] for w, s in zip(weights, STATES.values(), strict=True))
    assert by_task(measure(evaluation)) == pytest.approx(accuracies(dict.fromkeys(TASKS, tower_of(state))))
    assert method.kind == "measured"


def test_a_trained_method(plan: Any, measure: Any) -> None:
    (evaluation,) = plan(TRAINED)
    state = {n: t * 1.5 if n == "proj.weight" else t for n, t in STATES[KEYS[1]].items()}
    rows = measure(evaluation)
    assert by_task(rows) == pytest.approx(accuracies(dict.fromkeys(TASKS, tower_of(state))))
    assert {(row["granularity"], row["parameters"]) for row in rows} == {("global", SIZE)}


def test_a_routed_method_keeps_all_of_its_module(plan: Any, measure: Any) -> None:
    (evaluation,) = plan(ROUTED)
    both = lambda images: sum(tower_of(s)(images) for s in STATES.values())  # noqa: E731
    rows = measure(evaluation)
    assert by_task(rows) == pytest.approx(accuracies(dict.fromkeys(TASKS, both)))  # type: ignore[arg-type]
    buffers = sum(b.numel() for b in SmallTower().buffers())
    assert {(row["granularity"], row["parameters"]) for row in rows} == {("sample", 2 * (SIZE + buffers))}


def test_a_routed_method_that_can_do_without_its_work_has_its_module_stored(
    plan: Any, measure: Any, merged: Any, tmp_path: Path
) -> None:
    text = ROUTED.replace("needs=()", 'needs=(), untrained={"factor": 0.0}')
    text = text.replace("def mine(inputs):", "def mine(inputs, *, factor=2.0):")
    text = text.replace("(state)", "({n: (factor * t).to(t.dtype) for n, t in state.items()})")
    (evaluation,) = plan(text)
    double = lambda state: tower_of({n: 2 * t for n, t in state.items()})  # noqa: E731
    both = lambda images: sum(double(s)(images) for s in STATES.values())  # noqa: E731
    assert by_task(measure(evaluation)) == pytest.approx(accuracies(dict.fromkeys(TASKS, both)))  # type: ignore[arg-type]
    (job,) = merged.values()
    found = Storage(str(tmp_path / "store")).manifest(job.artifact)["files"]
    assert found.keys() == {"model.json", "model-0.safetensors"}


def test_a_method_that_is_not_defined_here_is_skipped_in_two_steps_as_in_one(
    plan: Any, measure: Any, merged: Any, tmp_path: Path
) -> None:
    (evaluation,) = plan(
        ROUTED.replace("needs=()", 'needs=(), untrained={}, refuses=lambda tower: "no towers"')
    )
    assert {row["status"] for row in measure(evaluation)} == {schema.skipped("no towers")}
    (job,) = merged.values()
    assert Storage(str(tmp_path / "store")).load_json(job.artifact, "model.json")["skipped"] == "no towers"


def test_a_trained_method_may_return_a_module(plan: Any, measure: Any, merged: Any, tmp_path: Path) -> None:
    text = ROUTED.replace("routed", "trained").replace("needs=()", 'needs=("unlabelled images",)')
    (evaluation,) = plan(text)
    both = lambda images: sum(tower_of(s)(images) for s in STATES.values())  # noqa: E731
    assert by_task(measure(evaluation)) == pytest.approx(accuracies(dict.fromkeys(TASKS, both)))  # type: ignore[arg-type]
    (job,) = merged.values()
    assert Storage(str(tmp_path / "store")).manifest(job.artifact)["files"].keys() == {"model.json"}


def test_a_trunk_that_tasks_share_is_kept_once(plan: Any, measure: Any) -> None:
    (evaluation,) = plan(TRUNK_AND_TAILS)
    models = {}
    for key in KEYS:
        state = dict(BASE) | {n: t for n, t in STATES[key].items() if n.startswith("proj.")}
        models[key[0]] = tower_of(state)
    rows = measure(evaluation)
    assert by_task(rows) == pytest.approx(accuracies(models))
    tail = sum(p.numel() for p in SmallTower().proj.parameters())
    buffers = sum(b.numel() for b in SmallTower().buffers())
    assert {(row["granularity"], row["parameters"]) for row in rows} == {("task", SIZE + buffers + tail)}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (ROUTED.replace("Sum(towers).eval()", "[1]"), "mine returned a list: its function must return"),
        (
            TRUNK_AND_TAILS.replace("inputs.by_task(models)", '{"digits": models[0]}'),
            "mine returned models of digits, but the tasks are digits, textures",
        ),
        (
            TRUNK_AND_TAILS.replace("inputs)\n", 'inputs, "tusk")\n'),
            r"granularity of mine's models.*Did you mean 'task'",
        ),
    ],
    ids=["list", "one-task", "granularity"],
)
def test_what_is_no_merged_model_is_refused(text: str, error: str, plan: Any, measure: Any) -> None:
    with pytest.raises(InputError, match=error):
        measure(plan(text)[0])


# Plugins of 0.1 ---------------------------------------------------------------------------------------------


def test_plugins_of_0_1_run_as_they_are() -> None:
    with only_the_packages_own():
        load_plugins(read_plugins([str(file) for file in sorted(OF_0_1.glob("*.py"))]))
        assert len(TASK_REGISTRY["halves"].splits(0)["val"]) == 600
        assert ARCHS["tinier-vit"].config["embed_dim"] == 64
        states = {str(i): {"w": torch.tensor([float(i)])} for i in (1, 2, 6)}
        merged = merge_with(METHODS["median"], states, {"w": torch.tensor([1.0])}, {"scaling": 0.5})
        assert merged["w"].tolist() == [1.5]
        e = Experiment(name="x", archs=("tinier-vit",), tasks=("digits", "halves"), methods=("median",))
        (evaluation,) = make_plan(e).evaluations
        assert evaluation.common["method"] == "median"


# A granularity of a plugin ----------------------------------------------------------------------------------

QUARTERS = '''
from neulig_ray.evaluation.granularities import Granularity, Predictions, granularity

@granularity(Granularity("quarter", "an even mixture serves some images", static=True, order=15))
def quarter(context, betas, *, batch_size, sample_images):
    """The first images of a task, by a model of equal weights; which batch they came in is noted."""
    import torch
    for task in context.tasks:
        rows = torch.arange(sample_images)
        beta = torch.full((len(rows), len(context.combination)), 0.5)
        logits = context.logits(context.merge(beta[0]), task, rows)
        yield Predictions(task, rows, beta, logits, batch_size)
'''
AT = Settings(granularities=("task", "quarter", "global"), sample_images=12, batch_size=4)


def test_a_granularity_is_one_file_from_the_configuration_to_the_report(plan: Any, measure: Any) -> None:
    evaluations = plan(QUARTERS, methods=("ligand",), evaluation=AT)
    assert [e.common["granularity"] for e in evaluations] == list(AT.granularities)
    (evaluation,) = (e for e in evaluations if e.common["granularity"] == "quarter")
    asked = {"granularity": "quarter", "batch_size": 4, "sample_images": 12, "seed": 5}
    assert evaluation.job.settings.items() >= asked.items()
    assert "order_seeds" not in evaluation.job.settings
    even = tower_of(ExpertStack.from_states(STATES).combine(torch.tensor([0.5, 0.5])))
    rows = {e.common["granularity"]: measure(e) for e in evaluations}
    for row, key in zip(rows["quarter"], KEYS, strict=True):
        predicted = logits(seen_by(even, IMAGES[key[0]][:12]), key).argmax(-1)
        expected = 100 * float((predicted == TEST.labels[key[0]][:12]).mean())
        assert row["merging_accuracy"] == pytest.approx(expected)
        assert (row["num_samples"], row["batch_size"], row["parameters"]) == (12, 4, SIZE)
    frame = schema.frame([{**row, "collaborators": "a,b"} for found in rows.values() for row in found])
    text = console.text(frame)
    shown = [line.split()[0] for line in text.splitlines() if line.startswith(" ")]
    assert [name.rstrip("*") for name in shown if name.rstrip("*") in rows] == ["task", "quarter", "global"]
    assert text.replace("\n", " ").rstrip().endswith("quarter: an even mixture serves some images.")
    page = html.render({"x": frame}, {})
    assert "<th>quarter</th><td>an even mixture serves some images</td><td>no</td>" in page
    assert 'title="an even mixture serves some images"' in page
    figure = plots.gaps(frame)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["task*", "quarter", "global"]


def test_rows_of_a_granularity_that_is_not_loaded_are_shown_by_its_name() -> None:
    with only_the_packages_own():
        key = {"arch": "tiny-rn", "origin": "s", "n": 2, "collaborators": "a,b", "method": "ligand"}
        values = {"alignment": "sup", "task": "a", "merging_accuracy": 60.0, "ensembling_accuracy": 61.0}
        frame = schema.frame(
            [{**key, **values, "granularity": name} for name in ("bygone", "task", "global")]
        )
        text = console.text(frame)
        assert [name for name in text.split() if name in ("task*", "global", "bygone")] == [
            "task*", "global", "bygone"
        ]  # fmt: skip
        assert "bygone" in html.render({"x": frame}, {})
        shown = plots.gaps(frame).axes[0].get_yticklabels()
        assert [t.get_text() for t in shown] == ["task*", "global", "bygone"]


def test_the_rule_of_a_plugin_is_part_of_what_is_measured_by_it(plan: Any) -> None:
    def names(text: str) -> dict[str, str]:
        with only_the_packages_own():
            planned = plan(text, methods=("ligand",), evaluation=AT)
            return {e.common["granularity"]: e.job.artifact.fingerprint for e in planned}

    before, after = names(QUARTERS), names(QUARTERS.replace("0.5", "0.25"))
    assert {name for name in before if before[name] != after[name]} == {"quarter"}
    assert names(QUARTERS) == before


def test_what_a_granularity_costs_is_what_its_settings_say(
    plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_jobs, "forward_flops", lambda arch: 7.0)
    text = QUARTERS.replace("sample_images):", "sample_images, order_seeds):")
    costs = {e.common["granularity"]: e.job for e in plan(text, methods=("ligand",), evaluation=AT)}

    class Images:
        def passes(self, data: Artifact, split: str, flops: float, most: int | None = None) -> Cost:
            return Cost(flops * (most or 1000))

    sizes: Any = Images()
    assert costs["task"].cost(sizes) == Cost(2 * 7.0 * 1000)
    assert costs["quarter"].cost(sizes) == Cost(2 * 7.0 * 12 * AT.order_seeds)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (QUARTERS.replace('"quarter"', '"task"'), "both define the granularity 'task'"),
        (
            QUARTERS.replace("batch_size,", "batchsize,"),
            "setting of granularity 'quarter'.*Did you mean 'batch_size'",
        ),
    ],
    ids=["taken", "setting"],
)
def test_a_granularity_that_cannot_be_is_refused_where_it_is_declared(
    text: str, error: str, plan: Any
) -> None:
    with pytest.raises(InputError, match=error):
        plan(text, methods=("ligand",))
    assert GRANULARITIES["task"].meaning.startswith("one merged model for a task")


def test_every_granularity_of_the_package_has_a_rule() -> None:
    with only_the_packages_own():
        assert set(RULES) == set(OWN)
        assert {name: set(RULES[name].settings) for name in RULES} == {
            "task": set(),
            "global": set(),
            "sample": {"sample_images", "seed"},
            "batch-first": {"batch_size", "order_seeds"},
            "batch-mean": {"batch_size", "order_seeds"},
            "batch-first-mixed": {"batch_size", "order_seeds"},
            "batch-mean-mixed": {"batch_size", "order_seeds"},
        }
