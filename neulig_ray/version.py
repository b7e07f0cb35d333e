"""Which code runs: the same version number may stand for any state of a checkout."""

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path


def code_version() -> str:
    """The version with the start of the code's sha256, as in "0.1.0 (a84bbad5)"; "missing" if not installed.

    The hash is of this package's Python files, by their paths and bytes: equal wherever, and however, it is
    installed. The experiments that a wheel carries in `_shipped` are no code of the package. Standard library
    only: `neulig doctor --cluster` sends this function to nodes by value.
    """
    spec = importlib.util.find_spec("neulig_ray")
    if spec is None or spec.origin is None:
        return "missing"
    root, digest = Path(spec.origin).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] != "_shipped":
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    try:
        version = importlib.metadata.version("neulig-ray")
    except importlib.metadata.PackageNotFoundError:  # on the path, not installed
        version = "missing"
    return f"{version} ({digest.hexdigest()[:8]})"
