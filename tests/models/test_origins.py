"""Where origins come from: names, files, folders, tags and hub repositories, and no network at all."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from open_clip import pretrained

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_clip
from neulig_ray.models.formats import tags
from neulig_ray.models.formats.export import whole_clip, write_open_clip
from neulig_ray.models.formats.origins import open_origin
from neulig_ray.models.origin_source import parse_origin
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.origins import FILE, OriginDownload, load_clip, plan_origin
from neulig_ray.storage.storage import Storage

REAL = Experiment(
    name="real", archs=("ViT-B-32-quickgelu",), origins=("openai",), tasks=("digits", "textures"), n=(2,)
)
HUB = "somebody/a-clip"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub's library, which the tests' environment keeps from asking the hub itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def place(cache: Path, repository: str, **files: bytes) -> None:
    """Files of a repository, as a download would have left them in the cache."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("0" * 40)
    folder = root / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


def checkpoint(tmp_path: Path, name: str = "tiny-vit", seed: int = 5) -> tuple[Path, dict[str, torch.Tensor]]:
    """An open_clip checkpoint of random weights, and its state."""
    clip = build_clip(ARCHS[name], seed=seed)
    path = tmp_path / f"{name}-{seed}.safetensors"
    write_open_clip(path, clip.visual.state_dict(), clip, {"arch": name}, "test")
    return path, whole_clip(clip.visual.state_dict(), clip)


def same(clip, state) -> bool:
    found = clip.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


# Origins by name


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        ("seed-3", "seed-3", "seed"),
        ("openai", "openai", "tag"),
        ("weights/my.clip.safetensors", "my.clip", "path"),
        ("finetuned.pt", "finetuned", "path"),
        ("./folder/clip", "clip", "path"),
        ("hf-hub:laion/CLIP-ViT-B-32", "CLIP-ViT-B-32", "hub"),
        ("laion=hf-hub:laion/CLIP-ViT-B-32", "laion", "hub"),
        ("openai=/models/ViT-B-32.pt", "openai", "path"),
    ],
)
def test_origins_have_short_names(given, name, kind):
    source = parse_origin(given)
    assert (source.name, source.kind) == (name, kind)


@pytest.mark.parametrize("given", ["some@where.safetensors", "dir/a+b.pt", "x=seed-1"])
def test_a_name_that_would_break_keys_is_refused(given):
    with pytest.raises(InputError, match="name"):
        parse_origin(given)


def test_several_origins_of_one_arch_each_have_their_own_experts_and_heads():
    plan = make_plan(
        dataclasses.replace(REAL, origins=("openai", "laion400m_e32", "other=hf-hub:a/b"), mixed_origins=(2,))
    )
    assert [origin.label for origin in plan.origins] == [
        "ViT-B-32-quickgelu/openai", "ViT-B-32-quickgelu/laion400m_e32", "ViT-B-32-quickgelu/other",
    ]  # fmt: skip
    assert len({origin.artifact.fingerprint for origin in plan.origins}) == 3
    assert all(isinstance(origin.job, OriginDownload) for origin in plan.origins)
    assert len(plan.experts) == len(plan.heads) == 6
    assert "openai+laion400m_e32+other" in {group.origin for group in plan.groups}


def test_two_origins_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"two of them are called 'clip'"):
        make_plan(dataclasses.replace(REAL, origins=("hf-hub:a/clip", "hf-hub:b/clip")))


# Origins as artifacts


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_open_clip_checkpoint_becomes_an_origin_in_full_precision(suffix, tmp_path):
    clip = build_clip(ARCHS["tiny-rn"], seed=7)
    path = tmp_path / f"mine{suffix}"
    write_open_clip(path, clip.visual.state_dict(), clip, {}, "test")
    storage = Storage(str(tmp_path / "storage"))
    origin = plan_origin(Experiment(name="x"), "tiny-rn", str(path))
    assert (origin.name, origin.job.path) == ("mine", path)
    origin.job.store(storage)
    assert same(load_clip(storage, origin.artifact, "tiny-rn"), clip.state_dict())
    info = storage.manifest(origin.artifact)["info"]
    assert info["source"] == path.name
    assert len(info["sha256"]) == 64


def test_the_training_checkpoint_of_a_wrapped_model_is_an_origin(tmp_path):
    clip = build_clip(ARCHS["tiny-vit"], seed=3)
    state = {f"module.{name}": tensor for name, tensor in clip.state_dict().items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}, tmp_path / "epoch_3.pt"
    )
    opened = open_origin(ARCHS["tiny-vit"], parse_origin(str(tmp_path / "epoch_3.pt")))
    assert same(opened.clip, clip.state_dict())


def test_a_tower_alone_is_no_origin(tmp_path):
    path = tmp_path / "tower.pt"
    state = build_clip(ARCHS["tiny-vit"]).visual.state_dict()
    torch.save({f"visual.{name}": tensor for name, tensor in state.items()}, path)
    with pytest.raises(InputError, match=r"tower\.pt has no text tower.*neulig import"):
        open_origin(ARCHS["tiny-vit"], parse_origin(str(path)))


def test_a_file_that_is_called_as_a_tag_is_held_to_the_tags_activation(tmp_path):
    path, _ = checkpoint(tmp_path)
    with pytest.raises(InputError, match="use the arch ViT-B-32-quickgelu"):
        make_plan(dataclasses.replace(REAL, archs=("ViT-B-32",), origins=(f"openai={path}",)))


def test_a_tag_is_fetched_once_by_a_job_and_named_by_arch_and_tag(tmp_path, hub_cache, monkeypatch):
    entry = {"hf_hub": f"{HUB}/", "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", {"made_up": entry})
    path, state = checkpoint(tmp_path)
    place(hub_cache, HUB, open_clip_model__safetensors=path.read_bytes())
    storage = Storage(str(tmp_path / "storage"))
    origin = plan_origin(Experiment(name="x"), "tiny-vit", "made_up")
    origin.job.run(storage)
    assert same(load_clip(storage, origin.artifact, "tiny-vit"), state)
    info = storage.manifest(origin.artifact)["info"]
    assert info["source"] == "tag made_up"
    assert plan_origin(Experiment(name="y", seed=4), "tiny-vit", "made_up").artifact == origin.artifact
    assert storage.load(origin.artifact, FILE)[8:9] == b"{"


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_hub_repository_of_either_library_is_an_origin(library, tmp_path, hub_cache):
    from neulig_ray.models.formats.export import write_huggingface

    arch = ARCHS["tiny-vit"]
    path, state = checkpoint(tmp_path)
    if library == "open_clip":
        config = json.dumps(
            {"model_cfg": dict(arch.config), "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073]}}
        )
        place(
            hub_cache,
            HUB,
            open_clip_config__json=config.encode(),
            open_clip_model__safetensors=path.read_bytes(),
        )
    else:
        clip = build_clip(arch, seed=5)
        write_huggingface(tmp_path / "hf", clip.visual.state_dict(), clip, arch, {}, "test")
        files = {f.name.replace(".", "__"): f.read_bytes() for f in (tmp_path / "hf").iterdir()}
        place(hub_cache, HUB, **files)
    origin = plan_origin(Experiment(name="x"), "tiny-vit", f"hf-hub:{HUB}")
    assert origin.name == "a-clip"
    storage = Storage(str(tmp_path / "storage"))
    origin.job.run(storage)
    assert same(load_clip(storage, origin.artifact, "tiny-vit"), state)


def test_a_folder_of_another_arch_or_of_other_images_is_refused(tmp_path):
    path, _ = checkpoint(tmp_path)
    path.rename(tmp_path / "open_clip_model.safetensors")
    config = tmp_path / "open_clip_config.json"
    source = parse_origin(str(tmp_path))
    config.write_text(json.dumps({"model_cfg": dict(ARCHS["tiny-rn"].config)}))
    with pytest.raises(InputError, match=r"not of 'tiny-vit' \(differs in vision_cfg"):
        open_origin(ARCHS["tiny-vit"], source)
    plain = {key: value for key, value in ARCHS["tiny-vit"].config.items() if key != "quick_gelu"}
    config.write_text(json.dumps({"model_cfg": plain}))
    with pytest.raises(InputError, match="differs in quick_gelu"):
        open_origin(ARCHS["tiny-vit"], source)
    mean = {"model_cfg": dict(ARCHS["tiny-vit"].config), "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    config.write_text(json.dumps(mean))
    with pytest.raises(InputError, match=r"mean \(0\.5, 0\.5, 0\.5\)"):
        open_origin(ARCHS["tiny-vit"], source)


# No network: what these tests can really see


@pytest.mark.parametrize(
    ("arch", "given", "words"),
    [
        (
            "ViT-B-32-quickgelu",
            "openai",
            ["origin 'openai' of ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.openai/resolve/main/"
             "open_clip_model.safetensors", "openai=/path/to/open_clip_model.safetensors"],
        ),
        (
            "tiny-vit",
            f"hf-hub:{HUB}",
            [f"hub repository '{HUB}'", f"{HUB}/resolve/main/config.json", "a-clip=/path/to/folder"],
        ),
    ],
)  # fmt: skip
def test_an_unreachable_hub_tells_what_from_where_and_how_to_do_without(
    arch, given, words, hub_cache, tmp_path
):
    origin = plan_origin(Experiment(name="x"), arch, given)
    with pytest.raises(InputError) as caught:
        origin.job.run(Storage(str(tmp_path / "storage")))
    for word in [*words, "cannot be downloaded", "HF_HOME", "HF_HUB_OFFLINE"]:
        assert word in str(caught.value)
    assert not Storage(str(tmp_path / "storage")).exists(origin.artifact)


def test_a_damaged_download_is_named(tmp_path, hub_cache, monkeypatch):
    monkeypatch.setitem(
        pretrained._PRETRAINED, "tiny-vit", {"made_up": {"hf_hub": f"{HUB}/", "quick_gelu": True}}
    )
    path, _ = checkpoint(tmp_path)
    place(hub_cache, HUB, open_clip_model__safetensors=path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"open_clip_model\.safetensors is truncated"):
        open_origin(ARCHS["tiny-vit"], parse_origin("made_up"))


@pytest.mark.parametrize(
    ("hub", "expected"),
    [
        ("a/b/", ("a/b", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])),
        ("a/b/own.bin", ("a/b", ["own.safetensors", "own.bin"])),
    ],
)
def test_the_files_of_a_tag_on_the_hub_are_those_of_its_entry(hub, expected):
    assert tags.on_hub({"hf_hub": hub}) == expected


def test_a_file_from_a_url_lies_where_open_clip_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = {"url": "https://example.org/own.pt"}
    assert tags.on_hub(entry)[0] == ""
    place = tags.from_url(entry)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    assert Path(pretrained.download_pretrained(entry)) == place
