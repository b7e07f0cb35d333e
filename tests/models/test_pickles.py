"""Pickled checkpoints: their tensors come out, and nothing in them is run."""

import collections
import io
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_clip
from neulig_ray.models.formats.checkpoints import read_checkpoint
from neulig_ray.models.formats.towers import find_tower
from neulig_ray.weights import pickles
from neulig_ray.weights.pickles import pickled_tensors
from neulig_ray.weights.unpickling import formats, rebuilding
from neulig_ray.weights.unpickling.choice import TensorNames
from neulig_ray.weights.unpickling.objects import Inert, Unreadable

ARCH = ARCHS["tiny-vit"]


def read(data, left):
    """The object in the bytes of a file, in this process."""
    return formats.read(io.BytesIO(data), left, formats.SideFile(io.BytesIO(), len(data)))


def dump(model, path):
    with path.open("wb") as stream:
        pickle.dump(model, stream)


def dump_old(model, path):
    with path.open("wb") as stream:
        pickle.dump(model, stream, protocol=2)


FORMATS = {
    "pickle": dump,
    "pickle-2": dump_old,
    "torch": torch.save,
    "torch-old": lambda model, path: torch.save(model, path, _use_new_zipfile_serialization=False),
}


@pytest.fixture
def foreign_module():
    """task_vectors' ImageEncoder, and `close`, after which its package `src` is gone, as it is for us."""
    src, modeling = types.ModuleType("src"), types.ModuleType("src.modeling")

    class ImageEncoder(nn.Module):
        def __init__(self, clip):
            super().__init__()
            self.model = clip
            del self.model.transformer
            self.cache_dir = "~/openclip-cachedir"

    ImageEncoder.__module__, ImageEncoder.__qualname__ = "src.modeling", "ImageEncoder"
    modeling.ImageEncoder = ImageEncoder
    sys.modules.update({"src": src, "src.modeling": modeling})

    def close():
        for name in ("src", "src.modeling"):
            sys.modules.pop(name, None)

    yield ImageEncoder, close
    close()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: "43" if form == "torch" else form)
def test_a_pickled_image_encoder_gives_its_visual_tower(form, foreign_module, tmp_path):
    encoder, close = foreign_module
    clip = build_clip(ARCH, seed=11)
    expected = {name: tensor.clone() for name, tensor in clip.visual.state_dict().items()}
    path = tmp_path / "finetuned.pt"
    FORMATS[form](encoder(clip), path)
    close()
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False) if form.startswith("torch") else pickle.loads(path.read_bytes())
    checkpoint = read_checkpoint(path)
    tower = find_tower(checkpoint, ARCH)
    assert all(torch.equal(tower.state[name], tensor) for name, tensor in expected.items())
    assert tower.state.keys() == expected.keys()
    assert tower.layout == "open_clip (model.visual.*)"
    # What is left of the text side is left out; attn_mask, no part of a state dict, never came.
    assert sorted(tower.dropped) == [
        "model.ln_final.bias", "model.ln_final.weight", "model.logit_scale", "model.positional_embedding",
        "model.text_projection", "model.token_embedding.weight",
    ]  # fmt: skip
    assert "src.modeling.ImageEncoder" in checkpoint.inert


class Evil:
    """Unpickled by the usual means, this writes a file."""

    def __init__(self, marker, call=os.system):
        self.marker, self.call = marker, call

    def __reduce__(self):
        command = f"touch {self.marker}"
        if self.call is os.system:
            return os.system, (command,)
        if self.call is exec:
            return exec, (f"import os; os.system({command!r})",)
        return subprocess.Popen, (["touch", str(self.marker)],)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch-old"])
@pytest.mark.parametrize("call", [os.system, exec, subprocess.Popen], ids=lambda call: call.__name__)
def test_a_hostile_pickle_does_nothing_and_is_refused(form, call, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    FORMATS[form](Evil(marker, call), path)
    found = read(path.read_bytes(), left := set())
    assert isinstance(found, Inert)
    assert any(call.__name__ in name for name in left)
    assert not marker.exists()


def test_hostile_parts_beside_tensors_leave_the_tensors_alone(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    weights = collections.OrderedDict(w=torch.arange(6.0).view(2, 3), evil=Evil(marker), n=3)
    torch.save({"state_dict": weights, "hook": Evil(marker, exec)}, path)
    tensors, file = pickled_tensors(path)
    assert list(tensors) == ["w"]
    assert torch.equal(tensors["w"], torch.arange(6.0).view(2, 3))
    assert file.inert == ("__builtin__.exec", "posix.system")
    assert file.odd == {"evil": "posix.system", "n": "int"}
    assert not marker.exists()


def test_a_refused_pickle_says_what_it_asked_for_and_what_to_do(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    dump(Evil(marker), path)
    with pytest.raises(
        InputError, match=r"(?s)evil\.pt cannot be read: it holds no tensors.*posix\.system.*safetensors"
    ):
        pickled_tensors(path)
    assert not marker.exists()


def _opcodes(*lines: bytes) -> bytes:
    return b"".join(lines) + b"."


HOSTILE = {
    "a name behind our functions": _opcodes(  # _rebuild_from_type_v2(os.system, object, ("touch X",), {})
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncbuiltins\nobject\n(Vtouch MARKER\nt}tR"
    ),
    "attributes of the tables": _opcodes(  # setstate of a function that is rebuilt
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}V__globals__\ncos\nsystem\nstb"
    ),
    "a constructor by NEWOBJ": _opcodes(b"\x80\x02csubprocess\nPopen\n(Vtouch MARKER\nt\x81"),
    "an instance by INST": _opcodes(b"(Vtouch MARKER\nios\nsystem\n"),
    "an extension code": _opcodes(b"\x80\x02\x82\x01"),
    "a persistent object": _opcodes(b"Vtouch MARKER\nQ"),
    "a dotted name": _opcodes(b"\x80\x04cbuiltins\n__import__\n(Vos\ntRVsystem\n(Vtouch MARKER\nt"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hand_made_opcodes_reach_nothing(case, tmp_path):
    data = HOSTILE[case].replace(b"MARKER", str(tmp_path / "marker").encode())
    try:
        found = read(data, set())
    except Exception:
        found = None
    assert not TensorNames().count(found)
    assert not (tmp_path / "marker").exists()
    assert rebuilding.REBUILT["torch._utils", "_rebuild_tensor_v2"] is rebuilding._tensor


def test_a_tensor_that_claims_more_than_is_stored_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.ones(1).expand(10**12)}, path)
    with pytest.raises(InputError, match="larger than what is stored"):
        pickled_tensors(path)


@pytest.mark.parametrize("kept", [10, 700, -2000, -3])
@pytest.mark.parametrize("form", ["torch", "torch-old", "pickle"])
def test_a_cut_file_is_noticed(form, kept, tmp_path):
    path = tmp_path / "cut.pt"
    FORMATS[form]({"w": torch.ones(2000), "v": torch.zeros(5)}, path)
    data = path.read_bytes()[:kept]
    with pytest.raises(Exception):  # noqa: B017, PT011 - any: the script reports whichever it is
        read(data, set())


def test_what_is_no_checkpoint_is_refused_by_name_with_the_remedy(tmp_path):
    path = tmp_path / "suspect.pt"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(
        InputError, match=r"suspect\.pt cannot be read: .*UnpicklingError.*save its state dict"
    ):
        pickled_tensors(path)
    with pytest.raises(Unreadable, match=r"not one that torch\.save wrote"):
        read(b"PK\x05\x06" + bytes(18), set())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_called_that(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "jit.pt"))
    with pytest.raises(Unreadable, match="TorchScript"):
        read((tmp_path / "jit.pt").read_bytes(), set())


def test_dtypes_shared_storages_views_and_parameters_come_out_right(tmp_path):
    base = torch.arange(12.0)
    state = {
        "view": base[2:8].view(2, 3).T, "again": base, "half": torch.ones(3).half(),
        "brain": torch.full((2,), 0.5).bfloat16(), "count": torch.tensor(7), "none": torch.empty(0, 4),
        "parameter": nn.Parameter(torch.ones(2)), "flags": torch.tensor([True, False]), "text": "kept out",
        "deep": {"er": [torch.ones(1)], "w": torch.zeros(1, dtype=torch.uint8)},
    }  # fmt: skip
    for form in ("torch", "torch-old", "pickle"):
        FORMATS[form](state, tmp_path / form)
        found, file = pickled_tensors(tmp_path / form)
        assert file.odd == {"text": "str"}
        assert sorted(found) == sorted([*(k for k in state if k not in ("text", "deep")), "deep.w"])
        for name, tensor in found.items():
            wanted = state["deep"]["w"] if name == "deep.w" else state[name]
            assert tensor.dtype == wanted.dtype
            assert torch.equal(tensor, wanted)


@pytest.mark.parametrize(
    "place", ["missing", "file", "file/below", ""], ids=["50-missing", "file", "below", "empty"]
)
def test_a_folder_for_temporary_files_that_is_none(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / place) if place else "")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    assert pickled_tensors(tmp_path / "w.pt")[0]["w"].sum() == 2


def test_the_reading_process_is_not_told_rays_token(tmp_path, monkeypatch):
    seen = {}
    real = subprocess.run

    def run(*arguments, **options):
        seen.update(options["env"])
        return real(*arguments, **options)

    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setattr("neulig_ray.weights.pickles.subprocess.run", run)
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    pickled_tensors(tmp_path / "w.pt")
    assert "PATH" in seen
    assert not [name for name in seen if name.startswith("RAY_")]


def test_the_reading_process_starts_no_other_and_imports_nothing_of_ours(tmp_path):
    script = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from unpickling import process\n"
        "print([name for name in sys.modules if name.startswith(('neulig', 'torch'))])\n"
        "sys.addaudithook(process._refuse)\n"
        "import os, subprocess, socket\n"
        "for act in (lambda: os.system('true'), lambda: subprocess.run(['true']), os.fork,\n"
        "            lambda: socket.socket().connect(('127.0.0.1', 9))):\n"
        "    try: act(); print('done')\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(Path(pickles.__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["[]", *["Unreadable"] * 4], done.stderr
