"""clusters/local.yaml, launched for real: see scripts/ray_up.py."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "ray_up.py"


@pytest.mark.slow
@pytest.mark.timeout(3700)
def test_a_head_and_a_worker_are_launched_used_and_taken_down() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3600
    )
    if done.stdout.startswith("SKIPPED: "):
        pytest.skip(done.stdout.removeprefix("SKIPPED: ").strip())
    assert done.returncode == 0, done.stdout[-6000:]
    print(done.stdout)
