"""cluster.yaml passes Ray's own schema check, and says what the project relies on."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

FILE = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's check of the schema: offline, private to Ray, whose version is pinned."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validated(config)


def test_the_check_would_see_a_typo(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="idle_timeout_minuts"):
        validated({**config, "idle_timeout_minuts": 5})


def test_workers_have_gpus_and_the_head_runs_no_work(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert set(types) == {config["head_node_type"], "gpu_worker"}
    assert types["gpu_worker"]["resources"]["GPU"] >= 1
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu_worker"]["node_config"]["InstanceType"].startswith(("g", "p"))


def test_every_node_runs_under_the_same_explicit_settings(config: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        start = " ".join(config[f"{kind}_start_ray_commands"])
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_USAGE_STATS_ENABLED=0" in start
    setup = " ".join(config["setup_commands"])
    assert "constraints.txt" in setup
    for setting in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "MLFLOW_DISABLE_TELEMETRY=true"):
        assert setting in setup


def test_the_tracking_server_is_on_the_head_alone_and_keeps_its_data(config: dict[str, Any]) -> None:
    head = " ".join(config["head_start_ray_commands"])
    assert "mlflow server" in head
    assert "--allowed-hosts" in head
    assert "sqlite:////" in head
    assert "mlflow server" not in " ".join(config["worker_start_ray_commands"])


def test_caches_and_stores_stay_at_home(config: dict[str, Any]) -> None:
    assert {"neulig-storage*", ".git", "**/__pycache__", ".venv*"} <= set(config["rsync_exclude"])
