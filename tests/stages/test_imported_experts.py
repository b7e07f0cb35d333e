"""Imported experts in an experiment: in the place of fine-tuning, named by their content."""

import dataclasses
import shutil

import pytest
from foreign import equal, expert_file, imported, moved

from neulig_ray.cli import main
from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.formats.export import write_open_clip
from neulig_ray.models.tower_files import read_tower, tower_bytes
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.experts import FILE, load_expert
from neulig_ray.stages.imported_experts import store_expert
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

EXPERIMENT = Experiment(name="imported", archs=("tiny-vit",), tasks=("digits", "textures"), n=(2,))


def test_an_imported_expert_takes_the_place_of_fine_tuning(tmp_path, capsys):
    state, clip = moved()
    write_open_clip(tmp_path / "in.safetensors", state, clip, {}, "test")
    assert imported(tmp_path / "in.safetensors", tmp_path / "digits.safetensors") == 0
    before = make_plan(EXPERIMENT)
    plan = make_plan(dataclasses.replace(EXPERIMENT, experts=(str(tmp_path / "digits.safetensors"),)))
    assert [job.key for job in plan.experts] == ["textures@seed-0"]
    assert [expert.key for expert in plan.imported] == ["digits@seed-0"]
    experts = plan.models[0]["tiny-vit"].experts
    assert experts["digits@seed-0"] == plan.imported[0].artifact
    assert experts["textures@seed-0"] == before.models[0]["tiny-vit"].experts["textures@seed-0"]
    assert plan.imported[0].artifact in plan.artifacts()["experts"]
    storage = Storage(str(tmp_path / "storage"))
    store_expert(plan.imported[0], storage)
    assert equal(load_expert(storage, plan.imported[0].artifact, "tiny-vit"), state)
    assert storage.load(plan.imported[0].artifact, FILE) == (tmp_path / "digits.safetensors").read_bytes()


def test_an_expert_in_the_storage_is_named_by_what_the_import_printed(tmp_path, capsys):
    state, clip = moved()
    write_open_clip(tmp_path / "in.safetensors", state, clip, {}, "test")
    flags = ["import", str(tmp_path / "in.safetensors"), "--arch", "tiny-vit", "--task", "digits"]
    assert main([*flags, "--origin", "seed-0", "--storage", str(tmp_path / "storage")]) == 0
    name = capsys.readouterr().out.split()[-1]
    shutil.rmtree(tmp_path / "in.safetensors", ignore_errors=True)
    plan = make_plan(dataclasses.replace(EXPERIMENT, experts=(name,)))
    storage = Storage(str(tmp_path / "storage"))
    assert storage.exists(plan.imported[0].artifact)
    store_expert(plan.imported[0], storage)
    assert equal(load_expert(storage, plan.models[0]["tiny-vit"].experts["digits@seed-0"], "tiny-vit"), state)
    with pytest.raises(InputError, match=rf"{name}' is not in .*other.*neulig import"):
        store_expert(plan.imported[0], Storage(str(tmp_path / "other")))


def test_an_import_is_pruned_only_when_it_is_asked_for(tmp_path, capsys):
    """Nothing was made from it yet: that is what it was imported for."""
    state, clip = moved()
    write_open_clip(tmp_path / "in.safetensors", state, clip, {}, "test")
    storage = Storage(str(tmp_path / "storage"))
    flags = ["import", str(tmp_path / "in.safetensors"), "--arch", "tiny-vit", "--task", "digits"]
    assert main([*flags, "--origin", "seed-0", "--storage", storage.uri]) == 0
    trained = Artifact("expert", "tiny-vit.textures@seed-0", "0" * 16)
    storage.commit(trained, {FILE: b"of no results"}, {"curve": []})
    experts = make_plan(dataclasses.replace(EXPERIMENT, experts=(capsys.readouterr().out.split()[-1],)))
    prune = ["storage", "prune", "--yes", "--storage", storage.uri]
    assert main(prune) == 0
    assert storage.exists(experts.imported[0].artifact)
    assert not storage.exists(trained)
    told = capsys.readouterr().out
    assert "1 imported experts of no results yet are kept (--imported removes them too)" in told
    assert "removed 1 artifacts" in told
    assert main([*prune, "--imported"]) == 0
    assert not storage.exists(experts.imported[0].artifact)


def test_the_name_of_an_imported_expert_is_its_content(tmp_path):
    path, _ = expert_file(tmp_path)
    found = make_plan(dataclasses.replace(EXPERIMENT, experts=(str(path),))).imported[0].artifact
    (tmp_path / "elsewhere").mkdir()
    copied = shutil.copy(path, tmp_path / "elsewhere/other.safetensors")
    assert make_plan(dataclasses.replace(EXPERIMENT, experts=(str(copied),))).imported[0].artifact == found
    state, _ = moved(seed=2)
    path.write_bytes(tower_bytes(state, read_tower(path)[1]))
    assert make_plan(dataclasses.replace(EXPERIMENT, experts=(str(path),))).imported[0].artifact != found


@pytest.mark.parametrize(
    ("about", "changes", "words"),
    [
        ({"origin": "openai"}, {}, "starts from the origin 'openai', and the origins are seed-0"),
        ({"task": "svhn"}, {}, "none of the 1 experts is of the archs"),
        ({"task": ""}, {}, "does not say its task"),
        ({}, {"archs": ("tiny-rn",)}, "none of the 1 experts"),
    ],
)
def test_experts_that_do_not_belong_are_refused(about, changes, words, tmp_path):
    path, _ = expert_file(tmp_path, **about)
    with pytest.raises(InputError, match=words):
        make_plan(dataclasses.replace(EXPERIMENT, experts=(str(path),), **changes))


def test_two_experts_of_one_place_and_files_that_are_not_there_are_refused(tmp_path):
    path, _ = expert_file(tmp_path)
    copied = shutil.copy(path, tmp_path / "copy.safetensors")
    with pytest.raises(InputError, match="name two of tiny-vit digits@seed-0"):
        make_plan(dataclasses.replace(EXPERIMENT, experts=(str(path), str(copied))))
    with pytest.raises(InputError, match="there is no such file"):
        make_plan(dataclasses.replace(EXPERIMENT, experts=("gone.safetensors",)))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="truncated"):
        make_plan(dataclasses.replace(EXPERIMENT, experts=(str(path),)))
