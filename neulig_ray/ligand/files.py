"""Ligands as safetensors: the stacked weights, and in the header which combination each member is for."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load

from neulig_ray.documents import bounded_json
from neulig_ray.ligand.portland import Portland
from neulig_ray.weights.metadata import FORMAT, HEADER_KEY, RESERVED, file_metadata
from neulig_ray.weights.tensor_writer import to_bytes


def ligand_bytes(portland: Portland, about: Mapping[str, Any]) -> bytes:
    """The file of a ligand; `about`: plain JSON values to record in its header."""
    header = {"format": FORMAT, "kind": "ligand", "combinations": portland.combinations, **about}
    return to_bytes(portland.state(), file_metadata(header))


def read_ligand(data: bytes) -> Portland:
    """The ligand of a file's bytes."""
    state = load(data)
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])[RESERVED]  # JSON that the library has read
    header = bounded_json(metadata[HEADER_KEY], "a ligand's header")
    return Portland.from_state([tuple(c) for c in header["combinations"]], state)
