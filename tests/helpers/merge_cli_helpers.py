"""What the tests of `neulig merge` share."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

Run = Callable[..., tuple[int, str, str]]
State = dict[str, torch.Tensor]


def states(files: dict[str, Path], names: str = "abc") -> dict[str, State]:
    return {name: load_file(files[name]) for name in names}


def about(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["neulig"])


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].float(), tensor.float()), name


def left_behind(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part") or name.startswith("m.")]


def refused(run: Run, folder: Path, *arguments: object) -> str:
    """What is said of unusable input; it must end with status 2 and leave nothing."""
    before = sorted(os.listdir(folder))
    status, said, told = run("merge", *arguments)
    assert status == 2, (said, told)
    assert told.startswith("error: ")
    assert sorted(os.listdir(folder)) == before
    return told
