"""Models that were kept as files give the rows of models that are measured as they were made."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluations import inputs_of
from isolated import only_the_packages_own
from small_benches import make_vit, small_steps
from small_models import ARCH, KEYS, make_data, make_images, make_states, make_tower
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.evaluation import model_files
from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.correct_images import correct_bytes, without_bits
from neulig_ray.evaluation.forward import embed_with
from neulig_ray.evaluation.granularity import RULES
from neulig_ray.evaluation.images import TaskImages
from neulig_ray.evaluation.ligand_rows import evaluate_gated, task_weights
from neulig_ray.evaluation.method_models import ChosenModels, MethodModels, Tuning, make_models
from neulig_ray.evaluation.method_rows import method_rows
from neulig_ray.evaluation.model_files import INDEX, ModelOptions, ServedModel, served_models
from neulig_ray.evaluation.predictions import Betas
from neulig_ray.evaluation.rows import Row
from neulig_ray.ligand.data import LigandData, task_of
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging import METHODS, MergedModels, MergeInputs, routed
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.trained import TrainedMethod
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models import tower_files
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.tower_files import read_tower, spec_of, tower_spec
from neulig_ray.stages import merged_models
from neulig_ray.stages.merged_models import read_model, read_model_betas
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.sources import State, StateSource

TASKS = tuple(map(task_of, KEYS))
KINDS: Mapping[str, Callable[[], nn.Module]] = {"cnn": lambda: make_tower(8), "vit": lambda: make_vit(8)}
MODEL = Artifact.of("model", "kept", 1, {})


def seen(tower: nn.Module, states: Mapping[str, State], split: str) -> LigandData:
    """What the towers see in a split, with its labels and heads."""
    data = make_data(split, make_states())
    found = {
        (key, task): embed_with(tower, state, images, ARCH).numpy()
        for key, state in states.items()
        for task, images in make_images(split).items()
    }
    return replace(data, embeddings=found)


class Bench:
    """Three experts near a base, of a tower with BatchNorm or without."""

    def __init__(self, kind: str) -> None:
        self.kind, self.tower = kind, KINDS[kind]()
        base = {name: tensor.clone() for name, tensor in self.tower.state_dict().items()}
        states = {key: small_steps(base, seed) for seed, key in enumerate(KEYS, 1)}
        self.stack = ExpertStack.from_states(states)
        looking = {**states, "seed-0": base}
        self.val, self.test = (self.context(split, looking) for split in ("val", "test"))
        images = {k: TaskImages(make_images("val")[task_of(k)], ARCH, torch.device("cpu")) for k in KEYS}
        heads = {key: self.val.data.head(key) for key in KEYS}
        self.inputs = inputs_of(KEYS, self.stack, self.tower, base, images=images, heads=heads)
        self.unlabelled = make_images("train") if self.stack.has_batchnorm else {}

    def context(self, split: str, looking: Mapping[str, State]) -> EvaluationContext:
        data = seen(self.tower, looking, split)
        return EvaluationContext(KEYS, self.stack, self.tower, ARCH, data, make_images(split))

    def make(
        self, method: MergingMethod, options: Mapping[str, Any], grid: Mapping[str, tuple[Any, ...]]
    ) -> MethodModels:
        inputs = self.inputs
        if method.kind == "measured":
            found = [self.measured(method, key, options) for key in KEYS]
            inputs = replace(inputs, statistics=found)
        tuning = Tuning(grid, self.val, 20)
        return make_models(
            method, inputs, ARCH, options=options, unlabelled=self.unlabelled, tuning=tuning, batch_size=16
        )

    def measured(self, method: Any, key: str, options: Mapping[str, Any]) -> StateSource:
        tower = KINDS[self.kind]()
        tower.load_state_dict(dict(self.stack.state(key)))
        given = {"examples": 8, "seed": 0}
        return StateSource(
            method.call(
                method.measure,
                tower.eval(),
                self.inputs.images[key],
                self.inputs.heads[key],
                options={**method.resolve(options), **given},
            )
        )


@pytest.fixture(scope="module")
def benches() -> dict[str, Bench]:
    return {kind: Bench(kind) for kind in KINDS}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Files are read as those of the small tower of a kind."""

    def read_as(kind: str) -> None:
        monkeypatch.setattr(model_files, "ARCHS", {ARCH.name: ARCH})
        monkeypatch.setattr(model_files, "build_tower", lambda _: KINDS[kind]())
        monkeypatch.setattr(tower_files, "tower_spec", lambda _: spec_of(KINDS[kind]()))

    return read_as


def keep(
    storage: Storage, method: str, made: MethodModels, options: Mapping[str, Any] | None = None
) -> Artifact:
    """The artifact of the models, as their job commits it."""
    about = ModelOptions(ARCH.name, method, options or {}, KEYS)
    storage.commit(MODEL, model_files.model_files(about, served_models(made), made.selected), {})
    return MODEL


def made_of(*models: Any, buffers: str = "average") -> MethodModels:
    """A model for each of the first tasks."""
    merged = {task: MergedModels({task: m}, "task", 5) for task, m in zip(TASKS, models, strict=False)}
    return MethodModels({buffers: {task: ChosenModels(m) for task, m in merged.items()}})


def model_of(made: MethodModels, task: str, buffers: str = "average") -> Any:
    return made.by_buffers[buffers][task].models.by_task[task]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


def told(rows: list[Row]) -> tuple[list[Row], bytes]:
    """Rows, and which images they have right, to be compared bit by bit."""
    plain, bits = without_bits(rows)
    return plain, correct_bytes(bits)


@pytest.mark.parametrize(
    ("kind", "method", "options", "grid"),
    [
        ("cnn", "average", {}, {}),
        ("cnn", "task-arithmetic", {}, {"scaling": (0.1, 0.4, 0.9)}),
        ("vit", "task-arithmetic", {}, {"scaling": (0.1, 0.4, 0.9)}),
        ("cnn", "fisher", {}, {}),
        ("cnn", "adamerging", {"steps": 2, "batch_size": 4}, {}),
        ("cnn", "tall-mask", {}, {"mask_lambda": (0.2, 0.4, 0.6)}),
        ("vit", "wemoe", {"steps": 2, "batch_size": 4}, {}),
        ("vit", "wemoe", {"steps": 2, "batch_size": 4, "router_layers": 0, "routing": "batch"}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(map(str, value)),
)
def test_rows_are_those_of_models_measured_as_they_were_made(
    kind: str,
    method: str,
    options: dict[str, Any],
    grid: dict[str, Any],
    benches: dict[str, Bench],
    storage: Storage,
    small: Callable[[str], None],
) -> None:
    small(kind)
    bench, declared = benches[kind], METHODS[method]
    assert isinstance(declared, MergingMethod)
    made = bench.make(declared, options, grid)
    stored = read_model(storage, keep(storage, method, made, options))
    assert (stored.skipped, stored.kept) == ("", True)
    read = stored.models
    assert read.selected == made.selected
    assert {b: list(tasks) for b, tasks in read.by_buffers.items()} == {
        b: list(tasks) for b, tasks in made.by_buffers.items()
    }
    for buffers, by_task in made.by_buffers.items():
        for task, one in by_task.items():
            again = read.by_buffers[buffers][task]
            assert again.setting == one.setting
            assert again.models.granularity == one.models.granularity
            assert again.models.parameters == one.models.parameters
            models = one.models.by_task[task], again.models.by_task[task]
            before, after = (m.state_dict() if isinstance(m, nn.Module) else m for m in models)
            assert before.keys() == after.keys()
            assert all(same(before[name], after[name]) for name in before)
    given: dict[str, Any] = {"options": options, "origin": "seed-0", "batch_size": 16}
    expected = method_rows(declared, made, bench.test, **given)
    assert told(method_rows(declared, read, bench.test, **given)) == told(expected)
    assert len(expected) == len(KEYS) * (2 if kind == "cnn" else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["task", "global"])
def test_rows_of_a_ligand_are_those_of_models_merged_as_they_are_measured(
    kind: str, granularity: str, benches: dict[str, Bench], storage: Storage
) -> None:
    bench, method, rule = benches[kind], METHODS["ligand"], RULES[granularity].models
    assert isinstance(method, GatedMethod)
    assert rule is not None
    weight = torch.randn(1, len(KEYS), len(KEYS) * 6, generator=torch.Generator().manual_seed(1))
    portland = Portland([KEYS], weight, torch.zeros(1, len(KEYS)))
    gate = (method, portland, 0)
    betas = rule(Betas({}, task_weights(*gate, bench.val.data, {})))
    buffers = bench.test.buffers
    served = [ServedModel(beta, ((buffers, task),), granularity, 7) for task, beta in betas.items()]
    about = ModelOptions(ARCH.name, "ligand", {}, KEYS)
    storage.commit(MODEL, model_files.model_files(about, served), {})
    assert storage.manifest(MODEL)["files"].keys() == {INDEX}
    with pytest.raises(InputError, match="keeps mixtures of its experts as betas: give the experts"):
        read_model(storage, MODEL)
    by_task = read_model(storage, MODEL, bench.stack).models.by_buffers[buffers]
    assert {(one.models.granularity, one.models.parameters) for one in by_task.values()} == {(granularity, 7)}
    distinct = {id(one.models.by_task[task]) for task, one in by_task.items()}
    assert len(distinct) == (1 if granularity == "global" else len(TASKS))
    for task, beta in betas.items():
        mixed: Any = by_task[task].models.by_task[task]
        assert all(same(tensor, mixed[name]) for name, tensor in bench.stack.combine(beta).items())
    others = dict.fromkeys(TASKS, torch.tensor([0.0, 0.0, 1.0]))
    once, twice, another = (
        told(evaluate_gated(*gate, bench.test, bench.val.data, granularities=[granularity], made=made))
        for made in (None, read_model_betas(storage, MODEL), others)
    )
    assert once == twice
    assert once != another, "else nothing says that the stored betas are used"


def test_a_training_serves_both_rules_for_buffers(benches: dict[str, Bench]) -> None:
    calls = []

    def train(inputs: MergeInputs) -> State:
        calls.append(inputs.tasks)
        return inputs.experts[KEYS[1]]

    method = TrainedMethod("mine", train, needs=("unlabelled images",))
    made = benches["cnn"].make(method, {}, {})
    assert {buffers: tuple(tasks) for buffers, tasks in made.by_buffers.items()} == {
        "average": TASKS, "re-estimated": TASKS
    }  # fmt: skip
    averaged, anew = (model_of(made, "a", buffers) for buffers in made.by_buffers)
    assert not same(averaged["bn.running_mean"], anew["bn.running_mean"])
    assert same(averaged["proj.weight"], anew["proj.weight"])
    assert calls == [TASKS]
    assert method.slow


def test_a_shared_model_is_one_file_and_one_model_again(
    storage: Storage, small: Callable[[str], None]
) -> None:
    small("cnn")
    first, other = make_tower(1).state_dict(), make_tower(2).state_dict()
    artifact = keep(storage, "average", made_of(first, first, other))
    files = {INDEX, "model-0.safetensors", "model-1.safetensors"}
    assert storage.manifest(artifact)["files"].keys() == files
    index = storage.load_json(artifact, INDEX)
    assert [(entry["task"], entry["file"]) for entry in index["served"]] == [
        ("a", "model-0.safetensors"), ("b", "model-0.safetensors"), ("c", "model-1.safetensors")
    ]  # fmt: skip
    assert index["combination"] == list(KEYS)
    read = read_model(storage, artifact).models
    assert model_of(read, "a") is model_of(read, "b")
    assert model_of(read, "a") is not model_of(read, "c")


def test_a_state_is_a_file_of_a_tower() -> None:
    state = {n: torch.full(shape, 2).to(dtype) for n, (shape, dtype) in tower_spec(ARCHS["tiny-rn"]).items()}
    about = ModelOptions("tiny-rn", "average", {"weights": (0.5, 0.5)}, KEYS)
    files = dict(model_files.model_files(about, served_models(made_of(state, state, state))))
    read, header = read_tower(files["model-0.safetensors"])
    assert all(same(tensor, state[name]) for name, tensor in read.items())
    assert header["method"] == "average"
    assert header["options"] == {"weights": [0.5, 0.5]}
    assert header["collaborators"] == list(KEYS)


class Scaled(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.factor = trunk, nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.factor * self.trunk(images)
        return found


def scaled(inputs: MergeInputs, *, steps: int = 3) -> nn.Module:
    """As many steps of training as told, each of which doubles what the module gives."""
    model = Scaled(make_tower(steps)).eval()
    with torch.no_grad():
        model.factor.fill_(2.0**steps)
    return model


def test_a_plugins_module_is_made_without_its_work_and_given_its_tensors(
    benches: dict[str, Bench], storage: Storage, small: Callable[[str], None]
) -> None:
    small("cnn")
    with only_the_packages_own():
        method = routed("scaled", paper="none", needs=(), untrained={"steps": 0})(scaled)
        assert method.rebuilds
        made = benches["cnn"].make(method, {}, {})
        found = model_of(read_model(storage, keep(storage, "scaled", made)).models, "a")
    pixels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(found.factor) == 8
    assert same(found(pixels), model_of(made, "a")(pixels))
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_modules_come_back_to_the_jobs_device(
    storage: Storage, small: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small("cnn")
    monkeypatch.setattr(merged_models, "device", lambda: torch.device("meta"))
    with only_the_packages_own():
        routed("scaled", paper="none", needs=(), untrained={"steps": 0})(scaled)
        module = Scaled(make_tower(0))
        found = model_of(read_model(storage, keep(storage, "scaled", made_of(module))).models, "a")
    assert all(parameter.is_meta for parameter in found.parameters())


def test_a_module_of_another_form_than_its_method_makes_is_refused(
    storage: Storage, small: Callable[[str], None]
) -> None:
    small("cnn")
    with only_the_packages_own():
        routed("scaled", paper="none", needs=(), untrained={"steps": 0})(scaled)
        artifact = keep(storage, "scaled", made_of(nn.Linear(2, 2)))
        with pytest.raises(InputError, match="not the module that scaled makes"):
            read_model(storage, artifact)


def test_modules_that_nothing_rebuilds_are_not_kept(storage: Storage) -> None:
    about = ModelOptions(ARCH.name, "adamerging", {}, KEYS)
    storage.commit(MODEL, model_files.unkept_files(about), {})
    stored = read_model(storage, MODEL)
    assert (stored.kept, stored.skipped, stored.models.by_buffers) == (False, "", {})


def test_numbers_that_are_not_finite_are_refused_by_name(
    storage: Storage, small: Callable[[str], None]
) -> None:
    small("cnn")
    state = make_tower(1).state_dict()
    state["proj.bias"] = torch.full_like(state["proj.bias"], float("nan"))
    with pytest.raises(ValueError, match=r"NaN or infinite values are not stored: proj\.bias"):
        keep(storage, "average", made_of(state))
    assert not storage.exists(MODEL)


def test_a_method_that_makes_nothing_says_why(storage: Storage) -> None:
    about = ModelOptions(ARCH.name, "wemoe", {"steps": 3}, KEYS)
    storage.commit(MODEL, model_files.skipped_files(about, "not for CNNs"), {})
    stored = read_model(storage, MODEL)
    assert (stored.skipped, stored.about) == ("not for CNNs", about)
    assert stored.models.by_buffers == {}


def files_of_one_model() -> dict[str, bytes]:
    about = ModelOptions(ARCH.name, "average", {}, KEYS)
    state = make_tower(1).state_dict()
    return dict(model_files.model_files(about, served_models(made_of(state, state, state))))


def with_index(**changes: Any) -> dict[str, bytes]:
    files = files_of_one_model()
    index = {**json.loads(files[INDEX]), **changes}
    index = {name: value for name, value in index.items() if value is not None}
    return {**files, INDEX: json.dumps(index).encode()}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": 2}, r"model kept is of format 2; this version reads 1: update neulig-ray"),
        ({"format": None}, "lacks or misstates 'format': make it again"),
        ({"served": None}, "lacks or misstates 'served': make it again"),
        ({"served": [{"task": "a", "file": "model-0.safetensors"}]}, "lacks or misstates"),
        ({"served": 3}, "lacks or misstates"),
    ],
    ids=["newer", "no format", "nothing served", "half served", "a number"],
)
def test_an_index_that_does_not_say_what_it_should_is_refused(
    changes: dict[str, Any], error: str, storage: Storage, small: Callable[[str], None]
) -> None:
    small("cnn")
    storage.commit(MODEL, with_index(**changes), {})
    with pytest.raises(InputError, match=error):
        read_model(storage, MODEL)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\x00" * 40])
def test_an_index_that_is_no_index_is_refused(content: bytes, storage: Storage) -> None:
    storage.commit(MODEL, {INDEX: content}, {})
    with pytest.raises(InputError, match=r"model kept: model\.json"):
        read_model(storage, MODEL)


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: b"", lambda d: b"\x80\x02" + d])
def test_a_damaged_model_is_refused_by_name(
    damage: Callable[[bytes], bytes], storage: Storage, small: Callable[[str], None]
) -> None:
    small("cnn")
    files = files_of_one_model()
    name = "model-0.safetensors"
    storage.commit(MODEL, {**files, name: damage(files[name])}, {})
    with pytest.raises(InputError, match=r"model kept: model-0\.safetensors"):
        read_model(storage, MODEL)


@pytest.mark.parametrize(
    ("known", "error"),
    [
        ({ARCH.name: replace(ARCH, name="other-test")}, "arch is 'small-test', but 'other-test' is asked"),
        (ARCHS, "unknown arch 'small-test'"),
    ],
    ids=["other", "unknown"],
)
def test_a_model_of_another_arch_is_refused(
    known: Mapping[str, Any],
    error: str,
    storage: Storage,
    small: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small("cnn")
    storage.commit(MODEL, files_of_one_model(), {})
    monkeypatch.setattr(model_files, "ARCHS", known)
    with pytest.raises(InputError, match=error):
        read_model(storage, MODEL)
