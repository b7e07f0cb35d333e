"""An S3 bucket as storage, through moto's server on loopback: the same code, the same artifacts."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from servers import Server, s3_server

from neulig_ray.cli import main
from neulig_ray.cli.experiments import load
from neulig_ray.errors import InputError, StageError
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.pipeline.stored_results import read_results
from neulig_ray.storage import scratch
from neulig_ray.storage import storage as storage_module
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.inventory import damaged, inventory
from neulig_ray.storage.storage import Storage

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
FILES = {"a.bin": b"alpha" * 1000, "b.bin": b"beta"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as server:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(s3: Server, request: pytest.FixtureRequest) -> Storage:
    return Storage(uri(s3, request.node.name))


def uri(s3: Server, prefix: str) -> str:
    """With the server's address in it, so that every worker on every node finds it."""
    return f"s3://bucket/{prefix}?scheme=http&endpoint_override={s3.uri.removeprefix('http://')}"


def artifact(name: str = "one") -> Artifact:
    return Artifact.of("test", name, 1, {"name": name})


def test_what_is_committed_is_read_back(bucket: Storage, tmp_path: Path) -> None:
    bucket.check_writable()
    assert bucket.files("") == []
    assert not bucket.exists(artifact())
    with pytest.raises(FileNotFoundError):
        bucket.load(artifact(), "a.bin")
    bucket.commit(artifact(), FILES, {"info": 1})
    assert bucket.exists(artifact())
    assert {name: bucket.load(artifact(), name) for name in FILES} == FILES
    bucket.download(f"{artifact().path}/b.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == FILES["b.bin"]
    (stored,) = inventory(bucket)
    assert stored.whole
    assert not list(damaged(bucket, stored))
    bucket.delete_tree(artifact().path)
    bucket.delete_tree(artifact().path)
    assert bucket.files("") == []


def test_ray_gets_the_address_with_the_folder(bucket: Storage) -> None:
    place, _, options = bucket.child_uri("ray/train").partition("?")
    assert place.endswith("/ray/train")
    assert "endpoint_override=127.0.0.1" in options


def test_verify_and_prune(
    s3: Server, bucket: Storage, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    for name in ("kept", "damaged", "useless"):
        bucket.commit(artifact(name), FILES, {})
    bucket.write(f"{artifact('begun').path}/a.bin", b"begun")
    bucket.write(f"{artifact('damaged').path}/a.bin", b"alphA" * 1000)
    keep = {"artifacts": [artifact(name).fingerprint for name in ("kept", "damaged")]}
    bucket.write("exp/results.json", json.dumps(keep).encode())
    place = ["--storage", uri(s3, request.node.name)]
    assert main(["storage", "ls", *place]) == 0
    assert ["test", "3", "1"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert main(["storage", "verify", *place]) == 1
    assert "3 artifacts verified, 1 damaged files" in capsys.readouterr().out
    assert main(["storage", "prune", "--yes", *place]) == 0
    assert "removed 2 artifacts" in capsys.readouterr().out
    assert [item.name.rpartition("-")[0] for item in inventory(bucket)] == ["damaged", "kept"]


def test_what_a_live_driver_works_with_is_not_pruned(
    s3: Server, bucket: Storage, request: pytest.FixtureRequest
) -> None:
    bucket.commit(artifact("fresh"), FILES, {})
    place = ["--storage", uri(s3, request.node.name)]
    with scratch.scratch(bucket, "runs/exp") as own:
        bucket.write(
            f"{own.path}/plan.json", json.dumps({"artifacts": [artifact("fresh").fingerprint]}).encode()
        )
        assert main(["storage", "prune", "--yes", *place]) == 0
        assert bucket.exists(artifact("fresh"))
    assert main(["storage", "prune", "--yes", *place]) == 0
    assert not bucket.exists(artifact("fresh"))


def test_a_bucket_that_is_not_there_is_refused(s3: Server) -> None:
    place = uri(s3, "x").replace("bucket", "nowhere")
    with pytest.raises(InputError, match=r"cannot be written.*NO_SUCH_BUCKET"):
        Storage(place).check_writable()


def test_a_store_that_is_away_for_a_moment_is_waited_for(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system errs twice, then works; one that errs on is told as what could not be done."""
    monkeypatch.setattr(storage_module, "_PATIENCE", (0.01, 0.01))
    write, left = Storage._write, [2]

    def flaky(self: Storage, target: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("AWS Error SLOW_DOWN")
        write(self, target, data)

    monkeypatch.setattr(Storage, "_write", flaky)
    bucket.write("kept", b"whole")
    assert bucket.read("kept") == b"whole"
    left[0] = 99
    with pytest.raises(StageError, match=r"cannot write .*lost: AWS Error SLOW_DOWN"):
        bucket.write("lost", b"")
    assert left[0] == 96, "three attempts"


@pytest.mark.slow
def test_a_run_is_killed_and_resumed(
    s3: Server, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    """Killed when the first checkpoint of an expert stands in the bucket; then the same command."""
    storage = Storage(uri(s3, "smallest"))
    experiment, _ = load("experiments/smallest.py")
    plan = make_plan(experiment)
    arguments = ["run", "smallest", "--storage", storage.uri, "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]
    command = start_command(*arguments)
    command.wait_until(lambda: checkpoints(storage), "an expert's checkpoint", timeout=400)
    command.kill()
    begun = checkpoints(storage)
    assert not all(storage.exists(job.artifact) for job in plan.experts)
    command = start_command(*arguments)
    assert command.wait(600) == 0, command.output
    table, about = read_results(storage, "smallest")
    assert set(table["status"]) == {"ok"}
    assert about["failures"] == {}
    assert begun
    assert checkpoints(storage) == [], "a finished run leaves no checkpoints"
    verified = start_command("storage", "verify", "--storage", storage.uri)
    assert verified.wait(60) == 0, verified.output
    assert ", 0 damaged files" in verified.output
    again = start_command(*arguments, "--address", "127.0.0.1:1")
    assert again.wait(120) == 0, "a completed run needs no Ray"


def checkpoints(storage: Storage) -> list[Any]:
    with contextlib.suppress(FileNotFoundError):
        return [info.path for info in storage.files("ray/train") if info.base_name == "checkpoint.pt"]
    return []
