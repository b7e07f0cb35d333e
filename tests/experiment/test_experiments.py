"""Experiment files: each passes `--dry-run`, what that counts, variants, origins of one arch."""

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from image_folders import folder
from rich.console import Console

from neulig_ray.cli import main
from neulig_ray.cli.experiments import choose, load_file
from neulig_ray.cluster.cost import TRAINING_PASSES
from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError
from neulig_ray.experiment.combinations import groups, origins_of
from neulig_ray.experiment.config import Cluster, Evaluation, Experiment, Finetune, Search
from neulig_ray.models.work import forward_flops
from neulig_ray.pipeline.capabilities import declared
from neulig_ray.pipeline.costs import estimate
from neulig_ray.pipeline.missing_inputs import absent
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.pipeline.stages import STAGES
from neulig_ray.stages.experts import tower_size
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS
from neulig_ray.tasks._base import Files
from neulig_ray.tasks._names import Names
from neulig_ray.tasks.reading.files import file_task, register
from neulig_ray.tasks.reading.pictures import Pictures
from neulig_ray.tasks.reading.protocols import split_sizes

FILES = sorted((REPOSITORY / "experiments").glob("*.py"))
COMMANDS = [(file, ()) for file in FILES] + [
    (file, (f"--{name}",)) for file in FILES for name in load_file(str(file)).variants
]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no Ray, no data and no cached models."""
    from neulig_ray.cluster.session import ClusterSession

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a dry run asked the network, or started Ray")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(ClusterSession, "start", refuse)
    monkeypatch.setenv("NEULIG_DATA", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("file", "flags"), COMMANDS, ids=["".join((file.stem, *flags)) for file, flags in COMMANDS]
)
def test_every_experiment_passes_a_dry_run(
    file: Path, flags: tuple[str, ...], alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(file), *flags, "--dry-run", "--storage", str(tmp_path / "storage")]) == 0
    text = capsys.readouterr().out
    for words in ("evaluations", "GPU hours", "CPU core hours", "to store", "Hours assume", "missing"):
        assert words in text
    assert not (tmp_path / "storage").exists()
    assert not (tmp_path / "data").exists()


def test_what_is_missing_is_named_with_its_remedy(
    alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dry-run", "--storage", str(tmp_path / "storage"), "--tasks", "mnist", "resisc45", "--n", "2"]
    assert main(["run", str(REPOSITORY / "experiments/fusionbench_8.py"), *flags]) == 0
    text = capsys.readouterr().out
    assert "data of mnist (11.4 MiB): downloaded by torchvision, or placed: MNIST/raw/" in text
    assert f"tanganke/resisc45), or placed in {tmp_path}/data/resisc45" in text
    assert "expert ViT-B-32-quickgelu.mnist@openai: neulig import SOURCE --arch ViT-B-32-quickgelu" in text
    assert "origin ViT-B-32-quickgelu/openai (577.1 MiB)" in text


def test_placed_data_is_not_missing(alone: None, tmp_path: Path) -> None:
    e = Experiment(name="x", archs=("tiny-vit",), tasks=("mnist", "eurosat"), n=(2,))
    plan, storage = make_plan(e), Storage(str(tmp_path / "storage"))
    assert {thing.what for thing in absent(plan, storage)} == {"data of mnist", "data of eurosat"}
    (tmp_path / "data/MNIST/raw").mkdir(parents=True)
    (tmp_path / "data/huggingface/tanganke___eurosat").mkdir(parents=True)
    assert absent(plan, storage) == []


@pytest.mark.parametrize("there", [True, False])
def test_the_data_of_a_plugins_own_reader(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Only the reader knows: it is asked, and what it says is told, instead of a guess at torchvision."""

    def read(root: Path, download: bool) -> dict[str, Pictures]:
        if not there:
            raise InputError("place tables/ there")
        return {}

    monkeypatch.setattr(TASKS, "_items", dict(TASKS._items))
    monkeypatch.setattr(TASKS, "_modules", dict(TASKS._modules))
    files = Files(read=read, names=Names(("a", "b"), ("a", "b")))
    register(file_task("tables", files, templates=("{}",), source="a plugin"), "plugin")
    plan = make_plan(Experiment(name="x", archs=("tiny-vit",), tasks=("digits", "tables"), n=(2,)))
    found = [(thing.what, thing.remedy) for thing in absent(plan, Storage(str(tmp_path / "storage")))]
    assert found == ([] if there else [("data of tables", "place tables/ there")])


HERE = ("data of x: folder", "3 classes, images: train 21, val 3, test 6")
FEW = ("class 'cat'", "has 1 image", "at least 3")


@pytest.mark.parametrize(
    ("flags", "images", "status", "words"),
    [
        pytest.param(["--dry-run"], 10, 0, HERE, id="F30"),
        pytest.param(["--dry-run"], 1, 2, FEW, id="F14-dry-run"),
        pytest.param([], 1, 2, FEW, id="F14"),
    ],
)
def test_a_folder_is_looked_through_before_anything_starts(
    alone: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    images: int,
    status: int,
    words: tuple[str, ...],
) -> None:
    path = folder(tmp_path / "[bold]f[/x]", **{"": images})
    arguments = [
        *flags,
        "--storage",
        str(tmp_path / "s"),
        "--tasks",
        "digits",
        f"x=folder:{path}",
        "--n",
        "2",
    ]
    assert main(["run", str(REPOSITORY / "experiments/smallest.py"), *arguments]) == status
    told = "".join(capsys.readouterr())
    for word in words:
        assert word in told
    assert "torchvision" not in told
    assert not (tmp_path / "s").exists()


def test_a_missing_package_is_named(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    e = Experiment(name="x", archs=("tiny-vit",), tasks=("pcam", "eurosat"), n=(2,))
    found = {t.what: t for t in absent(make_plan(e), Storage(str(tmp_path)))}
    assert found["package datasets, for eurosat"].remedy == "pip install 'neulig-ray[hf]'"
    assert found["package h5py, for pcam"].by_hand
    assert found["data of pcam"].bytes == 7_700_000_000


# What it costs ---------------------------------------------------------------------------------------------

COUNTED = Experiment(
    name="counted",
    archs=("tiny-vit",),
    tasks=("cifar10", "mnist"),
    n=(2,),
    methods=("average", "task-arithmetic", "ligand", "adamerging:steps=7,batch_size=3"),
    alignment=("sup",),
    finetune=Finetune(epochs=4),
    search=Search(trials=3, val_images=50),
    evaluation=Evaluation(
        granularities=("sample", "task", "batch-first-mixed"), sample_images=20, order_seeds=2
    ),
)


def test_work_and_bytes_by_hand(tmp_path: Path) -> None:
    costs = {name: found.cost for name, found in estimate(make_plan(COUNTED), Storage(str(tmp_path))).items()}
    one = forward_flops("tiny-vit")
    train, val, test = 45000 + 55000, 5000 + 5000, 10000 + 10000
    assert costs["experts"].flops == pytest.approx(TRAINING_PASSES * 4 * train * one)
    assert costs["experts"].bytes == 2 * tower_size("tiny-vit")
    everything = 3 * (train + val + test)  # two experts and the origin look at both tasks
    assert costs["embeddings"].flops == pytest.approx(everything * one)
    assert costs["embeddings"].bytes == 4 * 128 * everything
    assert costs["search"].flops == pytest.approx(3 * 2 * 50 * one)
    average, tuned, ligand, adapted = test, test, 2 * 20 + test + 2 * test, test
    assert costs["evaluations"].flops == pytest.approx((average + tuned + ligand + adapted) * one)
    tuning, adaptation = 10 * 2 * 50, TRAINING_PASSES * 7 * 3 * 2
    assert costs["models"].flops == pytest.approx((tuning + adaptation) * one)
    assert costs["models"].bytes == 2 * tower_size("tiny-vit")
    assert costs["tasks"].bytes == 3 * (60000 * 32 * 32 + 70000 * 28 * 28)
    assert not any(cost.unknown for cost in costs.values())


@pytest.mark.parametrize(
    ("gpus", "of_evaluations", "on_gpu"),
    [
        (1.0, None, {"experts", "embeddings", "models", "evaluations"}),
        (1.0, 0.25, {"experts", "embeddings", "models", "evaluations"}),
        (1.0, 0.0, {"experts", "embeddings"}),
        (0.0, 1.0, {"models", "evaluations"}),
        (0.0, None, set()),
    ],
)
def test_all_but_the_search_uses_a_gpu_where_it_is_given_one(
    gpus: float, of_evaluations: float | None, on_gpu: set[str], tmp_path: Path
) -> None:
    cluster = Cluster(gpus_per_worker=gpus, gpus_per_evaluation=of_evaluations)
    plan = make_plan(dataclasses.replace(COUNTED, cluster=cluster))
    costs = estimate(plan, Storage(str(tmp_path)))
    counted = {stage: found for stage, found in costs.items() if found.cost.flops}
    assert {stage for stage, cost in counted.items() if cost.gpu} == on_gpu
    for stage, cost in counted.items():
        rate = 5e10 if stage not in on_gpu else 6e13 if stage == "experts" else 1.2e13
        assert cost.hours == pytest.approx(cost.cost.flops / rate / 3600)
    context = RunContext(Storage(str(tmp_path)), ClusterSession(None, ()), Reporter(Console()))
    for stage in STAGES:
        if stage.name in counted:
            gpus = Pipeline(plan, context).takes(stage)[1].gpus
            assert (gpus > 0) == bool(counted[stage.name].gpu), stage


def test_drawn_tasks_are_said_to_be_unknown(tmp_path: Path) -> None:
    e = dataclasses.replace(COUNTED, tasks=("digits", "mnist"))
    assert estimate(make_plan(e), Storage(str(tmp_path)))["experts"].cost.unknown == 1


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("gtsrb", (7005, 12630, 7005)),
        ("mnist", (25000, 10000, 25000)),
        ("resisc45", (6300, 6300, 6300)),
        ("svhn", (23612, 26032, 23613)),
        ("stl10", (1700, 1600, 1700)),
        ("cifar100", (20000, 10000, 20000)),
    ],
)
def test_the_papers_splits_are_counted_as_they_are_cut(task: str, sizes: tuple[int, int, int]) -> None:
    assert split_sizes(TASKS[task], "paper") == dict(zip(("train", "val", "test"), sizes, strict=True))
    assert split_sizes(TASKS[task], "paper", 3)["test"] == 3 * sizes[2]  # type: ignore[index]


# Variants of a file, origins of one arch --------------------------------------------------------------------


def test_a_variant_is_chosen_by_its_flag(in_repository: None) -> None:
    file = load_file("paper_table2")
    pairs, rest = choose(file.experiment, file.variants, ["--seed", "3", "--pairs"])
    assert (pairs.name, pairs.n, rest) == ("paper_figure3", (2,), ["--seed", "3"])
    assert sum(len(group.combinations) for group in groups(pairs)) == 2 * 10
    assert choose(file.experiment, file.variants, ["--n", "2"]) == (file.experiment, ["--n", "2"])
    with pytest.raises(InputError, match="--a and --b are two variants"):
        choose(pairs, {"a": pairs, "b": pairs}, ["--a", "--b"])


def test_help_names_the_variants(in_repository: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["run", "paper_table2", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--pairs: the experiment 'paper_figure3' instead" in text


@pytest.mark.parametrize(
    ("variants", "words"),
    [("{'seed': experiment}", "has the name of a field"), ("{'a': 3}", "`variants` is not of the form")],
)
def test_variants_that_are_none_are_refused(variants: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from neulig_ray.experiment.config import Experiment\n"
        f"experiment = Experiment(name='mine')\nvariants = {variants}\n"
    )
    with pytest.raises(InputError, match=words):
        load_file(str(file))


def test_an_origin_may_be_of_one_arch_alone() -> None:
    e = Experiment(
        name="x",
        archs=("ViT-B-32-quickgelu", "RN50-quickgelu", "tiny-vit"),
        origins=(
            "ViT-B-32-quickgelu:openai",
            "RN50-quickgelu:other=hf-hub:a/b",
            "RN50-quickgelu:yfcc15m",
            "seed-0",
        ),
        n=(2,),
        mixed_origins=(2,),
    )
    assert origins_of(e, "ViT-B-32-quickgelu") == ["openai", "seed-0"]
    assert origins_of(e, "RN50-quickgelu") == ["other=hf-hub:a/b", "yfcc15m", "seed-0"]
    mixed = [group.origin for group in groups(e) if "+" in group.origin]
    assert mixed == ["openai+seed-0", "other+yfcc15m+seed-0"]  # none of tiny-vit: it has one origin
    with pytest.raises(InputError, match=r"arch 'tiny-rn' has no origin.*tiny-rn:openai"):
        origins_of(dataclasses.replace(e, origins=e.origins[:3]), "tiny-rn")
    with pytest.raises(InputError, match="two of them are called 'seed-0'"):
        origins_of(dataclasses.replace(e, origins=("seed-0", "tiny-vit:seed-0")), "tiny-vit")


# What methods declare ---------------------------------------------------------------------------------------


def test_what_methods_and_archs_declare(in_repository: None) -> None:
    found = declared(load_file("paper_table2").experiment)
    assert found["archs"] == {"RN50-quickgelu": "CNN", "ViT-B-32-quickgelu": "ViT"}
    methods = found["methods"]
    assert not {"expert", "zeroshot", "ensemble-vote"} & methods.keys()
    ticks: Callable[[str], list[bool]] = lambda name: [  # noqa: E731
        bool(methods[name][column]) for column in ("ViT", "CNN", "diverse origins", "ensembling", "theory")
    ]
    assert ticks("ligand") == [True, True, True, True, True]
    assert ticks("average") == [True, True, True, True, False]
    assert ticks("task-arithmetic") == [True, True, False, True, False]
    assert ticks("wemoe") == [True, False, False, False, False]
    assert ticks("regmean") == [True, True, True, False, False]
