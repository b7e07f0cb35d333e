"""The command line: what it refuses, with which words and exit status, and that refusing starts nothing."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

from neulig_ray.cli import main
from neulig_ray.models.origin_files import shipped

pytestmark = pytest.mark.usefixtures("in_repository")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def neulig(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: its exit status, and what it printed on both streams."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as ended:  # argparse and tyro
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return status, out + err

    return run


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that starts Ray all the same fails the test."""
    from neulig_ray.cluster.session import ClusterSession

    def start(self: ClusterSession) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ClusterSession, "start", start)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that nobody else gets and where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# What there is ---------------------------------------------------------------------------------------------


def test_no_command_shows_the_usage(neulig: Run) -> None:
    status, text = neulig()
    assert status == 2
    assert "usage: neulig COMMAND" in text
    assert neulig("--help") == (0, text)


def test_version(neulig: Run) -> None:
    import neulig_ray

    assert neulig("--version") == (0, f"{neulig_ray.__version__}\n")


@pytest.mark.parametrize(
    ("what", "column", "names"),
    [
        ("tasks", "task", {"digits", "letters", "signs", "shapes", "textures", "count", "mnist-5k"}),
        ("archs", "arch", {"tiny-rn", "tiny-vit"}),
        (
            "methods",
            "method",
            {
                "average",
                "expert",
                "zeroshot",
                "ligand",
                "hard-routing",
                *(f"ensemble-{kind}" for kind in ("embedding", "logit", "probability", "vote")),
            },
        ),
        ("experiments", "experiment", {"smallest", "pretrain_tiny"}),
    ],
)
def test_ls_tells_what_there_is(neulig: Run, what: str, column: str, names: set[str]) -> None:
    status, text = neulig("ls", what, "--json")
    assert status == 0
    rows = json.loads(text)
    assert names <= {row[column] for row in rows}
    status, text = neulig("ls", what)
    assert status == 0
    assert all(name in text for name in names)


def test_ls_shows_a_broken_experiment_as_broken(
    neulig: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/torn.py").write_text("1 +\n")
    monkeypatch.chdir(tmp_path)
    status, text = neulig("ls", "experiments", "--json")
    assert status == 0
    (row,) = [row for row in json.loads(text) if row["experiment"] == "torn"]
    assert row["from"] == "./experiments"
    assert "does not import: SyntaxError" in row["about"]


def test_a_dry_run_prints_the_plan_and_creates_nothing(
    neulig: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_ray: None
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text = neulig(
        "run", REPOSITORY / "experiments/smallest.py", "--dry-run", "--tasks", "digits", "signs"
    )
    assert status == 0
    stages = text.partition("GPU hours")[0].splitlines()
    plan = {line.split()[0]: line.split()[1:] for line in stages if line.strip()}
    assert plan["experts"][:3] == ["2", "0", "2"]
    assert plan["embeddings"][:3] == ["6", "0", "6"]
    assert plan["search"][:3] == ["6", "0", "6"]
    assert "tiny-rn seed-0 n=2: 1 combinations" in text
    assert str(tmp_path / "neulig-storage") in text
    assert os.listdir(tmp_path) == []


# What is refused: exit status 2, nothing was started --------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu", "smallest"], ["unknown command 'rnu'", "'run'", "neulig --help"]),
        (["run", "smalest"], ["no experiment 'smalest'", "smallest"]),
        (["run", "no/such/file.py"], ["no/such/file.py"]),
        (["run", "smallest", "--tasks", "digist", "textures"], ["unknown task 'digist'", "'digits'"]),
        (["run", "smallest", "--archs", "tiny-vt"], ["unknown arch 'tiny-vt'", "'tiny-vit'"]),
        (["run", "smallest", "--methods", "avrage"], ["unknown method 'avrage'", "'average'"]),
        (["run", "smallest", "--methods", "average:scale=2"], ["unknown option of average 'scale'"]),
        (["run", "smallest", "--origins", "sed-0"], ["unknown origin 'sed-0'", "seed-K"]),
        (["run", "smallest", "--ligand.epoch", "3"], ["--ligand.epochs"]),
        (["run", "smallest", "--ligand.epochs", "many"], ["epochs", "many"]),
        (["run", "smallest", "--alignment", "supp"], ["supp", "semi"]),
        (["run", "smallest", "--n", "3"], ["n 3 is larger than the number of tasks (2: digits, textures)"]),
        (["run", "smallest", "--tasks"], ["tasks is empty"]),
        (["run", "smallest", "--n"], ["n is empty"]),
        (["run", "smallest", "--finetune.epochs", "0"], ["finetune.epochs 0 must be greater than 0"]),
        (["run", "smallest", "--pretrain.tasks", "digts"], ["unknown task 'digts'", "'digits'"]),
        (["run", "smallest", "--plugins", "no/such.py"], ["--plugins 'no/such.py'", "No such file"]),
        (["run", "smallest", "--storage", "s3://bucket/x"], ["s3://bucket/x", "--tracking-uri http://"]),
        (["report", "smalest", "smallest"], ["no experiment 'smalest'"]),
        (["storage", "burn"], ["burn", "verify"]),
        (["ls", "task"], ["task", "archs"]),
        (["run"], ["usage"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0].islower() else "",
)
def test_unusable_input_is_refused(
    neulig: Run, no_ray: None, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    before = sorted(os.listdir(REPOSITORY))
    if arguments[0] == "run" and len(arguments) > 1 and "--storage" not in arguments:
        arguments = [*arguments[:2], "--storage", str(tmp_path / "s"), *arguments[2:]]
    status, text = neulig(*arguments)
    assert status == 2, text
    for word in words:
        assert word in " ".join(text.replace("│", " ").split()), text
    assert "Traceback" not in text
    assert not (tmp_path / "s").exists()
    assert sorted(os.listdir(REPOSITORY)) == before


@pytest.mark.parametrize("command", ["run", "finetune"])
def test_a_storage_that_cannot_be_written(neulig: Run, no_ray: None, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("in the way")
    status, text = neulig(command, "smallest", "--storage", tmp_path / "file/storage")
    assert status == 2
    assert f"{tmp_path}/file/storage" in text
    assert "cannot be written" in text


def test_a_tracking_server_that_does_not_answer(
    neulig: Run, no_ray: None, tmp_path: Path, closed_port: int
) -> None:
    uri = f"http://127.0.0.1:{closed_port}"
    started = time.monotonic()
    status, text = neulig("run", "smallest", "--storage", tmp_path / "s", "--tracking-uri", uri)
    assert time.monotonic() - started < 30
    assert status == 2
    assert uri in text
    assert not (tmp_path / "s/artifacts").exists()


def test_an_address_where_no_ray_answers(neulig: Run, tmp_path: Path, closed_port: int) -> None:
    started = time.monotonic()
    for address in (f"127.0.0.1:{closed_port}", f"ray://127.0.0.1:{closed_port}"):
        status, text = neulig("finetune", "smallest", "--storage", tmp_path / "s", "--address", address)
        assert status == 2
        assert f"--address '{address}': no Ray answers there" in text
        assert "HOST:PORT" in text
    assert time.monotonic() - started < 30
    assert not list((tmp_path / "s").glob("artifacts/task/*"))


def test_a_plugin_that_raises_is_named(neulig: Run, no_ray: None, tmp_path: Path) -> None:
    plugin = tmp_path / "broken_plugin.py"
    plugin.write_text("x = 1\nraise RuntimeError('no luck')\n")
    for arguments in (["run", "smallest", "--storage", tmp_path / "s"], ["ls", "tasks"]):
        status, text = neulig(*arguments, "--plugins", plugin)
        assert status == 2
        assert "'broken_plugin.py'" in text
        assert "RuntimeError: no luck" in text


def test_a_plugin_that_takes_a_name_is_named(neulig: Run, no_ray: None, tmp_path: Path) -> None:
    plugin = tmp_path / "twice.py"
    plugin.write_text(
        "from neulig_ray.tasks import task\n"
        "@task('digits', class_names=('a',), source='mine')\n"
        "def load(seed): ...\n"
    )
    status, text = neulig("ls", "tasks", "--plugins", plugin)
    assert status == 2
    assert "both define the task 'digits'" in text


def _without_a_tensor(data: bytes) -> bytes:
    from safetensors import safe_open
    from safetensors.torch import load, save

    tensors = load(data)
    tensors.pop(next(name for name in sorted(tensors) if name.startswith("visual.")))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert safe_open
    return save(tensors, header)


def _with_nan(data: bytes) -> bytes:
    from safetensors.torch import load, save

    tensors = load(data)
    next(t for n, t in sorted(tensors.items()) if n.startswith("visual.")).view(-1)[0] = float("nan")
    return save(tensors, json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"\x80\x04pickle." + data[9:],
        lambda data: b"",
        _without_a_tensor,
        _with_nan,
    ],
    ids=["truncated", "pickle", "empty", "missing tensor", "nan"],
)
def test_a_damaged_origin_is_refused_before_anything_is_started(
    neulig: Run, no_ray: None, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = shipped("tiny-rn", "seed-0")
    assert path is not None
    file = tmp_path / "mine.safetensors"
    file.write_bytes(damage(path.read_bytes()))
    status, text = neulig("run", "smallest", "--storage", tmp_path / "s", "--origins", file)
    assert status == 2, text
    assert "mine.safetensors" in text
    assert not list((tmp_path / "s").glob("artifacts/*/*"))


def test_an_origin_of_another_arch_is_refused(neulig: Run, no_ray: None, tmp_path: Path) -> None:
    path = shipped("tiny-rn", "seed-0")
    status, text = neulig(
        "run", "smallest", "--storage", tmp_path / "s", "--origins", str(path), "--archs", "tiny-vit"
    )
    assert status == 2
    assert "tiny-rn" in text
    assert "tiny-vit" in text


def test_report_of_several_needs_results(neulig: Run, no_ray: None, tmp_path: Path) -> None:
    status, text = neulig("report", "smallest", "quickstart", "--storage", tmp_path / "s")
    assert status == 2
    assert "smallest has no results" in text
    assert "`neulig run smallest`" in text


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cluster.gpus_per_worker", "64"], ["64 GPUs", "cluster.gpus_per_worker"]),
        (["--cluster.cpus_per_worker", "64"], ["64 CPUs", "cluster.cpus_per_worker"]),
        (["--finetune.workers", "64"], ["'experts' (64 workers) needs 64 CPUs"]),
    ],
    ids=["gpus", "cpus", "workers"],
)
def test_more_than_the_cluster_has_is_told_at_once(
    neulig: Run, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    started = time.monotonic()
    status, text = neulig("run", "smallest", "--storage", tmp_path / "s", *flags)
    assert status == 2
    assert time.monotonic() - started < 60
    for word in (*words, "--cluster.autoscaling"):
        assert word in text
    assert not list((tmp_path / "s").glob("artifacts/task/*")), "nothing was made before it was told"


def test_the_module_is_the_command_line(tmp_path: Path) -> None:
    for arguments, status in (["--version"], 0), (["rnu"], 2):
        done = subprocess.run(
            [sys.executable, "-m", "neulig_ray", *arguments], capture_output=True, timeout=60
        )
        assert done.returncode == status


def test_an_experiments_file_is_a_command(tmp_path: Path) -> None:
    file = REPOSITORY / "experiments/smallest.py"
    command = [sys.executable, str(file), "--storage", str(tmp_path / "s"), "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "tiny-rn seed-0 n=2" in done.stdout
    assert not (tmp_path / "s").exists()
    done = subprocess.run(
        [*command, "--n", "9"], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: n 9")


def test_pretrain_names_the_folders_of_the_origins_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose download or training failed has none."""
    from neulig_ray.pipeline.pipeline import Pipeline

    def made(pipeline: Pipeline, last: str) -> None:
        artifact = next(o.artifact for o in pipeline.plan.origins if o.name == "seed-1")
        pipeline.context.storage.commit(artifact, {"origin.safetensors": b""}, {})

    monkeypatch.setattr(Pipeline, "run", made)
    command = ["pretrain", str(REPOSITORY / "experiments/smallest.py"), "--storage", str(tmp_path)]
    assert main([*command, "--origins", "seed-0", "seed-1"]) == 0
    told = capsys.readouterr().err
    assert "tiny-rn/seed-1: " in told
    assert str(tmp_path) in told
    assert "tiny-rn/seed-0: " not in told


IN_A_NOTEBOOK = {
    "46-run": ["run", "smallest", "--dry-run", "--storage", "{}"],
    "storage": ["storage", "ls", "--storage", "{}"],
    "verify": ["storage", "verify", "--storage", "{}"],
    "ls": ["ls", "methods"],
    "experiments": ["ls", "experiments"],
}


@pytest.mark.parametrize("command", IN_A_NOTEBOOK.values(), ids=IN_A_NOTEBOOK.keys())
def test_commands_inside_a_running_event_loop(command: list[str], tmp_path: Path, neulig: Run) -> None:
    async def cell() -> tuple[int, str]:
        return neulig(*(word.format(tmp_path) for word in command))

    status, printed = asyncio.run(cell())
    assert status == 0, printed
