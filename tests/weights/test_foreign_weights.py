"""Weights as training programs and libraries leave them: several models in a file, folders, odd things."""

import json
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import ARCH, equal, imported, moved
from merge_cli_helpers import Run, assert_equal, refused
from safetensors.torch import load_file, save_file

from neulig_ray.errors import InputError
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.models.formats.checkpoints import read_checkpoint
from neulig_ray.models.formats.export import whole_clip
from neulig_ray.models.tower_files import read_tower
from neulig_ray.weights.state_dicts import open_checkpoint
from neulig_ray.weights.tensor_file import TensorFile

State = dict[str, torch.Tensor]
A, B = (moved(seed=seed)[0] for seed in (1, 2))


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


class Module(torch.nn.Module):
    """A module that holds a tower's state under `visual.`."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = f"visual.{name}".split(".")
            part: torch.nn.Module = self
            for step in path:
                if step not in part._modules:
                    part.add_module(step, torch.nn.Module())
                part = getattr(part, step)
            part.register_buffer(last, tensor)


# F21: files with several models -----------------------------------------------------------------------------

SEVERAL: dict[str, tuple[Callable[[], Any], str, str]] = {
    "F21-model and ema": (lambda: {"model": A, "ema": B, "epoch": 3}, "model", "ema"),
    "F21-ema and model": (lambda: {"ema": B, "model": A}, "model", "ema"),
    "state_dict and ema_state_dict": (
        lambda: {"state_dict": A, "ema_state_dict": B}, "state_dict", "ema_state_dict"
    ),
    "params and params_ema": (lambda: {"params": A, "params_ema": B}, "params", "params_ema"),
    "student and teacher": (
        lambda: {"student": under("module.", A), "teacher": under("backbone.", B)}, "student", "teacher"
    ),
    "an ema without some": (
        lambda: {"model": A, "ema": {n: t for n, t in B.items() if n != "proj"}}, "model", "ema"
    ),
    "a level down": (lambda: {"checkpoint": {"model": A, "ema": B}}, "checkpoint.model", "checkpoint.ema"),
    "with an optimiser": (
        lambda: {"model": A, "model_ema": B, "optim": {"state": under("exp_avg.", A)}}, "model", "model_ema"
    ),
    "three": (lambda: {"model": A, "swa": B, "model_best": A}, "model", "swa"),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_files_with_several_models_are_refused_until_one_is_chosen(
    neulig: Run, tmp_path: Path, case: str
) -> None:
    make, first, second = SEVERAL[case]
    source, other, out = tmp_path / "several.pt", tmp_path / "other.safetensors", tmp_path / "m.safetensors"
    torch.save(make(), source)
    save_file(moved(seed=3)[0], other)
    command = ["average", "--experts", source, other, "--out", out]
    told = refused(neulig, tmp_path, *command)
    assert imported(source, out) == 2
    with pytest.raises(InputError) as error:
        read_checkpoint(source)
    for text in (told, str(error.value)):
        assert f"several.pt: it holds several models, {first!r} and " in text or f"and {first!r}" in text
        assert repr(second) in text
        assert "--weights-key KEY" in text
    told = refused(neulig, tmp_path, *command, "--weights-key", "nothing")
    assert repr(second) in told
    for key, state in ((first, A), (second, B)):
        found = open_checkpoint(source, key).source
        name = next(name for name in found.specs if name.endswith("conv1.weight"))
        assert torch.equal(found.read(name), state["conv1.weight"].flatten())
        tensors = read_checkpoint(source, key)
        assert tensors.key == key
        assert torch.equal(tensors.tensors[name].flatten(), state["conv1.weight"].flatten())


def test_what_is_chosen_is_told_by_both(neulig: Run, tmp_path: Path) -> None:
    source, other, out = tmp_path / "several.pt", tmp_path / "other.safetensors", tmp_path / "m.safetensors"
    torch.save({"model": A, "ema": B}, source)
    save_file(moved(seed=3)[0], other)
    command = ["merge", "average", "--experts", source, other, "--out", out, "--weights-key", "ema"]
    status, _, told = neulig(*command)
    assert status == 0
    assert "several.pt: the weights are those of 'ema'; left out: model" in told
    assert_equal(load_file(out), merge_with(METHODS["average"], {"a": B, "b": load_file(other)}))
    given = ["--arch", "tiny-vit", "--task", "digits", "--origin", "seed-0", "--weights-key", "ema"]
    status, told, _ = neulig("import", source, *given, "--out", out)
    assert status == 0
    assert "its weights are those of 'ema'; left out: model" in told
    assert equal(read_tower(out, ARCH)[0], B)


@pytest.mark.parametrize("head", ["ema.", "model_ema.visual.", "teacher.backbone.visual."])
def test_several_models_in_one_safetensors_file(neulig: Run, tmp_path: Path, head: str, capsys: Any) -> None:
    """merge takes it as it is, all tensors by their names; a tower is one of the two."""
    source, out = tmp_path / "several.safetensors", tmp_path / "m.safetensors"
    save_file(under("model.visual.", A) | under(head, B), source)
    assert imported(source, out) == 2
    told = capsys.readouterr().err
    key = head.removesuffix("visual.").removesuffix(".")
    assert f"'model' and {key!r}" in told or f"{key!r} and 'model'" in told
    assert "--weights-key KEY" in told
    assert imported(source, out, "--weights-key", key) == 0
    assert equal(read_tower(out, ARCH)[0], B)
    save_file(under("model.visual.", B) | under(head, A), tmp_path / "other.safetensors")
    command = ["merge", "average", "--experts", source, tmp_path / "other.safetensors", "--out", out]
    assert neulig(*command)[0] == 0
    assert len(load_file(out)) == 2 * len(A)
    assert neulig(*command, "--weights-key", key)[0] == 0
    assert len(load_file(out)) == len(A)


ONE: dict[str, tuple[Callable[[], Any], str]] = {
    "a state dict": (lambda: A, ""),
    "an ordered one": (lambda: OrderedDict(A), ""),
    "model": (lambda: {"model": A, "epoch": 3, "best": torch.tensor(0.5)}, "model"),
    "state_dict": (lambda: {"state_dict": A, "optimizer_states": [{"state": {0: {"m": A}}}]}, "state_dict"),
    "another key": (lambda: {"net": A, "args": {"lr": 0.1}}, "net"),
    "an optimiser of the same names": (
        lambda: {"model": A, "optimizer": {"exp_avg": A, "exp_avg_sq": A}, "lr_scheduler": {"x": A}}, "model"
    ),
    "a random state": (lambda: {"model": A, "rng_state": torch.zeros(5056, dtype=torch.uint8)}, "model"),
    "levels": (lambda: {"checkpoint": {"state_dict": A}}, "checkpoint.state_dict"),
    "a small head beside": (
        lambda: {"model": A, "head": {"weight": torch.ones(10, 128), "bias": torch.ones(10)}}, "model"
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", ["", "ema"], ids=["no key", "a key of other files"])
@pytest.mark.parametrize("case", ONE)
def test_files_of_one_model_need_no_choice(tmp_path: Path, case: str, key: str) -> None:
    make, where = ONE[case]
    torch.save(make(), tmp_path / "one.pt")
    if key and case == "a small head beside":
        return  # there is a choice
    checkpoint = read_checkpoint(tmp_path / "one.pt", key)
    assert equal(checkpoint.tensors, A)
    assert checkpoint.key == where
    assert open_checkpoint(tmp_path / "one.pt", key).source.specs.keys() == A.keys()


def test_parts_of_one_model_stay_together(neulig: Run, tmp_path: Path) -> None:
    """An encoder and a decoder are alike, and no two models."""
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(paths):
        part = {"fc.weight": torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))}
        torch.save({"encoder": part, "decoder": {n: 2 * t for n, t in part.items()}}, path)
    out = tmp_path / "m.safetensors"
    assert neulig("merge", "average", "--experts", *paths, "--out", out)[0] == 0
    assert sorted(load_file(out)) == ["decoder.fc.weight", "encoder.fc.weight"]


def test_a_whole_module_is_for_import(neulig: Run, tmp_path: Path) -> None:
    torch.save(Module(A), tmp_path / "module.pt")
    save_file(A, tmp_path / "a.safetensors")
    experts = ["--experts", tmp_path / "a.safetensors", tmp_path / "module.pt"]
    told = refused(neulig, tmp_path, "average", *experts, "--out", tmp_path / "m.safetensors")
    assert "whole module (test_foreign_weights.Module)" in told
    assert imported(tmp_path / "module.pt", tmp_path / "m.safetensors") == 0
    assert equal(read_tower(tmp_path / "m.safetensors", ARCH)[0], A)


# 36: what is no tensor --------------------------------------------------------------------------------------


class Config:
    """Something that Lightning keeps beside the weights."""


ODD: dict[str, Any] = {
    "36-_extra_state": {"block._extra_state": {"scale": 3}},
    "an _extra_state of bytes": {"block._extra_state": b"\x01\x02"},
    "an _extra_state of nothing": {"block._extra_state": None},
    "an epoch": {"epoch": 3},
    "a list": {"history": [1.0, 2.0]},
    "a text": {"arch": "ViT"},
    "an object": {"hyper_parameters": Config()},
}


@pytest.mark.parametrize("nest", [None, "state_dict"])
@pytest.mark.parametrize("case", ODD)
def test_what_is_no_tensor_is_left_out_with_a_note(
    neulig: Run, tmp_path: Path, case: str, nest: str | None
) -> None:
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    states = [{"w": torch.randn(5, generator=torch.Generator().manual_seed(seed))} for seed in range(2)]
    for state, path in zip(states, paths, strict=True):
        whole = state | ODD[case]
        torch.save({nest: whole} if nest else whole, path)
    out = tmp_path / "m.safetensors"
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", out)
    assert status == 0, told
    name = next(iter(ODD[case]))
    assert f"note: {paths[0]}: left out of the merge, being no tensors: {name!r} (" in told
    assert_equal(load_file(out), {"w": (states[0]["w"] + states[1]["w"]) / 2})


@pytest.mark.parametrize("kind", ["sparse", "quantised", "float8", "complex"])
def test_tensors_that_cannot_be_merged_are_not_left_out(neulig: Run, tmp_path: Path, kind: str) -> None:
    odd = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
        "complex": lambda: torch.ones(3, dtype=torch.complex64),
    }
    paths = [tmp_path / f"{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(paths):
        torch.save({"w": torch.ones(2) * seed, "odd": odd[kind]()}, path)
    told = refused(neulig, tmp_path, "average", "--experts", *paths, "--out", tmp_path / "m.safetensors")
    assert f"{paths[0]}: 'odd' is " in told
    assert "convert it" in told


# F25: folders and indices -----------------------------------------------------------------------------------

LAYOUTS = {
    "F25-model alone": ("model.safetensors", ()),
    "F25-an index": ("model.safetensors.index.json", ()),
    "the index named": ("model.safetensors.index.json", ("model.safetensors.index.json",)),
    "of Hugging Face": ("model.safetensors", ("config.json",)),
    "of open_clip": ("open_clip_model.safetensors", ("open_clip_config.json",)),
    "of open_clip, older": ("open_clip_pytorch_model.bin", ("open_clip_config.json",)),
    "pytorch_model.bin": ("pytorch_model.bin", ("config.json",)),
    "its index": ("pytorch_model.bin.index.json", ("config.json",)),
    "its index named": ("pytorch_model.bin.index.json", ("pytorch_model.bin.index.json",)),
}


def laid_out(folder: Path, state: State, file: str, beside: tuple[str, ...]) -> Path:
    """The model in a folder; what to name on the command line."""
    folder.mkdir()
    for name in beside:
        if name.endswith("config.json"):
            (folder / name).write_text("{}")

    def save(part: State, name: str) -> None:
        part = {name: tensor.clone() for name, tensor in part.items()}
        save_file(part, folder / name) if name.endswith("safetensors") else torch.save(part, folder / name)

    if file.endswith(".index.json"):
        stem, _, suffix = file.removesuffix(".index.json").rpartition(".")
        index = {}
        for number, name in enumerate(state):
            index[name] = f"{stem}-{number % 3 + 1:05d}-of-00003.{suffix}"
        for shard in set(index.values()):
            save({n: t for n, t in state.items() if index[n] == shard}, shard)
        (folder / file).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    else:
        save(state, file)
    return folder / file if file in beside else folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_and_indices_are_read_for_experts_and_base(
    neulig: Run, models: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    states = {name: load_file(models[name]) for name in ("base", "a", "b")}
    base, *experts = (
        laid_out(tmp_path / f"{n}-model", state, *LAYOUTS[layout]) for n, state in states.items()
    )
    out = tmp_path / "m.safetensors"
    command = [
        "merge",
        "task-arithmetic",
        "--base",
        base,
        "--experts",
        *experts,
        "--out",
        out,
        "--scaling",
        "0.5",
    ]
    status, _, told = neulig(*command)
    assert status == 0, told
    expected = {name: states[name] for name in "ab"}
    merged = merge_with(METHODS["task-arithmetic"], expected, states["base"], {"scaling": 0.5})
    assert_equal(load_file(out), merged)
    about = json.loads(TensorFile(out).metadata["neulig"])
    labels = [expert["label"] for expert in about["experts"]]
    assert len(set(labels)) == 2
    assert all("model" in label for label in labels)
    assert about["experts"][0]["bytes"] > 1000


def test_a_folder_and_its_file_are_one_model(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "f", load_file(models["a"]), "model.safetensors", ())
    command = [
        "average",
        "--experts",
        folder,
        folder / "model.safetensors",
        "--out",
        tmp_path / "m.safetensors",
    ]
    assert "are the same file" in refused(neulig, tmp_path, *command)
    split = laid_out(tmp_path / "s", load_file(models["b"]), "model.safetensors.index.json", ())
    shard = next(split.glob("model-00001*"))
    before = shard.read_bytes()
    told = refused(neulig, tmp_path, "average", "--experts", folder, split, "--out", shard)
    assert f"is the input '{split}: {shard.name}'" in told
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["lora.safetensors", "other.bin"], ["in it: lora.safetensors, other.bin; name one of them"]),
        (["notes.txt"], ["none is in it"]),
        ([], ["none is in it"]),
        ([f"{i}.safetensors" for i in range(30)], ["and 20 more"]),
    ],
    ids=["F25-others", "texts", "nothing", "many"],
)
def test_a_folder_of_other_files_says_what_is_there(
    neulig: Run, models: dict[str, Path], tmp_path: Path, files: list[str], words: list[str]
) -> None:
    (tmp_path / "f").mkdir()
    for name in files:
        (tmp_path / "f" / name).write_bytes(b"x")
    experts = ["--experts", models["a"], tmp_path / "f"]
    told = refused(neulig, tmp_path, "average", *experts, "--out", tmp_path / "m.safetensors")
    for word in (*words, "is a folder with none of", "model.safetensors"):
        assert word in told


def test_shards_are_read_where_they_lie(tmp_path: Path) -> None:
    """By slices, like any file: opening a model of several files reads none of its numbers."""
    state = {f"layer.{i}": torch.arange(1000.0) + i for i in range(6)}
    folder = laid_out(tmp_path / "f", state, "model.safetensors.index.json", ())
    source = open_checkpoint(folder).source
    assert torch.equal(source.read("layer.3", 10, 20), state["layer.3"][10:20])
    into = torch.empty(7)
    source.read_into(into, "layer.5", 990)
    assert torch.equal(into, state["layer.5"][990:997])
    os.truncate(next(folder.glob("*00001*")), 8000)
    with pytest.raises(Exception, match=r"shorter|truncated"):
        [source.read(name) for name in source.specs]


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read_where_their_numbers_lie(tmp_path: Path, zipped: bool) -> None:
    state = {
        "w": torch.arange(5000.0).view(50, 100),
        "t": torch.arange(600).view(20, 30).T,
        "n": torch.ones(0),
    }
    torch.save(state, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    source = open_checkpoint(tmp_path / "f.pt").source
    assert torch.equal(source.read("w", 4321, 4400), state["w"].flatten()[4321:4400])
    for at in range(0, 600, 77):
        assert torch.equal(source.read("t", at, min(at + 77, 600)), state["t"].flatten()[at : at + 77])
    assert source.read("n").numel() == 0
    into = torch.empty(10)
    source.read_into(into, "t", 5)
    assert torch.equal(into, state["t"].flatten()[5:15].float())


def test_a_folder_with_a_whole_clip_and_its_index_is_imported(tmp_path: Path) -> None:
    state, clip = moved()
    whole = whole_clip(state, clip)
    folder = laid_out(tmp_path / "f", whole, "model.safetensors.index.json", ())
    assert imported(folder / "model.safetensors.index.json", tmp_path / "out.safetensors") == 0
    assert equal(read_tower(tmp_path / "out.safetensors", ARCH)[0], state)


# 33: the limit of open files --------------------------------------------------------------------------------


@contextmanager
def open_files(soft: int) -> Iterator[None]:
    """At most `soft` files more than the suite has open already."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = max(int(entry) for entry in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.safetensors" for i in range(150)]
    for i, path in enumerate(paths):
        save_file({"w": torch.full((2,), float(i))}, path)
    return paths


@pytest.mark.parametrize("most", [64, 100, 128], ids=lambda most: f"33-{most}")
def test_more_models_than_files_may_be_open_raise_the_limit(
    neulig: Run, many: list[Path], tmp_path: Path, most: int
) -> None:
    out = tmp_path / "m.safetensors"
    with open_files(most):
        status, _, told = neulig("merge", "average", "--experts", *many, "--out", out)
    assert status == 0, told
    assert load_file(out)["w"].tolist() == [74.5, 74.5]


@pytest.mark.parametrize("kind", ["safetensors", "torch", "shards"], ids=lambda kind: f"33-{kind}")
def test_a_limit_that_cannot_be_raised_is_told_with_the_remedy(
    many: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = many[0]
    if kind == "torch":
        torch.save({"w": torch.ones(2)}, path := tmp_path / "w.pt")
    if kind == "shards":
        path = laid_out(
            tmp_path / "f", load_file(many[0]) | {"v": torch.ones(1)}, "model.safetensors.index.json", ()
        )
    handles = []
    with open_files(128):
        monkeypatch.setattr(resource, "getrlimit", lambda what: (128, 128))
        try:
            while len(handles) < 2000:
                handles.append(os.open(many[1], os.O_RDONLY))
        except OSError:
            pass
        try:
            with pytest.raises(
                InputError, match=r"too many files are open; this process may have 128 .*ulimit -n 4096"
            ):
                open_checkpoint(path)
            os.close(handles.pop())  # one is enough to open the file, and not to have its header read
            with pytest.raises(InputError, match="ulimit -n 4096"):
                TensorFile(many[0])
        finally:
            monkeypatch.undo()
            for handle in handles:
                os.close(handle)
