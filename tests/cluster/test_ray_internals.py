"""The installed Ray still has what it does not promise and this package uses. No session is started."""

import inspect
from importlib.metadata import distribution
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from neulig_ray.cluster import ray_internals


def source(name: str) -> str:
    return Path(str(distribution("ray").locate_file(f"ray/{name}"))).read_text(encoding="utf-8")


def test_memory_is_counted_in_bytes() -> None:
    used, total = ray_internals.node_memory()
    assert 2**20 < used <= total


def test_a_process_without_a_session_has_started_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "_global_node", None)
    assert ray_internals.started_node() is None


def test_a_node_knows_the_folder_of_its_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._private import worker
    from ray._private.node import Node

    node = object.__new__(Node)
    node._session_dir = str(tmp_path)
    monkeypatch.setattr(worker, "_global_node", node)
    assert ray_internals.session_folder() == str(tmp_path)
    assert ray_internals.started_node() is node


def test_rows_of_placement_groups_name_their_creator(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    written = PlacementGroupTableData(
        placement_group_id=b"a",
        creator_job_id=b"b",
        creator_actor_id=b"c",
        creator_actor_dead=True,
        state=PlacementGroupTableData.REMOVED,
    )

    class Accessor:
        def get_placement_group_table(self) -> list[bytes]:
            return [written.SerializeToString()]

    monkeypatch.setattr(state, "_connect_and_get_accessor", lambda: Accessor(), raising=True)
    (group,) = ray_internals.placement_groups()
    assert group == written
    assert ray_internals.is_removed(group)
    assert hasattr(ray._raylet.GlobalStateAccessor, "get_placement_group_table")


def test_actors_say_when_they_are_ready() -> None:
    assert "def __ray_ready__(self)" in source("actor.py")


def test_the_wrapper_of_a_workers_death_holds_its_cause() -> None:
    death = ActorDiedError()
    assert ray_internals.cause(WorkerHealthCheckFailedError("it died", failure=death)) is death
    assert ray_internals.cause(death) is death


def test_a_death_tells_whether_its_node_was_taken_back() -> None:
    death = ActorDiedError()
    assert not ray_internals.was_preempted(death)
    death._preempted = True
    assert ray_internals.was_preempted(death)


@pytest.mark.parametrize("name", sorted(ray_internals.ENVIRONMENT))
def test_ray_reads_the_variable(name: str) -> None:
    files = ("train/v2/_internal/constants.py", "_private/accelerators/accelerator.py",
             "tune/experimental/output.py")  # fmt: skip
    assert any(f'"{name}"' in source(file) for file in files)


def test_ray_up_leaves_its_file_where_it_is_looked_for() -> None:
    assert str(ray_internals.BOOTSTRAP_CONFIG) in source("autoscaler/aws/defaults.yaml")


def test_the_head_has_a_resource_of_its_name() -> None:
    from ray._private.resource_and_label_spec import HEAD_NODE_RESOURCE_NAME

    assert ray_internals.HEAD_RESOURCE == HEAD_NODE_RESOURCE_NAME


def test_ray_says_that_memory_was_low() -> None:
    assert ray_internals.LOW_MEMORY in inspect.getsource(ray.exceptions.OutOfMemoryError)


def test_the_mode_of_authentication_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for mode, expected in (("token", True), ("disabled", False)):
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
            monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
            ray_internals.read_auth_mode()
            ray_internals.forget_token()
            assert ray_internals.authenticates() == expected
    finally:
        monkeypatch.undo()
        ray_internals.read_auth_mode()


def test_a_token_of_the_home_folder_can_be_enabled() -> None:
    from ray._private.authentication import authentication_token_setup as setup

    parameters = inspect.signature(setup.maybe_enable_token_auth_if_token_available).parameters
    assert "warn_if_disabled" in parameters


def test_a_head_can_be_asked_before_it_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    assert isinstance(ray._raylet.GcsClient, type)
    monkeypatch.setattr(ray._raylet, "GcsClient", lambda *, address: asked.append(address))
    ray_internals.knock("192.0.2.7:6379")
    assert asked == ["192.0.2.7:6379"]


def test_an_address_is_taken_as_it_is() -> None:
    assert ray_internals.address_here("192.0.2.7:6379") == "192.0.2.7:6379"
