"""Run on the head before `ray down` of machines of one's own: stops Ray everywhere, and the MLflow server.

    ray exec clusters/local.yaml 'python ~/neulig/scripts/stop_cluster.py'

`ray down` itself reaches the head alone: workers whose head is gone end late, and some processes never do.
The head goes first, or its autoscaler would launch the workers again.
"""

import subprocess
import sys
import time
from pathlib import Path

import yaml

STOP = ("neulig-env/bin/ray", "stop", "--grace-period", "60")  # below home, where the setup commands put it
SSH = ("ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
SECONDS = 300


def stopped(name: str, *command: str) -> bool:
    """Run a command to its end; says what happened."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: no end after {SECONDS} s")
        return False
    words = (done.stdout + done.stderr).strip().splitlines()
    how = "stopped" if done.returncode == 0 else words[-1] if words else done.returncode
    print(f"{name}: {how} after {time.monotonic() - began:.0f} s")
    return done.returncode == 0


def main() -> int:
    config = yaml.safe_load(Path("~/ray_bootstrap_config.yaml").expanduser().read_text(encoding="utf-8"))
    fine = [
        stopped("head", str(Path.home() / STOP[0]), *STOP[1:]),
        stopped("MLflow", str(Path(__file__).with_name("mlflow_server.sh")), "stop"),
    ]
    key = Path(config["auth"]["ssh_private_key"]).expanduser()
    for address in config["provider"].get("worker_ips", ()):
        user = config["auth"]["ssh_user"]
        fine.append(stopped(address, *SSH, "-i", str(key), f"{user}@{address}", *STOP))
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
