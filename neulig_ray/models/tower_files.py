"""Files of weights: safetensors that say what they are, checked before anything uses them."""

import difflib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from neulig_ray.documents import bounded_json
from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import skeleton
from neulig_ray.weights.metadata import FORMAT, HEADER_KEY, RESERVED, file_metadata
from neulig_ray.weights.tensor_file import damaged, not_read, refuse_others, unreadable
from neulig_ray.weights.tensor_writer import to_bytes

MOST_LISTED = 5

State = dict[str, Tensor]


def describe(arch: Arch, kind: str, **more: Any) -> dict[str, Any]:
    """The metadata that every file of weights carries, and what else (JSON values) is to be recorded."""
    return {
        "format": FORMAT,
        "kind": kind,
        "arch": arch.name,
        "config": json.loads(json.dumps(arch.config)),
        "activation": arch.activation,
        **more,
    }


def pack(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file whose header holds `metadata` as JSON under the key "neulig".

    Tensors keep their dtype. Raises ValueError for NaN or infinite values, which no reader would accept.
    """
    if bad := _non_finite(state):
        raise ValueError(f"weights with NaN or infinite values are not stored: {bad}")
    return to_bytes(state, file_metadata(metadata))


def tower_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A visual tower's state as the bytes of a safetensors file; with `describe(arch, "tower", ...)`."""
    return pack(state, metadata)


def read_tower(
    source: Path | str | bytes, arch: Arch | None = None, *, label: str = ""
) -> tuple[State, dict[str, Any]]:
    """The state of a visual tower, floats as float32, and its metadata; `label` names bytes in messages.

    With `arch` the file must be of that arch; without, of the one that its metadata name. Raises InputError
    for an arch that is not known here, and for anything but a whole file of finite tensors with the names
    and shapes of the arch.
    """
    state, metadata, where = unpack(source, label)
    if arch is None:
        arch = stored_arch(metadata, where)
    check_arch(metadata, arch, where)
    if metadata.get("kind") == "origin":
        raise InputError(f"{where} is an origin, a whole CLIP, and not a visual tower: name it as an origin")
    return check_state(state, tower_spec(arch), where), metadata


def unpack(source: Path | str | bytes, label: str = "") -> tuple[State, dict[str, Any], str]:
    """Tensors, metadata and the file's name for messages; raises InputError for what is not such a file."""
    where = label or ("the given bytes" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise unreadable(where, error) from error
    state, header = load_tensors(source, where)
    metadata = bounded_json(header.get(HEADER_KEY, "null"), f"{where}: the header's {HEADER_KEY!r} entry")
    if not isinstance(metadata, dict):
        raise InputError(
            f"{where} has no {HEADER_KEY!r} entry in its header, so its arch and activation are unknown: "
            "use a file that neulig wrote"
        )
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{where} is of format {metadata.get('format')!r}; this version reads {FORMAT}: update neulig-ray"
        )
    return state, metadata, where


def load_tensors(data: bytes, where: str) -> tuple[State, dict[str, str]]:
    """All tensors of a safetensors file, whoever wrote it, and the strings in its header's metadata.

    Raises InputError, naming `where`, for a pickle, a file of another kind, and a truncated or damaged one.
    """
    refuse_others(data[:64], len(data), where)
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise damaged(where, header, len(data), error) from error
    except KeyError as error:  # a dtype that torch has not
        raise not_read(where, "a tensor", str(error.args[0])) from error
    return tensors, dict(json.loads(header[8:]).get(RESERVED) or {})  # JSON that the library has read


def stored_arch(metadata: Mapping[str, Any], where: str) -> Arch:
    """The arch that a file's metadata name: built as it is known here, whatever the file says of it."""
    name = metadata.get("arch")
    if not isinstance(name, str) or "config" not in metadata:
        raise InputError(f"{where}: the metadata lack 'arch' or 'config'; use a file that neulig wrote")
    return ARCHS[name]


def check_arch(metadata: Mapping[str, Any], arch: Arch, where: str) -> None:
    """Raises InputError unless the file is of `arch`: name, activation and every setting."""
    for key, wanted in (("arch", arch.name), ("activation", arch.activation)):
        if metadata.get(key) != wanted:
            raise InputError(
                f"{where}: {key} is {metadata.get(key)!r}, but {wanted!r} is asked; name a file of that {key}"
            )
    if found := differing(arch.config, metadata.get("config")):
        raise InputError(
            f"{where}: made with another configuration of {arch.name!r} (differs in {found}); "
            "make it again, or give the changed arch a name of its own"
        )


def differing(wanted: Mapping[str, Any], stored: Any) -> str:
    """The settings in which two configurations differ, for people; empty where they are equal."""
    wanted = json.loads(json.dumps(wanted))
    if stored == wanted:
        return ""
    pairs = _flat(wanted, stored if isinstance(stored, dict) else {})
    return _some([path for path, (mine, theirs) in pairs.items() if mine != theirs])


def _flat(mine: Any, theirs: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if not (isinstance(mine, dict) and isinstance(theirs, dict)):
        return {prefix: (mine, theirs)}
    flat: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*mine, *theirs}):
        flat |= _flat(mine.get(key), theirs.get(key), f"{prefix}.{key}" if prefix else key)
    return flat


@functools.cache
def _tower_spec(key: str, name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    arch = Arch(name=name, config=json.loads(key), description="")
    return spec_of(skeleton(arch).visual)


Spec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def spec_of(module: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (shape, dtype) of a module's state."""
    return {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}


def tower_spec(arch: Arch) -> Spec:
    """Name -> (shape, dtype) of the visual tower's state."""
    return _tower_spec(json.dumps(arch.config, sort_keys=True), arch.name)


def check_state(state: Mapping[str, Tensor], spec: Spec, where: str) -> State:
    """The tensors in the order and dtypes of `spec`; raises InputError for names, shapes, dtypes or NaN."""
    missing = [name for name in spec if name not in state]
    extra = [name for name in state if name not in spec]
    if missing or extra:
        problems = []
        if missing:
            problems.append(f"lacks {len(missing)} tensors: {_some(missing)}")
        if extra:
            problems.append(
                f"has {len(extra)} foreign tensors: {_some([_near(name, missing) for name in extra])}"
            )
        raise InputError(f"{where} {' and '.join(problems)}; name a file of the right arch")
    if shapes := [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, (shape, _) in spec.items()
        if tuple(state[name].shape) != shape
    ]:
        raise InputError(f"{where} has wrong shapes: {_some(shapes)}; name a file of the right arch")
    if dtypes := [
        f"{name} {str(state[name].dtype).removeprefix('torch.')}"
        for name, (_, dtype) in spec.items()
        if state[name].is_floating_point() != dtype.is_floating_point
    ]:
        raise InputError(
            f"{where} has wrong dtypes: {_some(dtypes)}; floats are expected as float32 or float16"
        )
    if bad := _non_finite(state):
        raise InputError(f"{where} holds NaN or infinite values in {bad}; its training failed: make it again")
    return {name: state[name].to(dtype) for name, (_, dtype) in spec.items()}


def _non_finite(state: Mapping[str, Tensor]) -> str:
    return _some([n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()])


def _near(name: str, missing: list[str]) -> str:
    near = difflib.get_close_matches(name, missing, n=1, cutoff=0.6)
    return f"{name} (near {near[0]})" if near else name


def _some(items: list[str]) -> str:
    rest = len(items) - MOST_LISTED
    return ", ".join(items[:MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
