"""The cluster files pass Ray's own schema check, and say what the project relies on."""

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
AWS, LOCAL = "cluster.yaml", "clusters/local.yaml"
FILES = sorted([AWS, *(str(path.relative_to(ROOT)) for path in ROOT.glob("clusters/*.yaml"))])
EDITED = {
    AWS: {
        "max_workers", "region", "IamInstanceProfile", "resources", "InstanceType", "InstanceMarketOptions",
        "mlflow_server.sh",
    },
    LOCAL: {"head_ip", "worker_ips", "ssh_user", "ssh_private_key", "venv"},
}  # fmt: skip


def loaded(file: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return config


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's check of the schema: offline, private to Ray, whose version is pinned."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def commands(config: dict[str, Any], kind: str) -> str:
    return " ".join(config[kind])


def test_there_are_both_kinds_of_cluster() -> None:
    assert {loaded(file)["provider"]["type"] for file in FILES} == {"aws", "local"}
    assert set(FILES) == set(EDITED)


@pytest.mark.parametrize("file", FILES)
def test_ray_accepts_it(file: str) -> None:
    validated(loaded(file))


@pytest.mark.parametrize("file", FILES)
def test_the_check_would_see_a_typo(file: str) -> None:
    with pytest.raises(ValidationError, match="idle_timeout_minuts"):
        validated({**loaded(file), "idle_timeout_minuts": 5})


@pytest.mark.parametrize("file", FILES)
def test_lines_to_edit_are_marked(file: str) -> None:
    """Placeholders stand on marked lines, and every line that depends on the user is one of these."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    marked = [line for line in lines if "# EDIT" in line]
    for name in EDITED[file]:
        assert any(name in line for line in marked), name
    assert len([line for line in marked if not any(name in line for name in EDITED[file])]) == 0
    for line in lines:
        if re.search(r"ACCOUNT|BUCKET|192\.168\.", line):
            assert line in marked


@pytest.mark.parametrize("file", FILES)
def test_every_node_runs_under_the_same_explicit_settings(file: str) -> None:
    config = loaded(file)
    for kind in ("head", "worker"):
        start = commands(config, f"{kind}_start_ray_commands")
        assert "RAY_AUTH_MODE=token" in start
        assert "RAY_USAGE_STATS_ENABLED=0" in start
    setup = commands(config, "setup_commands")
    for setting in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "MLFLOW_DISABLE_TELEMETRY=true"):
        assert setting in setup
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in setup


@pytest.mark.parametrize("file", FILES)
def test_nodes_install_this_package_under_its_constraints_and_nothing_else(file: str) -> None:
    setup = loaded(file)["setup_commands"]
    installs = [command for command in setup if "pip install" in command]
    assert installs == ['~/neulig-env/bin/pip install -q -c ~/neulig/constraints.txt "$HOME/neulig[cluster]"']
    assert (
        "ray[default]"
        in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cluster"]
    )


@pytest.mark.parametrize("file", FILES)
def test_no_version_and_no_index_of_packages_is_named(file: str) -> None:
    """Versions are constraints.txt's alone; where packages come from is the machine's own setting."""
    text = (ROOT / file).read_text()
    assert not re.search(r"[a-z\]]\s*(==|~=|>=|<)\s*\d", text)
    assert not re.search(r"index-url|https?://|extra-index|\bpypi\b", text)


@pytest.mark.parametrize("file", FILES)
def test_exactly_what_the_package_is_made_of_is_mounted(file: str) -> None:
    """Ray reads whatever is mounted, excluded or not: a storage or a .venv too, at each `ray up`."""
    mounts = {remote: local for remote, local in loaded(file)["file_mounts"].items() if "neulig" in remote}
    assert all(remote == f"~/neulig/{local}" for remote, local in mounts.items())
    assert all((ROOT / local).exists() for local in mounts.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"neulig_ray", "pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    assert set(mounts.values()) == needed | {"experiments", "scripts"}
    assert loaded(file)["rsync_exclude"] == ["__pycache__"]


@pytest.mark.parametrize("file", FILES)
def test_the_tracking_server_is_on_the_head_alone(file: str) -> None:
    config = loaded(file)
    assert "mlflow_server.sh start --artifacts-destination" in commands(config, "head_start_ray_commands")
    assert "mlflow" not in commands(config, "worker_start_ray_commands")


def test_the_tracking_server_keeps_its_records_and_answers_on_loopback_alone() -> None:
    script = (ROOT / "scripts" / "mlflow_server.sh").read_text()
    assert "--host 127.0.0.1" in script
    assert '--backend-store-uri "sqlite:///$home/mlflow.db"' in script
    assert "home=$HOME/mlflow" in script


def test_aws_has_gpu_workers_a_head_without_work_and_its_artifacts_in_the_bucket() -> None:
    config = loaded(AWS)
    types = config["available_node_types"]
    head, worker = types[config["head_node_type"]], types["gpu_worker"]
    assert len(types) == 2
    assert worker["resources"]["GPU"] >= 1
    assert head["resources"]["CPU"] == 0
    assert "--num-cpus=0" in commands(config, "head_start_ray_commands")
    assert worker["node_config"]["InstanceType"].startswith(("g", "p"))
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["min_workers"] == 0
    assert config["idle_timeout_minutes"] > 0
    for kind in (head, worker):
        assert "IamInstanceProfile" in kind["node_config"], "without it a node cannot use the bucket"
    assert "--artifacts-destination s3://" in commands(config, "head_start_ray_commands")


def test_ray_makes_spot_workers_with_the_role_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own AWS code, down to the instances, against an account of moto's."""
    import boto3
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))  # a key pair is made and written there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    text = (ROOT / AWS).read_text().replace("ACCOUNT", "123456789012")
    region = yaml.safe_load(text)["provider"]["region"]
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        iam, ec2 = boto3.client("iam"), boto3.client("ec2")
        iam.create_role(RoleName="neulig", AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName="neulig")
        iam.add_role_to_instance_profile(InstanceProfileName="neulig", RoleName="neulig")
        config = bootstrap_aws(validated(yaml.safe_load(text)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for kind, described in config["available_node_types"].items():
            node = {**described["node_config"], "ImageId": "ami-12c6146b"}  # moto's; EC2 resolves ours
            tags = {"ray-launch-config": "", "ray-node-type": "worker", "ray-user-node-type": kind}
            provider.create_node(node, tags, 1)
        made = {
            instance["InstanceType"]: instance
            for reservation in ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
        }
    assert all(i["IamInstanceProfile"]["Arn"].endswith("instance-profile/neulig") for i in made.values())
    assert {name: i.get("InstanceLifecycle") for name, i in made.items()} == {
        "m7i.xlarge": None,
        "g6.xlarge": "spot",
    }


def test_machines_of_ones_own_are_launched_by_the_autoscaler_that_can() -> None:
    """Version 2 of Ray 2.60 never contacts the workers of a `type: local`."""
    start = [c for c in loaded(LOCAL)["head_start_ray_commands"] if "ray start" in c]
    assert len(start) == 1
    assert "RAY_enable_autoscaler_v2=0" in start[0]
    prepared = validated(loaded(LOCAL))
    workers = prepared["available_node_types"]["local.cluster.node"]
    assert workers["min_workers"] == len(prepared["provider"]["worker_ips"]), "all of them stay"


def closure(*requirements: str) -> set[str]:
    """Names of all distributions that pip installs here for the requirements, themselves included."""
    todo, seen = [Requirement(line) for line in requirements], set()
    while todo:
        required = todo.pop()
        name, extras = canonicalize_name(required.name), frozenset(required.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for below in map(Requirement, importlib.metadata.requires(name) or ()):
            if not below.marker or any(below.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append(below)
    return {name for name, _ in seen}


def test_all_that_nodes_install_has_its_version_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = closure(*project["dependencies"], *project["optional-dependencies"]["cluster"])
    assert {"ray", "torch", "boto3", "opencensus"} <= needed
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    # pip freeze leaves setuptools out: it comes with the environment, up to Python 3.11.
    assert not needed - {canonicalize_name(line.split("==")[0]) for line in lines} - {"setuptools"}
