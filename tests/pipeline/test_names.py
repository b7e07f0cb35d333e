"""Names of artifacts are pinned: what is stored is found again by a later version, or its name says why not.

A changed name is a decision: raise the version of the stage, method or task that changed, say so in the
commit, and write the new names down with `python tests/pipeline/test_names.py`.
"""

import dataclasses
import hashlib
import json
import runpy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from neulig_ray.cli.experiments import load_file
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.plan import make_plan

REPOSITORY = Path(__file__).parents[2]
PINNED = Path(__file__).parent / "names.json"
SHIPPED = REPOSITORY / "experiments"
OF_0_1 = REPOSITORY / "tests/experiment/experiments_of_0_1"  # byte for byte those of commit 4440cd1
IN_FULL = "quickstart"


@cache
def experiments_in(folder: Path) -> dict[str, Experiment]:
    """Every experiment of a folder and every variant, by name: "fusing", "fusing --NAME"."""
    found = {}
    for file in sorted(folder.glob("*.py")):
        loaded = load_file(str(file))
        found[file.stem] = loaded.experiment
        found |= {f"{file.stem} --{name}": variant for name, variant in loaded.variants.items()}
    return found


def names(experiment: Experiment) -> dict[str, list[str]]:
    """Stage -> "path fingerprint" of each of its artifacts, sorted.

    Fused origins count as origins, networks of several tasks as experts.
    """
    stages = make_plan(experiment).artifacts()
    stages["origins"] += stages.pop("fused")
    stages["experts"] += stages.pop("joint")
    return {
        stage: sorted(f"{artifact.path} {artifact.fingerprint}" for artifact in found)
        for stage, found in stages.items()
    }


def digests(names: dict[str, list[str]]) -> dict[str, str]:
    """Stage -> how many artifacts it has, and a digest of their names."""
    return {
        stage: f"{len(found)} {hashlib.sha256(chr(10).join(found).encode()).hexdigest()[:16]}"
        for stage, found in names.items()
    }


def digest(names: dict[str, list[str]]) -> str:
    """How many artifacts there are, and one digest of all their names."""
    (found,) = digests({"all": sorted(name for stage in names.values() for name in stage)}).values()
    return found


def kept_since_0_1(experiment: Experiment) -> dict[str, list[str]]:
    """`names` without ligands, whose training is another, and without stages that 0.1 had not."""
    others = {"search", "ligands", "variants", "models"}
    found = {stage: each for stage, each in names(experiment).items() if stage not in others}
    gated = ("artifacts/evaluation/ligand.", "artifacts/evaluation/hard-routing.")
    found["evaluations"] = [name for name in found["evaluations"] if not name.startswith(gated)]
    return found


def pinned() -> dict[str, dict[str, object]]:
    return json.loads(PINNED.read_text(encoding="utf-8"))


def now() -> dict[str, dict[str, object]]:
    found = {name: names(experiment) for name, experiment in experiments_in(SHIPPED).items()}
    return {
        "digests": {name: digests(each) for name, each in found.items()},
        IN_FULL: found[IN_FULL],
        "of 0.1": {name: digest(kept_since_0_1(each)) for name, each in experiments_in(OF_0_1).items()},
    }


def test_every_shipped_experiment_is_pinned() -> None:
    assert pinned()["digests"].keys() == experiments_in(SHIPPED).keys()


@pytest.mark.parametrize("name", experiments_in(SHIPPED))
def test_names_are_those_that_were_pinned(name: str) -> None:
    assert digests(names(experiments_in(SHIPPED)[name])) == pinned()["digests"][name]


def test_the_experiments_of_0_1_load_as_they_are() -> None:
    assert experiments_in(OF_0_1).keys() == pinned()["of 0.1"].keys()


@pytest.mark.parametrize("name", experiments_in(OF_0_1))
def test_the_experiments_of_0_1_plan_what_they_did(name: str) -> None:
    assert digest(kept_since_0_1(experiments_in(OF_0_1)[name])) == pinned()["of 0.1"][name]


def test_a_file_of_0_1_runs_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(OF_0_1 / "smallest.py")
    monkeypatch.setattr(sys, "argv", [file, "--dry-run", "--storage", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(file, run_name="__main__")
    assert ended.value.code == 0
    assert "n=2: 1 combinations" in capsys.readouterr().out


def test_the_names_of_the_quickstart_one_by_one() -> None:
    assert names(experiments_in(SHIPPED)[IN_FULL]) == pinned()[IN_FULL]


def test_a_changed_setting_is_another_digest() -> None:
    base = experiments_in(SHIPPED)["smallest"]
    changed = dataclasses.replace(base, seed=base.seed + 1)
    before, after = digests(names(base)), digests(names(changed))
    assert before["ligands"] != after["ligands"]


@pytest.mark.parametrize(
    "changes",
    [{"input": "raw"}, {"input": "normalised"}, {"rate": "cosine"}, {"average": 0.0}, {"semi": "entropy"}],
    ids=str,
)
def test_a_recipe_of_the_ligand_is_in_its_name(changes: dict[str, Any]) -> None:
    base = experiments_in(SHIPPED)["smallest"]
    default = dataclasses.replace(
        base.ligand, input="standardised", rate="constant", average=0.25, semi="information"
    )
    before = digests(names(base))
    assert digests(names(dataclasses.replace(base, ligand=default))) == before
    changed = digests(names(dataclasses.replace(base, ligand=dataclasses.replace(default, **changes))))
    assert {stage for stage in before if changed[stage] != before[stage]} == {
        "ligands",
        "search",
        "models",
        "evaluations",
    }


if __name__ == "__main__":
    PINNED.write_text(json.dumps(now(), indent=1) + "\n", encoding="utf-8")
