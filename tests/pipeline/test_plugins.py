"""A task, an architecture and a merging method, each from one file outside the package."""

import inspect
import json
import linecache
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neulig_ray.errors import InputError
from neulig_ray.plugins import Plugin, load_plugins, read_plugins

TASK = '''
"""Warm or cold: which half of the colours an image is drawn from."""

import numpy as np

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks import Split, task


@task("tones", class_names=("warm", "cold"), templates=("a {} picture",), source="a test")
def tones(seed):
    splits = {}
    for name, count in (("train", 60), ("val", 30), ("test", 50)):
        rng = stable_generator("tones", seed, name)
        labels = rng.integers(0, 2, count)
        images = rng.integers(0, 80, (count, 16, 16, 3))
        images[np.arange(count), :, :, 2 * labels] += 150
        splits[name] = Split(images.astype(np.uint8), labels)
    return splits
'''

ARCH = '''
"""A transformer of one layer."""

from neulig_ray.models.archs import Arch, FinetuneRecipe, PretrainRecipe, register_arch

register_arch(
    Arch(
        name="one-layer",
        description="ViT of one layer",
        config={
            "embed_dim": 32,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
            "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        },
        finetune=FinetuneRecipe(epochs=1),
        pretrain=PretrainRecipe(steps=20, images=200),
    )
)
'''

METHOD = '''
"""One expert's parameters more than the others'."""

import torch

from neulig_ray.merging import streamed


def lambdas(n, *, first=0.5):
    return torch.tensor([first] + [(1 - first) / (n - 1)] * (n - 1))


@streamed("lean", paper="none", coefficients=lambdas)
def lean(tensors, *, first=0.5):
    """Lean on the first expert."""
    return sum(w * t for w, t in zip(lambdas(len(tensors), first=first), tensors))
'''

EXPERIMENT = '''
"""Everything from plugins."""

from neulig_ray.experiment.config import Experiment, Pretrain

experiment = Experiment(
    name="extended",
    archs=("one-layer",),
    tasks=("digits", "tones"),
    n=(2,),
    methods=("zeroshot", "expert", "average", "lean", "lean:first=1.0", "lean:first=0.25"),
    pretrain=Pretrain(tasks=("digits",)),
)
'''

FILES = {"my_task.py": TASK, "my_arch.py": ARCH, "my_method.py": METHOD}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    for name, text in {**FILES, "extended.py": EXPERIMENT}.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "what", "name"),
    [
        ("my_task.py", "task", "tones"),
        ("my_arch.py", "arch", "one-layer"),
        ("my_method.py", "method", "lean"),
    ],
)
def test_each_file_adds_its_own(
    folder: Path, start_command: Callable[..., Any], file: str, what: str, name: str
) -> None:
    command = start_command("ls", f"{what}s", "--json", "--plugins", folder / file)
    assert command.wait(120) == 0, command.output
    assert name in {row[what] for row in json.loads(command.output)}
    without = start_command("ls", f"{what}s", "--json")
    assert without.wait(120) == 0
    assert name not in {row[what] for row in json.loads(without.output)}


@pytest.fixture(scope="module")
def rows(folder: Path, start_command: Callable[..., Any]) -> pd.DataFrame:
    """The results of a run, on workers that have the plugins too."""
    plugins = [folder / name for name in FILES]
    command = start_command(
        "run", folder / "extended.py", "--storage", folder / "storage", "--plugins", *plugins, cwd=folder
    )
    assert command.wait(600) == 0, command.output
    return pd.read_parquet(folder / "storage/extended/results.parquet")


@pytest.mark.slow
class TestRun:
    def test_every_row_is_measured(self, rows: pd.DataFrame) -> None:
        assert set(rows["status"]) == {"ok"}
        assert set(rows["arch"]) == {"one-layer"}

    def test_the_task_has_rows(self, rows: pd.DataFrame) -> None:
        own = rows[rows.task == "tones"]
        assert set(own["method"]) == {"zeroshot", "expert", "average", "lean"}
        assert set(own["num_samples"]) == {50}

    def test_the_method_has_rows_for_each_setting(self, rows: pd.DataFrame) -> None:
        lean = rows[rows.method == "lean"]
        assert set(lean["options"]) == {"{}", '{"first":1.0}', '{"first":0.25}'}
        by_option = lean.set_index(["options", "task"])
        assert by_option["ensembling_accuracy"].notna().all(), "it has a prediction-level counterpart"

        def accuracies(options: str, task: str) -> tuple[float, float]:
            row = by_option.loc[options, task]
            return row["merging_accuracy"], row["ensembling_accuracy"]

        average = rows[rows.method == "average"].set_index("task")
        expert = rows[rows.method == "expert"].set_index("task")["merging_accuracy"]
        for task in ("digits", "tones"):
            same = average.loc[task, ["merging_accuracy", "ensembling_accuracy"]]
            assert accuracies("{}", task) == pytest.approx(tuple(same)), "0.5 of each is the average"
        assert accuracies('{"first":1.0}', "digits") == pytest.approx((expert["digits"], expert["digits"]))

    def test_the_arch_was_pretrained_and_fine_tuned(self, folder: Path, rows: pd.DataFrame) -> None:
        origin = json.loads(next((folder / "storage/artifacts/origin").glob("*/manifest.json")).read_text())
        assert origin["info"]["curve"][-1]["step"] == 20
        assert len(list((folder / "storage/artifacts/expert").glob("one-layer.*/manifest.json"))) == 2


# Reading and loading ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--plugins .*none\.py.*No such file"):
        read_plugins([str(tmp_path / "none.py")])


def test_a_plugin_travels_as_text_and_is_loaded_once() -> None:
    plugin = Plugin("count_me.py", "import os\nos.environ['COUNTED'] = os.environ.get('COUNTED', '') + 'x'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUNTED", "")
        load_plugins([plugin, plugin])
        load_plugins([plugin])
        import os

        assert os.environ["COUNTED"] == "x"


def test_the_modules_name_follows_the_text_not_the_folder() -> None:
    assert Plugin("a.py", "x = 1").module == Plugin("a.py", "x = 1").module
    assert Plugin("a.py", "x = 1").module != Plugin("a.py", "x = 2").module


def test_a_plugin_that_fails_can_be_mended() -> None:
    with pytest.raises(InputError, match=r"'bad\.py' does not import: ZeroDivisionError"):
        load_plugins([Plugin("bad.py", "1 / 0")])
    with pytest.raises(InputError):  # not taken for loaded
        load_plugins([Plugin("bad.py", "1 / 0")])


_FAILS = '''
"""Fails late."""

import dataclasses


@dataclasses.dataclass
class Setting:
    value: "int" = 3


def fail():
    raise ZeroDivisionError("on purpose")  # this very line
'''


def _loaded(text: str, name: str = "late.py") -> Any:
    plugin = Plugin(name, text)
    load_plugins([plugin])
    return sys.modules[plugin.module]


def test_a_plugin_leaves_no_folder_and_shows_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4"""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    module = _loaded(_FAILS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError) as caught:
        module.fail()
    linecache.checkcache()
    assert "# this very line" in "".join(traceback.format_exception(caught.value))
    assert "late.py" in "".join(traceback.format_exception(caught.value))
    assert inspect.getsource(module.fail).startswith("def fail():")
    assert "class Setting" in inspect.getsource(module.Setting)
    assert inspect.getsource(module) == _FAILS
    assert inspect.getdoc(module) == "Fails late."


def test_a_worker_that_is_killed_leaves_no_folder(tmp_path: Path) -> None:
    """A4: Ray ends workers so; what runs at a process's end does not run."""
    script = (
        "import os, signal; from neulig_ray.plugins import Plugin, load_plugins;"
        "load_plugins([Plugin('x.py', 'y = 1')]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff\xfe", "encoding"),
        (b"# coding: nowhere\nx = 1\n", "nowhere"),
        (b"x = 1\0", "does not import"),
        (b"x = (\n", "does not import"),
    ],
    ids=["F19-bytes", "encoding", "null", "syntax"],
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, data: bytes, told: str) -> None:
    file = tmp_path / "bad.py"
    file.write_bytes(data)
    with pytest.raises(InputError, match=told) as caught:
        load_plugins(read_plugins([str(file)]))
    assert "bad.py" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        'name = "é"\n'.encode(),
        b"\xef\xbb\xbf" + 'name = "é"\n'.encode(),
        '# coding: latin-1\nname = "é"\n'.encode("latin-1"),
        'name = "é"\r\n'.encode(),
    ],
    ids=["utf-8", "mark", "latin-1", "windows"],
)
def test_text_is_read_as_python_reads_it(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "names.py"
    file.write_bytes(data)
    (plugin,) = read_plugins([str(file)])
    load_plugins([plugin])
    assert sys.modules[plugin.module].name == "é"
