"""`ray up` for real: clusters/local.yaml, a head and one worker, on this machine and out of everybody's way.

    python scripts/ray_up.py

Launches, checks the nodes, submits `smallest` as a job, looks for its runs on the head's MLflow server, tears
down, and sees that no process is left. Needs root; says SKIPPED with the reason where it cannot run. 11 to 19
minutes on 2 CPU cores that much other work shared (2026-11-22). tests/cluster/test_ray_up.py runs it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from machines import REPOSITORY, Machines, isolated, make_environment, obstacle, processes

FILE = REPOSITORY / "clusters" / "local.yaml"
HEAD, WORKER = "127.0.0.11", "127.0.0.12"
DASHBOARD, MLFLOW = "http://127.0.0.1:8265", "http://127.0.0.1:5000"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
}
# The settings of the caller's own Ray, Python and MLflow are not the cluster's.
FOREIGN = ("RAY_", "MLFLOW_", "PYTHON", "PIP_", "OMP_", "TMPDIR", "SSH_")
PLAIN = ("--log-style", "pretty", "--log-color", "false")
JOB_SECONDS = 2400  # 147 on 2 busy cores
STARTED = time.monotonic()


def main() -> int:
    if reason := obstacle():
        print(f"SKIPPED: {reason}")
        return 0
    work = Path(tempfile.mkdtemp(prefix="neulig-ray-up-")).resolve()
    try:
        # What builds the package: the machines have no network.
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-qq",
                "--dest",
                work / "wheels",
                *build_requirements(),
            ],
            check=True,
        )
        status = isolated([sys.executable, __file__, work], work)
    finally:
        shutil.rmtree(work)
    if left := [pid for pid in processes() if mentions(pid, work)]:
        print(f"processes left: {left}")
        return 1
    return status


def build_requirements() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["build-system"]["requires"])


def mentions(pid: int, work: Path) -> bool:
    """Whether a process was started with something below `work` in its environment."""
    try:
        return str(work).encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def inside(work: Path) -> None:
    """The whole scenario; raises at the first thing that is not as it should be."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    step("machines")
    machines = Machines(work)
    own = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(work / "wheels"), "PIP_ROOT_USER_ACTION": "ignore"}
    # The memory is the whole machine's: Ray would kill our workers for what others take.
    own["RAY_memory_monitor_refresh_ms"] = "0"
    for name, address in (("head", HEAD), ("worker", WORKER)):
        home = machines.add(name, address, own)
        make_environment(home / "neulig-env")
    before = processes()
    storage = work / "storage"  # what a shared file system is to real machines
    config = work / "local.yaml"
    config.write_text(yaml.safe_dump(rendered(machines.key), width=1000), encoding="utf-8")
    run("ray", "get-auth-token", "--generate", show=False)

    step("ray up")
    run("ray", "up", "-y", "--no-config-cache", "--disable-usage-stats", *PLAIN, config)
    assert refuses_strangers(), "the dashboard answers without the token"

    step("neulig doctor --cluster")
    doctor = f"neulig doctor --cluster --timeout 900 --storage {storage} --tracking-uri {MLFLOW}"
    on_head(config, doctor)

    step("ray job submit: an experiment that the head did not have")
    mine = work / "mine.py"
    shutil.copy(REPOSITORY / "experiments" / "smallest.py", mine)
    run("ray", "rsync-up", config, mine, "~/neulig/experiments/mine.py", show=False)
    job("first", storage)
    step("the same again: nothing to do")
    again = job("again", storage)
    assert ", 0 of them written" in again, "the second run recorded something"

    step("MLflow")
    runs = recorded("smallest")
    print(f"{len(runs)} runs: {sorted({run['info']['status'] for run in runs})}")
    assert runs, "no run was recorded"
    assert all(run["info"]["status"] == "FINISHED" for run in runs)
    assert (storage / "smallest" / "results.parquet").is_file()

    step("a second MLflow server is not started")
    on_head(config, "~/neulig/scripts/mlflow_server.sh start")

    step("ray down")
    on_head(config, "python ~/neulig/scripts/stop_cluster.py")
    run("ray", "down", "-y", *PLAIN, config)
    left = wait_for_end(before, seconds=300)
    assert not left, f"left running: {left}"
    step("nothing is left running")


def print_logs(work: Path) -> None:
    """The ends of what the machines' sshd, the autoscaler and MLflow said: why a step failed."""
    session = "tmp/ray/session_2*/logs"  # session_latest is a link within the machine
    for place in ("sshd.log", f"{session}/monitor.log", f"{session}/monitor.err", "home/mlflow/server.log"):
        for log in sorted(work.glob(f"*/{place}")):
            if text := log.read_text(encoding="utf-8", errors="replace").strip():
                print(f"\n--- {log.relative_to(work)}\n{text[-1500:]}", flush=True)


def rendered(key: Path) -> dict[str, Any]:
    """clusters/local.yaml with this test's machines. The head does no work, so that the worker must."""
    config: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    config["provider"].update(head_ip=HEAD, worker_ips=[WORKER])
    config["auth"].update(ssh_user="root", ssh_private_key=str(key))
    start = config["head_start_ray_commands"]
    config["head_start_ray_commands"] = [
        command.replace("ray start --head", "ray start --head --num-cpus=0") for command in start
    ]
    return config


def job(name: str, storage: Path) -> str:
    """Run `smallest` as a job that needs nobody to wait for it; what it printed."""
    arguments = ["--storage", storage, "--tracking-uri", MLFLOW]
    submit = ["ray", "job", "submit", "--address", DASHBOARD, "--no-wait", "--submission-id", name, "--"]
    command = " ".join(map(str, ("cd ~/neulig && exec neulig run mine", *arguments)))
    run(*submit, "sh", "-c", command, show=False)
    until = time.monotonic() + JOB_SECONDS
    state = ""
    while state not in ("SUCCEEDED", "FAILED", "STOPPED") and time.monotonic() < until:
        time.sleep(2)
        state = asked(f"{DASHBOARD}/api/jobs/{name}", token=True)["status"]
    log: str = asked(f"{DASHBOARD}/api/jobs/{name}/logs", token=True)["logs"]
    print(log)
    assert state == "SUCCEEDED", f"the job {name} is {state}"
    return log


def recorded(experiment: str) -> list[dict[str, Any]]:
    """The runs of an experiment on the head's MLflow server."""
    api = f"{MLFLOW}/api/2.0/mlflow"
    found = asked(f"{api}/experiments/get-by-name?experiment_name={experiment}")
    ids = [found["experiment"]["experiment_id"]]
    runs: list[dict[str, Any]] = asked(f"{api}/runs/search", {"experiment_ids": ids})["runs"]
    return runs


def asked(url: str, body: dict[str, Any] | None = None, *, token: bool = False) -> Any:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if token:
        secret = (Path.home() / ".ray" / "auth_token").read_text(encoding="utf-8").strip()
        request.add_header("Authorization", f"Bearer {secret}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def refuses_strangers() -> bool:
    try:
        asked(f"{DASHBOARD}/api/jobs/")
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    return False


def on_head(config: Path, command: str) -> None:
    run("ray", "exec", "--no-config-cache", *PLAIN, config, command)


def run(*command: object, show: bool = True) -> None:
    """Run a command to its end; its output is shown, or only when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200,
    )  # fmt: skip
    if show or done.returncode:
        print(done.stdout.decode(errors="replace"), flush=True)
    assert done.returncode == 0, f"exit status {done.returncode}: {' '.join(map(str, command))}"


def wait_for_end(before: dict[int, str], seconds: float) -> dict[int, str]:
    """What still runs, beyond what ran before, after at most `seconds`."""
    until = time.monotonic() + seconds
    while True:
        left = {pid: command for pid, command in processes().items() if pid not in before}
        if not left or time.monotonic() > until:
            return left
        time.sleep(1)


def step(text: str) -> None:
    print(f"\n=== {text} ({time.monotonic() - STARTED:.0f} s since the start)", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        try:
            inside(Path(sys.argv[1]))
        except BaseException:
            print_logs(Path(sys.argv[1]))
            raise
    else:
        sys.exit(main())
