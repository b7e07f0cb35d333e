"""`neulig doctor --cluster`: which nodes it expects, what it finds wrong with one, and what it says."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from neulig_ray.cli import main
from neulig_ray.cli.doctor import nodes, probe
from neulig_ray.cli.doctor.nodes import Expected, expected, judge, missing
from neulig_ray.errors import InputError

HERE = probe.versions()
GIB = 1 << 30
WELL: dict[str, Any] = {
    "versions": HERE,
    "gpus": ["H100", "H100"],
    "gpu_error": "",
    "marked": True,
    "storage_error": "",
    "tracking_error": "",
    "disk": (20 * GIB, 100 * GIB),
    "memory": (6 * GIB, 100 * GIB),
}


def remedies(found: dict[str, Any], gpus: float = 2) -> dict[str, str]:
    """Column -> remedy of what is wrong with the node."""
    cells = judge({**WELL, **found}, HERE, gpus, asked_tracking=True)
    return {name: cell.remedy for name, cell in cells.items() if cell.remedy}


# Which nodes -----------------------------------------------------------------------------------------------


def test_the_files_of_the_repository_say_how_many_nodes_to_expect() -> None:
    local = expected(str(REPOSITORY / "clusters" / "local.yaml"), None)
    assert local == Expected(3, ("192.168.0.10", "192.168.0.11", "192.168.0.12"))
    assert expected(str(REPOSITORY / "cluster.yaml"), None) == Expected(1), "workers come with the work"
    assert expected(str(REPOSITORY / "cluster.yaml"), 5) == Expected(5)


def test_on_the_head_the_file_that_ray_up_left_is_the_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "bootstrap.yaml"
    monkeypatch.setattr(nodes, "BOOTSTRAP_CONFIG", left)
    assert expected("", None) == Expected(1)
    assert expected("", 4) == Expected(4)
    kinds = {"head": {}, "small": {"min_workers": 2}, "large": {"min_workers": 1}}
    left.write_text(json.dumps({"provider": {"type": "aws"}, "available_node_types": kinds}))
    assert expected("", None) == Expected(4)


def test_workers_named_by_host_are_known_by_their_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", {"head": "10.0.0.1", "w": "10.0.0.2"}.__getitem__)
    file = tmp_path / "local.yaml"
    file.write_text("provider: {type: local, head_ip: head, worker_ips: [w]}")
    assert expected(str(file), None).addresses == ("10.0.0.1", "10.0.0.2")


@pytest.mark.parametrize("text", [None, "", "- a list", "provider: 3", "provider: {type: local}", "a: b: c"])
def test_a_file_that_describes_no_cluster_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml.*--nodes N"):
        expected(str(file), None)


addresses = st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=6, unique=True)


@given(addresses, st.data())
def test_exactly_the_addresses_that_did_not_come_are_named(all_of: list[str], data: st.DataObject) -> None:
    came = data.draw(st.lists(st.sampled_from(all_of), unique=True))
    absent = missing(Expected(len(all_of), tuple(all_of)), came)
    assert absent == ", ".join(address for address in all_of if address not in came)


def test_nodes_without_names_are_counted() -> None:
    assert missing(Expected(4), ["a", "b"]) == "2 of 4"
    assert missing(Expected(2), ["a", "b", "c"]) == ""


# What is wrong with one ------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_node_that_is_well() -> None:
    assert remedies({}) == {}
    assert remedies({"gpus": []}, gpus=0) == {}


@pytest.mark.parametrize("name", sorted(HERE))
def test_each_version_that_differs_from_the_drivers_is_told(name: str) -> None:
    found = remedies({"versions": {**HERE, name: "0.0.1"}})
    assert found.keys() == {"versions"}
    assert f"{name} {HERE[name]}" in found["versions"]


@pytest.mark.parametrize(
    ("found", "gpus", "told"),
    [
        ({"gpus": []}, 2, "torch sees other GPUs"),
        ({"gpus": ["H100"] * 4}, 2, "torch sees other GPUs"),
        (
            {"gpus": [], "gpu_error": "CUDA driver version is insufficient"},
            2,
            "driver version is insufficient",
        ),
    ],
)
def test_gpus_that_torch_cannot_use_or_ray_does_not_hand_out(
    found: dict[str, Any], gpus: float, told: str
) -> None:
    assert told in remedies(found, gpus)["GPUs"]


def test_a_folder_of_the_same_name_on_another_disk_is_not_the_storage() -> None:
    assert "mount one shared folder" in remedies({"marked": False})["storage"]
    assert remedies({"storage_error": "no space"})["storage"] == "no space"


def test_a_server_that_a_node_cannot_reach_is_told_where_nodes_were_asked() -> None:
    assert remedies({"tracking_error": "no MLflow server answers"})["MLflow"] == "no MLflow server answers"
    assert "MLflow" not in judge(WELL, HERE, 2, asked_tracking=False)


@pytest.mark.parametrize("name", ["disk", "memory"])
def test_a_node_is_full_where_ray_says_so(name: str) -> None:
    assert remedies({name: (4 * GIB, 100 * GIB)}).keys() == {name}
    assert remedies({name: (6 * GIB, 100 * GIB)}) == {}


# On a cluster ----------------------------------------------------------------------------------------------


def test_its_flags_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--nodes", "2"])
    assert "--cluster" in capsys.readouterr().err


def test_no_ray_at_the_address_is_told_with_the_mode_of_authentication(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as bound:  # a port where nothing listens
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        status = main(["doctor", "--cluster", "--address", address, "--storage", str(tmp_path)])
    told = " ".join(capsys.readouterr().out.split())
    assert status == 1
    assert address in told
    assert "RAY_AUTH_MODE is token here" in told


@pytest.mark.ray
def test_a_node_that_is_well_and_one_that_does_not_come(
    ray_session: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    assert main(["doctor", "--cluster", "--storage", str(storage)]) == 0
    told = capsys.readouterr().out
    assert "1 of 1 nodes" in told
    assert HERE["neulig-ray"] in told
    assert "shared" in told
    assert not list(storage.glob(".doctor*")), "nothing is left in the storage"

    file = tmp_path / "local.yaml"
    file.write_text("provider: {type: local, head_ip: 127.0.0.1, worker_ips: [198.51.100.7]}")
    status = main(["doctor", "--cluster", str(file), "--timeout", "1", "--storage", str(storage)])
    captured = capsys.readouterr()
    assert status == 1
    assert "198.51.100.7 did not come within 1 s" in " ".join(captured.out.split())
    assert "waiting for" in captured.err


@pytest.mark.ray
def test_what_cannot_be_recorded_or_stored_is_told(
    ray_session: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    arguments = ["--storage", str(blocked / "below"), "--tracking-uri", "http://127.0.0.1:9"]
    assert main(["doctor", "--cluster", *arguments]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "storage: cannot write" in told
    assert "no MLflow server answers at 'http://127.0.0.1:9'" in told
