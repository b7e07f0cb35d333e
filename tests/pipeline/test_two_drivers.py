"""Two drivers started at once on one storage and one cluster: one does the work, the other reuses it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from disturbed import SMALLEST
from nodes import PROGRAM, Nodes

from neulig_ray.cli.experiments import load
from neulig_ray.pipeline.plan import make_plan

pytestmark = pytest.mark.slow

_DONE = re.compile(r"(\w+) +(\d+) done(?:, (\d+) by another driver)?, (\d+) in the storage")


def counted(output: str) -> dict[str, tuple[int, int, int]]:
    """Stage -> (made here, made by the other driver, found in the storage)."""
    found = {}
    for line in output.splitlines():
        if match := re.fullmatch(r"(\w+) +(\d+) in the storage", line):
            found[match[1]] = 0, 0, int(match[2])
        elif match := _DONE.match(line):
            found[match[1]] = int(match[2]), int(match[3] or 0), int(match[4])
    return found


def table(output: str) -> list[str]:
    lines = output.splitlines()
    return lines[next(i for i, line in enumerate(lines) if "zeroshot" in line) :]


def test_two_drivers(start_command: Callable[..., Command], tmp_path: Path) -> None:
    """Their trainings and trials compete for two CPUs: neither starves the other for good."""
    nodes = Nodes(start_command(program=PROGRAM))
    storage = tmp_path / "storage"
    run = ["run", SMALLEST, "--storage", storage, "--address", nodes.address]
    drivers = [start_command(*run), start_command(*run)]
    for driver in drivers:
        assert driver.wait(800) == 0, driver.output
    one, other = (counted(driver.output) for driver in drivers)
    experiment, _ = load(SMALLEST)
    for stage, artifacts in make_plan(experiment).artifacts().items():
        if stage in one and artifacts:
            assert sum(one[stage]) == sum(other[stage]) == len(artifacts)
            assert one[stage][0] + other[stage][0] == len(artifacts), f"{stage}: each was made once"
    assert {"tasks", "heads", "experts", "embeddings", "search", "evaluations"} <= one.keys()
    assert table(drivers[0].output) == table(drivers[1].output)
    assert not [file for file in (storage / "ray").rglob("*") if file.is_file()]
    again = start_command(*run[:-1], "127.0.0.1:1")
    assert again.wait(120) == 0
    assert ", 0 of them written" in again.output, "both recorded the same runs"
