"""What the documentation shows works: its plugins load, its commands are the ones that CI runs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.plugins import Plugin, load_plugins
from neulig_ray.tasks import TASKS

ROOT = Path(__file__).parent.parent


def blocks(file: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), flags=re.MULTILINE | re.DOTALL
    )


@pytest.fixture(scope="module")
def shown():
    for i, text in enumerate(blocks("docs/extending.md", "python")):
        load_plugins([Plugin(f"shown{i}.py", text)])


def test_the_task_shown_has_three_usable_splits(shown):
    splits = TASKS["halves"].splits(0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 600, "val": 600, "test": 600}
    assert (splits["test"].images[splits["test"].labels == 0][:, 0] == 255).all()


def test_the_arch_shown_builds(shown):
    with torch.no_grad():
        assert build_tower(ARCHS["tinier-vit"])(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_the_method_shown_merges(shown):
    states = {str(i): {"w": torch.tensor([float(i)])} for i in (1, 2, 6)}
    merged = merge_with(METHODS["median"], states, {"w": torch.tensor([1.0])}, {"scaling": 0.5})
    assert merged["w"].tolist() == [1.5]


@pytest.mark.parametrize("file", ["README.md", "docs/methods.md"])
def test_the_tables_of_methods_are_todays(file):
    specification = importlib.util.spec_from_file_location("table", ROOT / "scripts" / "methods_table.py")
    table = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(table)
    assert table.rendered(file) == (ROOT / file).read_text(), "run `python scripts/methods_table.py`"


def test_readme_has_exactly_two_commands_and_ci_runs_these():
    commands = blocks("README.md", "bash")
    assert len(commands) == 2
    script = ROOT / "scripts" / "readme_commands.py"
    for number, command in enumerate(commands, 1):
        done = subprocess.run(
            [sys.executable, script, ROOT / "README.md", str(number)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == command
        assert f"command_of_readme {number}" in (ROOT / ".ci" / "run").read_text()
    assert "neulig run quickstart" in commands[0]
    assert "pytest" in commands[1]


def test_the_pages_that_readme_links_to_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
