"""Files of origins: whole CLIPs; ours in half precision and without their frozen token table."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neulig_ray.errors import InputError
from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import build_clip, token_table
from neulig_ray.models.origin_source import shipped as shipped
from neulig_ray.models.tower_files import check_arch, check_state, describe, pack, unpack

TOKEN_TABLE = "token_embedding.weight"  # noqa: S105


def origin_bytes(clip: Any, arch: Arch, metadata: Mapping[str, Any], *, half: bool = True) -> bytes:
    """The CLIP as the bytes of a safetensors file; `metadata`: JSON values to record.

    `half`: floats as float16, enough for the tiny origins that come with the package; else as they are.
    The frozen token table is left out: its seed and sha256 stand in the header.
    """
    state: dict[str, Tensor] = dict(clip.state_dict())
    tokens = None
    if arch.token_seed is not None:
        table = state.pop(TOKEN_TABLE)
        if not torch.equal(table.cpu(), token_table(arch.token_seed, *table.shape)):
            raise ValueError("the token table is not the frozen one of the arch")
        tokens = {"seed": arch.token_seed, "sha256": _sha256(table)}
    if half:
        state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    return pack(state, describe(arch, "origin", tokens=tokens, **metadata))


def load_origin(source: Path | str | bytes, arch: Arch, *, label: str = "") -> Any:
    """The open_clip model of an origin file, float32, eval mode; `label` names bytes in messages.

    Raises InputError for a file that is damaged, of another arch, or trained with another token table.
    """
    state, metadata, where = unpack(source, label)
    check_arch(metadata, arch, where)
    if metadata.get("kind") != "origin":
        raise InputError(f"{where} is a {metadata.get('kind')}, not an origin")
    clip = build_clip(arch)
    spec = {name: (tuple(t.shape), t.dtype) for name, t in clip.state_dict().items()}
    if arch.token_seed is not None:
        spec.pop(TOKEN_TABLE)
        stored = metadata.get("tokens")
        stored = stored if isinstance(stored, dict) else {}
        if stored.get("sha256") != _sha256(clip.token_embedding.weight):
            raise InputError(
                f"{where} was trained with the token table of seed {stored.get('seed')!r}, not with that of "
                f"{arch.name!r} (seed {arch.token_seed}): make the origin again with `neulig pretrain`"
            )
    clip.load_state_dict(check_state(state, spec, where), strict=arch.token_seed is None)
    return clip


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().numpy().astype("<f4").tobytes()).hexdigest()
