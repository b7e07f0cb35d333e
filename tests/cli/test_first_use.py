"""What a newcomer meets first: a typing error is told at once and briefly, and a finished run is cheap."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
from conftest import REPOSITORY

from neulig_ray import paths
from neulig_ray.errors import InputError, unknown
from neulig_ray.experiment.config import Experiment
from neulig_ray.merging import METHODS
from neulig_ray.models.archs import _open_clip
from neulig_ray.models.clip import MEAN, STD
from neulig_ray.pipeline.names import declared_methods
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.tasks import TASKS

SHIPPED = {file.stem for file in (REPOSITORY / "experiments").glob("*.py")}
HEAVY = {"torch", "torchvision", "open_clip", "ray", "mlflow", "transformers", "pandas", "matplotlib"}
Neulig = Callable[..., tuple[int, str, str]]
_SCRIPT = """\
import sys
from neulig_ray.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:  # argparse and tyro
    status = ended.code
print("IMPORTED", *sys.modules)
sys.exit(status)
"""


def alone(*arguments: object, cwd: Path = REPOSITORY) -> tuple[int, str, set[str]]:
    """`neulig ARGUMENTS` in a process of its own: exit status, what it printed, what it imported."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"},
    )  # fmt: skip
    out, _, imported = done.stdout.rpartition("IMPORTED ")
    return done.returncode, out + done.stderr, set(imported.split())


# Refused before anything heavy is imported ------------------------------------------------------------------

REFUSED = {
    "command": (["rnu", "smallest"], "'run'"),
    "experiment": (["run", "smalest"], "smallest"),
    "experiment-of-report": (["report", "smallest", "quikstart"], "quickstart"),
    "experiment-path": (["search", "experiments/smalest.py"], "smallest"),
    "arch": (["run", "smallest", "--archs", "tiny-vt"], "'tiny-vit'"),
    "arch-of-open-clip": (["finetune", "smallest", "--archs", "ViT-B-23"], "'ViT-B-32'"),
    "arch-of-unknown-tower": (["run", "smallest", "--archs", "convnext_base"], "timm's convnext_base"),
    "arch-of-import": (
        ["import", "x.pt", "--arch", "tiny-vt", "--task", "digits", "--origin", "openai", "--storage", "s"],
        "'tiny-vit'",
    ),
    "task": (["run", "smallest", "--tasks", "digist", "textures"], "'digits'"),
    "task-of-pretraining": (["pretrain", "smallest", "--pretrain.tasks", "digts"], "'digits'"),
    "task-of-report": (["report", "smallest", "--tasks", "digist", "textures"], "'digits'"),
    "method": (["run", "smallest", "--methods", "avrage"], "'average'"),
    "method-with-options": (["evaluate", "smallest", "--methods", "teis:density=0.1"], "'ties'"),
    "published": (["run", "smallest", "--published", "neulig_table3"], "neulig_table2"),
    "field": (["run", "smallest", "--ligand.epoch", "3"], "--ligand.epochs"),
    "field-without-group": (["run", "smallest", "--epochs", "3"], "--finetune.epochs"),
    "flag": (["run", "smallest", "--strage", "x"], "--storage"),
    "word": (["run", "smallest", "digits"], "'digits'"),
    "value-type": (["run", "smallest", "--ligand.epochs", "many"], "many"),
    "value-choice": (["run", "smallest", "--alignment", "supp"], "semi"),
    "value-range": (["run", "smallest", "--finetune.epochs", "0"], "greater than 0"),
    "value-count": (["run", "smallest", "--n", "9"], "number of tasks"),
    "value-empty": (["run", "smallest", "--methods", "hard-routing", "--alignment"], "alignment is empty"),
    "listing": (["ls", "archz"], "archs"),
}


@pytest.mark.parametrize(("arguments", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_a_typing_error_is_told_before_anything_heavy_is_imported(arguments: list[str], word: str) -> None:
    status, text, imported = alone(*arguments)
    assert status == 2, text
    assert word in " ".join(text.replace("│", " ").split())
    assert "Traceback" not in text
    assert not HEAVY & imported


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "smallest", "--methods", "average:scale=2"],
        ["run", "smallest", "--methods", "ties:densty=0.1"],
        ["merge", "avrage"],
    ],
    ids=" ".join,
)
def test_a_methods_schema_needs_torch_and_no_more(arguments: list[str]) -> None:
    status, text, imported = alone(*arguments)
    assert status == 2
    assert "unknown" in text
    assert not (HEAVY - {"torch", "pandas"}) & imported


@pytest.mark.parametrize("what", ["archs", "tasks", "experiments"])
def test_a_listing_needs_no_torch(what: str) -> None:
    status, text, imported = alone("ls", what)
    assert status == 0, text
    assert not HEAVY & imported


def test_an_experiments_own_file_refuses_as_early() -> None:
    script = "import runpy, sys; sys.argv[0] = sys.argv.pop(1)\n"
    script += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    script += "finally: print('IMPORTED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, "experiments/smallest.py", "--archs", "tiny-vt"],
        capture_output=True, text=True, timeout=60, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'tiny-vit'" in done.stderr
    assert not HEAVY & set(done.stdout.split())


PLUGIN = """\
from neulig_ray.tasks import task


@task("grey-tones", class_names=("light", "dark"), source="a test")
def load(seed): ...
"""


def test_plugins_are_loaded_before_names_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    flags = ["run", "smallest", "--plugins", tmp_path / "mine.py", "--storage", tmp_path / "s", "--tasks"]
    status, text, imported = alone(*flags, "grey-tone", "textures")
    assert status == 2
    assert "Did you mean 'grey-tones'?" in text
    assert not HEAVY & imported
    assert "n 3 is larger" in alone(*flags, "grey-tones", "textures", "--n", "3")[1], "the names are known"


def test_names_of_methods_are_read_off_their_files() -> None:
    assert declared_methods() == {name for name in METHODS if "plugin" not in METHODS.module(name)}


def test_open_clips_models_are_read_off_their_files() -> None:
    """Others than those, which tests may have added."""
    ours = {name for name in open_clip.list_models() if name not in _open_clip.names()}
    assert ours.isdisjoint(name for name in ("ViT-B-32", "RN50", "ViT-H-14-quickgelu", "convnext_base"))
    assert len(_open_clip.names()) > 100
    for name in _open_clip.names():
        assert _open_clip._configurations()[name] == open_clip.get_model_config(name), name
    assert MEAN == open_clip.OPENAI_DATASET_MEAN
    assert STD == open_clip.OPENAI_DATASET_STD


# Names are told before what is computed from them -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tasks": ("digist",)}, "unknown task 'digist'"),
        ({"tasks": ("digits", "textures,signs")}, "unknown task 'textures,signs'"),
        ({"archs": ("tiny-vt",)}, "unknown arch 'tiny-vt'"),
        ({"methods": ("avrage",)}, "unknown method 'avrage'"),
        ({"published": "neulig"}, "unknown published rows 'neulig'"),
    ],
    ids=["task", "tasks-in-one-word", "arch", "method", "published"],
)
def test_a_misspelt_name_is_told_before_counts_are_compared(changed: dict[str, object], words: str) -> None:
    counts = Experiment(name="x", tasks=("digits", "textures"), n=(9,), mixed_origins=(3,))
    e = dataclasses.replace(counts, **changed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        make_plan(e)


@pytest.mark.parametrize("methods", [("hard-routing",), ("average", "hard-routing"), ("ligand",)])
def test_a_table_without_a_ligand_row_is_not_made(methods: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"alignment is empty, but {methods[-1]} is among the methods"):
        make_plan(Experiment(name="x", methods=methods, alignment=()))


# At most ten lines ------------------------------------------------------------------------------------------

CROWDS = {
    "methods": ("avrage", list(METHODS), "average"),
    "open-clip": ("ViT-B-23", open_clip.list_models(), "ViT-B-32"),
    "thousands": ("expert:digits-40", [f"expert:digits-{i:04}" for i in range(5000)], "expert:digits-4"),
    "long-names": ("column", [f"column_{i}_" + "x" * 300 for i in range(40)], "column_"),
    "endless-name": ("digits" * 2000, list(TASKS), "digits"),
    "nothing-near": ("?", list(TASKS), "Known: "),
    "android": ("robt", ["robot", "android", *map(str, range(300))], "robot"),
}


@pytest.mark.parametrize(("name", "known", "near"), CROWDS.values(), ids=CROWDS.keys())
@pytest.mark.parametrize("columns", [80, 110])
def test_near_misses_fit_ten_lines(name: str, known: list[str], near: str, columns: int) -> None:
    text = f"error: {unknown('thing', name, known, '`neulig ls things` describes them.')}"
    assert -(-len(text) // columns) <= 10
    assert len(textwrap.wrap(text, columns)) <= 10
    assert near in text
    assert f" and {len(known) - 6} more. `neulig ls things`" in text


def test_few_names_are_all_told() -> None:
    assert str(unknown("arch", "tiny-vt", ["tiny-vit", "tiny-rn", "one"], near=["two"])) == (
        "unknown arch 'tiny-vt'. Did you mean 'tiny-vit' or 'tiny-rn'? Known: one, tiny-rn, tiny-vit."
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--images", "3", "--epochs", "3", "--learning-rate", "3", "--tas", "digits"],
        ["--methods", "adamergign"],
        ["--tasks", "emnist", "textures"],
        ["--archs", "RN50x5"],
    ],
    ids=lambda flags: flags[0],
)
def test_what_the_command_line_prints_fits_too(neulig: Neulig, in_repository: None, flags: list[str]) -> None:
    status, out, err = neulig("run", "smallest", *flags)
    assert status == 2
    assert out == ""
    assert len(textwrap.wrap(err, 80)) <= 10
    assert "Did you mean" in err


# Experiments from everywhere --------------------------------------------------------------------------------


def test_the_packages_experiments_run_from_any_folder(
    neulig: Neulig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = neulig("run", "quickstart", "--dry-run")
    assert status == 0
    assert "quickstart" in out
    rows = json.loads(neulig("ls", "experiments", "--json")[1])
    assert {row["from"] for row in rows} == {"the package"}
    assert {row["experiment"] for row in rows} == SHIPPED
    status, _, err = neulig("run", "quikstart")
    assert status == 2
    assert "no experiment 'quikstart'. Did you mean 'quickstart'" in err
    assert os.listdir(tmp_path) == []


def test_ones_own_experiment_goes_before_the_packages(
    neulig: Neulig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    text = "from neulig_ray.experiment.config import Experiment\n"
    text += "experiment = Experiment(name='own', tasks=('digits', 'signs'))\n"
    for stem in ("smallest", "mine"):
        (tmp_path / f"experiments/{stem}.py").write_text(text)
    assert "own" in neulig("run", "smallest", "--dry-run")[1]
    rows = {row["experiment"]: row for row in json.loads(neulig("ls", "experiments", "--json")[1])}
    assert rows["smallest"]["from"] == rows["mine"]["from"] == "./experiments"
    assert rows["smallest"]["tasks"] == "2"
    assert rows["quickstart"]["from"] == "the package"
    assert "mine" in neulig("run", "mien")[2]
    path = REPOSITORY / "experiments/smallest.py"
    assert "smallest" in neulig("run", path, "--dry-run")[1], "a path means that file"


def test_carried_experiments_are_no_part_of_the_codes_hash(tmp_path: Path) -> None:
    package = tmp_path / "neulig_ray"
    (package / "tasks/_shipped").mkdir(parents=True)
    for name in ("__init__.py", "version.py"):
        (package / name).write_bytes((REPOSITORY / "neulig_ray" / name).read_bytes())

    def version() -> str:
        script = "from neulig_ray.version import code_version; print(code_version())"
        return _run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(tmp_path))

    before = version()
    (package / "_shipped").mkdir()
    (package / "_shipped/quickstart.py").write_text("experiment = 1\n")
    assert version() == before != ""
    (package / "tasks/_shipped/deeper.py").write_text("code = 1\n")
    assert version() != before, "only the folder itself is left out"


def _run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_carries_the_experiments(tmp_path: Path) -> None:
    """In an environment of its own and an empty folder they are found, and the code is the same."""
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        if name.startswith(("neulig_ray/", "experiments/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", ".", cwd=source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    _run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]  # what it depends on
    (packages / "others.pth").write_text("\n".join(others))
    _run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, wheel, cwd=tmp_path)
    python, empty = tmp_path / "venv/bin/python", tmp_path / "empty"
    empty.mkdir()
    rows = json.loads(_run(python, "-m", "neulig_ray", "ls", "experiments", "--json", cwd=empty))
    assert {row["experiment"] for row in rows} == SHIPPED
    assert {row["from"] for row in rows} == {"the package"}
    assert "smallest" in _run(python, "-m", "neulig_ray", "run", "smallest", "--dry-run", cwd=empty)
    version = ("-c", "from neulig_ray.version import code_version; print(code_version().split()[-1])")
    assert _run(python, *version, cwd=empty) == _run(sys.executable, *version, cwd=REPOSITORY)
    assert os.listdir(empty) == []


# A finished run ---------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_finished_run_imports_neither_ray_nor_mlflow_nor_open_clip(
    smallest_storage: Path, tmp_path: Path
) -> None:
    """The same command again: it shows what there is. Its processor time is of benchmarks, not of tests."""
    status, text, imported = alone("run", "smallest", "--storage", smallest_storage)
    assert status == 0, text
    assert "0 of them written" in text
    assert (
        not {"ray", "mlflow", "open_clip", "torchvision", "transformers", "sqlalchemy", "triton"} & imported
    )


# A dry run leaves no trace ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_a_dry_run_does_not_leave_the_process_offline(
    neulig: Neulig, in_repository: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if before is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", before)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", before == "1")
    assert neulig("run", "smallest", "--dry-run", "--storage", tmp_path / "s")[0] == 0
    assert os.environ.get("HF_HUB_OFFLINE") == before
    assert (before == "1") == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("library", ["huggingface_hub.constants", "datasets.config"])
def test_libraries_that_are_imported_already_are_kept_offline_too(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip(library)
    monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    with paths.kept_offline():
        assert module.HF_HUB_OFFLINE
    assert not module.HF_HUB_OFFLINE
