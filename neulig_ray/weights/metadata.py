"""What safetensors files say of themselves: the keys of their metadata, for all that write or read them."""

import json
from collections.abc import Mapping
from typing import Any, Final

RESERVED: Final = "__metadata__"  # no tensor can have this name: the header keeps the metadata under it
HEADER_KEY: Final = "neulig"  # of the metadata: what the file is, as JSON
FORMAT: Final = 1  # of that JSON, for files of weights and of ligands
ARCHITECTURE: Final = ("arch", "config", "activation", "tokens")  # its keys that say what model fits


def file_metadata(about: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The metadata of every safetensors file that is written here; `about`: JSON values, for our own readers.

    transformers up to 4.57 reads no file whose metadata lack the format "pt".
    """
    ours = {} if about is None else {HEADER_KEY: json.dumps(about, sort_keys=True)}
    return {"format": "pt", **ours}
