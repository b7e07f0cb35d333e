"""Ligands as safetensors: the stacked weights, and in the header which combination each member is for."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save

from neulig_ray.ligand.portland import Portland


def ligand_bytes(portland: Portland, about: Mapping[str, Any]) -> bytes:
    """The file of a ligand; `about`: plain JSON values to record in its header."""
    header = {"format": 1, "kind": "ligand", "combinations": portland.combinations, **about}
    return save(portland.state(), {"neulig": json.dumps(header, sort_keys=True)})


def read_ligand(data: bytes) -> Portland:
    """The ligand of a file's bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["neulig"])
    return Portland.from_state([tuple(c) for c in header["combinations"]], load(data))
