"""What the documentation shows works: its plugins load, its commands are the ones that CI runs."""

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import samples
import torch

import neulig_ray as nl
from neulig_ray.evaluation.granularity import RULES
from neulig_ray.experiment.config import Evaluation, check_values
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.plugins import Plugin, load_plugins
from neulig_ray.results.granularities import GRANULARITIES
from neulig_ray.results.summary import tables
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS

ROOT = Path(__file__).parent.parent


def blocks(file: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```",
        (ROOT / file).read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
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


def test_the_granularity_shown_has_a_meaning_and_a_rule(shown):
    assert (GRANULARITIES["halfway"].knows_task, RULES["halfway"].settings) == (True, ())
    check_values(nl.Experiment(name="x", evaluation=Evaluation(granularities=("task", "halfway"))))


@pytest.mark.parametrize("file", ["README.md", "docs/methods.md"])
def test_the_tables_of_methods_are_todays(file):
    specification = importlib.util.spec_from_file_location("table", ROOT / "scripts" / "methods_table.py")
    table = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(table)
    assert table.rendered(file) == (ROOT / file).read_text(encoding="utf-8"), (
        "run `python scripts/methods_table.py`"
    )


@pytest.mark.ray
def test_the_page_for_python_works(smallest_storage, tmp_path, monkeypatch):
    shutil.copytree(smallest_storage, tmp_path / "neulig-storage")
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, text in enumerate(blocks("docs/python.md", "python")):
        exec(compile(text, f"block {number} of docs/python.md", "exec"), namespace)
    assert {"merged.safetensors", "gate.safetensors", "smallest.html"} <= {p.name for p in tmp_path.iterdir()}
    assert namespace["results"].failures == {}


def test_the_page_for_python_shows_every_function():
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert [name for name in nl.__all__ if name[0].islower() and f"nl.{name}(" not in text] == []


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    """On a Ray of its own, as a reader's notebook; what is kept of it has the outputs of such a run."""
    copy = shutil.copy(ROOT / "docs/tour.ipynb", tmp_path)
    command = [sys.executable, ROOT / "scripts/run_notebook.py", copy, "--write"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    made, kept = (
        json.loads(Path(file).read_text(encoding="utf-8"))["cells"]
        for file in (copy, ROOT / "docs/tour.ipynb")
    )
    kinds = [[[*output["data"]] for output in cell.get("outputs", ())] for cell in made]
    assert kinds == [[[*output["data"]] for output in cell.get("outputs", ())] for cell in kept]
    assert ["image/png"] in kinds[-2]
    assert (ROOT / "docs/tour.ipynb").stat().st_size < 300_000


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
        assert f"command_of_readme {number}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "neulig run quickstart" in commands[0]
    assert "pytest" in commands[1]


@pytest.fixture
def readme_results():
    specification = importlib.util.spec_from_file_location("results", ROOT / "scripts" / "readme_results.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_readmes_table_has_a_row_for_each_line_and_a_column_for_each_n(readme_results):
    table = readme_results.compact(tables(samples.results()))
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len(head) == 1 + len(tables(samples.results()))
    assert [row[0] for row in rows] == [*readme_results.SHOWN, readme_results.ENTROPY]
    assert {len(row) for row in rows} == {len(head)}
    assert any("semi" in name for name in readme_results.SHOWN)
    shown = (ROOT / "README.md").read_text(encoding="utf-8").partition(readme_results.BEGIN)[2]
    assert all(f"| {row[0]} |" in shown for row in rows)
    assert all(f"n = {n}: {arch}" in shown for n in (2, 5) for arch in ("tiny-rn", "tiny-vit"))


def test_a_readme_with_other_numbers_is_told(readme_results, tmp_path, monkeypatch, capsys):
    """What CI runs on the results of README's first command."""
    storage = Storage(str(tmp_path / "storage"))
    stream = io.BytesIO()
    samples.results().to_parquet(stream, index=False)
    storage.write("quickstart/results.parquet", stream.getvalue())
    storage.write("quickstart/results.json", b"{}")
    readme = tmp_path / "README.md"
    table = readme_results.compact(tables(samples.results()))
    text = f"Before.\n{readme_results.BEGIN}\n{table}\n{readme_results.END}\nAfter.\n"
    monkeypatch.setattr(readme_results, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["readme_results.py", "--check", storage.uri])
    readme.write_text(text, encoding="utf-8")
    readme_results.main()
    assert "README's table is that of these results" in capsys.readouterr().out
    digit = table.rindex("0.")
    readme.write_text(text.replace(table, f"{table[:digit]}9.{table[digit + 2 :]}"), encoding="utf-8")
    with pytest.raises(SystemExit, match="README's table is not that of these results"):
        readme_results.main()
    assert "9." in readme.read_text(encoding="utf-8"), "--check writes nothing"
    assert "readme_results.py --check neulig-storage" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_pages_that_readme_links_to_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
