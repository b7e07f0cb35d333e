"""Fused origins: how they are written, what they are made of, and that they are exactly the experts' mean."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import expert_file
from rich.console import Console

from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment, Finetune
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.tower_files import describe, tower_bytes
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.pipeline.stages import up_to
from neulig_ray.stages import experts
from neulig_ray.stages.origins import Origin, OriginDownload, load_clip
from neulig_ray.storage.storage import Storage

ARCH = "tiny-rn"
BASE = Experiment(name="fusing", archs=(ARCH,), tasks=("digits", "textures"), n=(2,), methods=("expert",))
FUSED = "fused=fuse:seed-0:count+letters"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def plan(*origins: str, **changes: Any) -> Plan:
    return make_plan(dataclasses.replace(BASE, origins=origins, **changes))


def only_origin(*origins: str, **changes: Any) -> Origin:
    (found,) = plan(*origins, **changes).origins
    return found


def fingerprint(*origins: str, **changes: Any) -> str:
    return only_origin(*origins, **changes).artifact.fingerprint


# What a fused origin asks for -------------------------------------------------------------------------------


def test_its_experts_are_made_before_and_not_evaluated() -> None:
    found = plan(FUSED)
    assert [origin.label for origin in found.all_origins] == [f"{ARCH}/seed-0", f"{ARCH}/fused"]
    made = [expert.artifact.label for expert in found.sources.experts.values()]
    assert made == [f"{ARCH}.count@seed-0", f"{ARCH}.letters@seed-0"]
    assert {job.artifact.label for job in found.all_tasks} == {
        f"{task}.s0" for task in ("digits", "textures", "count", "letters")
    }
    (fused,) = found.fused_origins
    assert fused.artifact == found.origins[0].artifact
    assert set(fused.job.inputs) >= {expert.artifact for expert in found.sources.experts.values()}
    assert {expert.key for expert in found.experts} == {"digits@fused", "textures@fused"}
    assert {expert.origin for expert in found.experts} == {fused.artifact}
    assert {task for e in found.evaluations for task in e.tasks} == {"digits", "textures"}


def test_experts_are_shared_with_the_experiment_and_between_fused_origins() -> None:
    found = plan("seed-0", "one=fuse:seed-0:digits+count", "other=fuse:seed-0:count")
    own = {expert.key: expert.artifact for expert in found.experts}
    made = {expert.key: expert.artifact for expert in found.sources.experts.values()}
    assert made.keys() == {"digits@seed-0", "count@seed-0"}
    assert made["digits@seed-0"] == own["digits@seed-0"]
    assert [origin.name for origin in found.all_origins] == ["seed-0", "one", "other"]
    assert len(found.fused_origins) == 2


def test_what_names_it() -> None:
    """What its experts are, neither the name nor the order in which they are written."""
    first = fingerprint(FUSED)
    assert fingerprint("fuse:seed-0:letters+count") == first
    assert only_origin("fuse:seed-0:letters+count").name == "fuse.seed-0.letters.count"
    others = {
        fingerprint("fuse:seed-0:count"),
        fingerprint("fuse:seed-1:count+letters"),
        fingerprint(FUSED, finetune=Finetune(weight_decay=0.5)),
        fingerprint(FUSED, seed=1),
    }
    assert len(others - {first}) == 4
    assert fingerprint(FUSED, tasks=("digits", "signs")) == first


def test_two_names_of_one_mixture_are_refused() -> None:
    """Their experts would be the same trainings twice."""
    with pytest.raises(InputError, match=r"origins 'one' and 'other' of tiny-rn are the same model"):
        plan("one=fuse:seed-0:count+letters", "other=fuse:seed-0:letters+count")


def test_a_hub_model_can_be_fused() -> None:
    found = plan("fused=fuse:hf-hub:somebody/a-clip:count")
    assert [origin.name for origin in found.all_origins] == ["a-clip", "fused"]
    assert isinstance(found.all_origins[0].job, OriginDownload)
    found = plan("fused=fuse:mine=hf-hub:somebody/a-clip:count")
    assert [expert.key for expert in found.sources.experts.values()] == ["count@mine"]


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("fuse:seed-0", "write fuse:ORIGIN:TASK"),
        ("x=fuse:seed-0:", "write fuse:ORIGIN:TASK"),
        ("fuse:seed-0:count+count", "each task once"),
        ("x=fuse:seed-0:count+", "each task once"),
        ("fuse:seed-0:cuont", "unknown task 'cuont'.*'count'"),
        ("fuse:sead-0:count", "unknown origin 'sead-0'"),
        ("fuse:seed-0:a@b", "cannot be its name.*NAME=fuse:seed-0:a@b"),
    ],
)
def test_what_cannot_be_fused_is_refused(origin: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(origin)


def test_a_task_under_two_spellings_is_refused(tmp_path: Path) -> None:
    """They are one task, and would be one expert."""
    for folder in ("a/birds", "b/birds"):
        for split in ("train", "test"):
            for name in ("one", "two"):
                (tmp_path / folder / split / name).mkdir(parents=True)
                (tmp_path / folder / split / name / "1.png").write_bytes(b"")
    origin = f"x=fuse:seed-0:folder:{tmp_path}/a/birds+folder:{tmp_path}/b/birds"
    with pytest.raises(InputError, match="each task once"):
        plan(origin)


def test_imported_experts_take_the_place_of_fine_tuning_here_too(tmp_path: Path) -> None:
    given = {"archs": ("tiny-vit",), "experts": (str(expert_file(tmp_path)[0]),)}
    found = plan("seed-0", "fused=fuse:seed-0:digits+count", **given)
    assert [expert.key for expert in found.sources.experts.values()] == ["count@seed-0"]
    (fused,) = found.fused_origins
    assert found.imported[0].artifact in fused.job.inputs
    assert found.imported[0].key == "digits@seed-0"


def test_the_command_that_ends_with_origins_asks_for_the_workers_of_their_experts(storage: Storage) -> None:
    pipelines = [
        Pipeline(
            plan(origin, finetune=Finetune(workers=3)),
            RunContext(storage, ClusterSession(None, ()), Reporter(Console(), quiet=True)),
        )
        for origin in ("seed-0", FUSED)
    ]
    asked = [max(pipeline.takes(stage)[0] for stage in up_to("pretrain")) for pipeline in pipelines]
    assert asked == [1, 3]


def test_what_a_fused_origin_is_made_of_is_counted_among_what_is_to_do(storage: Storage) -> None:
    pipeline = Pipeline(
        plan(FUSED), RunContext(storage, ClusterSession(None, ()), Reporter(Console(), quiet=True))
    )
    made_of = [expert.artifact for expert in pipeline.plan.sources.experts.values()]
    assert made_of
    todo = {
        job.artifact
        for counted in pipeline.count(up_to("pretrain"))
        if counted.missing == counted.planned
        for job in counted.stage.jobs(pipeline.plan)
    }
    assert {*made_of} <= todo


# The fused model --------------------------------------------------------------------------------------------


def moved(state: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """An expert near the base: floats moved by up to a tenth, counters by whole steps."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor + 10 * seed
        for name, tensor in state.items()
    }


def make(given: str, storage: Storage) -> tuple[Any, Any, list[dict[str, torch.Tensor]]]:
    """The base's CLIP, the fused one, and the towers of made-up experts that it is made of."""
    found = plan(given)
    base, fused = found.all_origins
    base.job.store(storage)
    original = load_clip(storage, base.artifact, ARCH)
    states = []
    for seed, expert in enumerate(found.sources.experts.values(), 1):
        states.append(moved(original.visual.state_dict(), seed))
        metadata = describe(ARCHS[ARCH], "tower", task=expert.task, origin="seed-0")
        storage.commit(expert.artifact, {experts.FILE: tower_bytes(states[-1], metadata)}, {})
    job = fused.job
    job.run(storage)
    return original, load_clip(storage, fused.artifact, ARCH), states


def test_its_tower_is_exactly_the_experts_mean_and_its_text_tower_the_origins(storage: Storage) -> None:
    original, fused, (one, other) = make(FUSED, storage)
    tower = fused.visual.state_dict()
    for name, tensor in one.items():
        expected = (tensor + other[name]) / 2 if tensor.is_floating_point() else tensor
        assert torch.equal(tower[name], expected), name
    before, after = original.state_dict(), fused.state_dict()
    assert before.keys() == after.keys()
    text = [name for name in before if not name.startswith("visual.")]
    assert text
    assert all(torch.equal(before[name], after[name]) for name in text)
    assert not torch.equal(before["visual.conv1.weight"], after["visual.conv1.weight"])


def test_of_one_task_it_is_that_expert(storage: Storage) -> None:
    _, fused, (expert,) = make("after=fuse:seed-0:letters", storage)
    assert all(torch.equal(fused.visual.state_dict()[name], tensor) for name, tensor in expert.items())


def test_it_says_what_it_was_made_of(storage: Storage) -> None:
    make(FUSED, storage)
    found = plan(FUSED)
    info = storage.manifest(found.origins[0].artifact)["info"]
    assert info["origin"] == "fuse:seed-0:count+letters"
    made = found.sources.experts.values()
    assert info["experts"] == [expert.artifact.fingerprint for expert in made]
