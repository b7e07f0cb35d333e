"""What all tests share: Ray's and MLflow's environment, one local Ray session, commands as children."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import disturbed
import pytest
from golden_files import NO_FILE, collection

# Ray and MLflow read these when they are imported, and children inherit them.
os.environ.update(
    {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_RUNTIME_ENV_HOOK"):
    os.environ.pop(_name, None)

REPOSITORY = Path(__file__).parent.parent
_MARK = "NEULIG_TEST_PROCESS"


def pytest_configure(config: pytest.Config) -> None:
    collection()  # a wrong folder is told before any test
    config.addinivalue_line("markers", f"{NO_FILE}: no golden file is called so: the test does not exist")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from two_processes import SharedRuns

    return SharedRuns(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item.get_closest_marker(NO_FILE) is None]
    if "PYTEST_XDIST_WORKER" in os.environ:
        from two_processes import longest_first

        longest_first(items)


class Command:
    """`neulig ARGUMENTS`, or another Python program, in a process group of its own with its children."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        cwd: Path,
        log: Path,
        environment: dict[str, str],
        program: tuple[str, ...] = ("-m", "neulig_ray"),
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.log = log
        self._seen: set[tuple[int, str]] = set()
        self.started = time.monotonic()
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment, _MARK: self.mark},
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> int:
        """The exit status; fails the test, with the output, when it takes longer than `timeout` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.end()
            pytest.fail(f"no end after {timeout} s; its output:\n{self.output[-4000:]}")

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def wait_until(self, happened: Callable[[], bool], what: str, timeout: float = 300) -> None:
        """Wait for what the running command does; fails the test when it ends before, or takes too long."""
        until = time.monotonic() + timeout
        while not happened():
            if self.process.poll() is not None:
                pytest.fail(f"ended ({self.process.returncode}) before {what}:\n{self.output[-4000:]}")
            if time.monotonic() > until:
                self.end()
                pytest.fail(f"{timeout} s without {what}:\n{self.output[-4000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """`kill -9` of the driver alone, in the middle of what it does."""
        self.family()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def family(self) -> set[int]:
        """Processes alive that the command started, its own included: children of children, by /proc."""
        alive = _processes()
        found = {self.process.pid} & alive.keys()
        while True:
            more = {pid for pid, (parent, _) in alive.items() if parent in found} - found
            if not more:
                break
            found |= more
        # Orphans keep the environment; workers that renamed themselves (ray::...) may have lost it.
        found |= {pid for pid in alive if _has_mark(pid, self.mark)}
        found |= {pid for pid, started in self._seen if pid in alive and alive[pid][1] == started}
        self._seen |= {(pid, alive[pid][1]) for pid in found}
        return found

    def end(self) -> None:
        """Kill what is left of the command and of what it started, by pid."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, start time) of the processes that are not dead."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    found[int(entry.name)] = int(fields[1]), fields[19]
    return found


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


@pytest.fixture(scope="module", autouse=True)
def _only_the_files_own_plugins() -> Iterator[None]:
    """What a file's tests add to the registries is gone when another file's begin, in whatever order."""
    from isolated import only_the_packages_own

    with only_the_packages_own():
        yield


@pytest.fixture(autouse=True)
def _arithmetic_as_it_was() -> Iterator[None]:
    """How torch computes in this process is as before when a test is over: jobs set it for theirs."""
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_flush_denormal(False)  # as Python starts, and as hypothesis needs it
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    assert torch.is_grad_enabled()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray session of the tests marked `ray`, of two CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def smallest_storage(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of one `neulig run smallest`. Not to be changed: `copied_storage` gives a copy."""
    from neulig_ray.cli import main

    folder = tmp_path_factory.mktemp("smallest") / "storage"
    arguments = ["run", str(REPOSITORY / "experiments/smallest.py"), "--storage", str(folder), "--quiet"]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def copied_storage(smallest_storage: Path, tmp_path: Path) -> Path:
    """A copy of the artifacts of `smallest`, without its results."""
    shutil.copytree(smallest_storage / "artifacts", tmp_path / "storage/artifacts")
    return tmp_path / "storage"


@contextlib.contextmanager
def _commands(folder: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: object, cwd: Path = REPOSITORY, program: Any = (), **environment: str) -> Command:
        log = folder / f"{len(started)}.log"
        given = tuple(map(str, arguments))
        more = {"program": tuple(map(str, program))} if program else {}
        started.append(Command(given, cwd, log, environment, **more))
        return started[-1]

    try:
        yield start
    finally:
        for command in started:
            command.end()


@pytest.fixture(scope="module")
def start_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Start `neulig ARGUMENTS` in a process of its own; what is left of it ends with the module."""
    with _commands(tmp_path_factory.mktemp("commands")) as start:
        yield start


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a run that nothing disturbed, for the tests that kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with _commands(folder) as start:
        command = start("run", disturbed.SMALLEST, "--storage", folder / "storage", *disturbed.FLAGS)
        assert command.wait(880) == 0, command.output
    return folder / "storage"


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository as working directory, where ./experiments is found."""
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def neulig(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `neulig ARGUMENTS` in this process: exit status, standard output, standard error."""
    from neulig_ray.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as ended:  # argparse, after its help
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A base and three experts `a`, `b`, `c` with BatchNorm, as safetensors."""
    from safetensors.torch import save_file
    from small_models import make_tower

    found = {}
    for seed, name in enumerate(("base", "a", "b", "c")):
        found[name] = tmp_path / f"{name}.safetensors"
        save_file(make_tower(seed).state_dict(), found[name])
    return found
