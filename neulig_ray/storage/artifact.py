"""Names of artifacts: a fingerprint of everything that determines their content."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neulig_ray.storage.layout import Top


def _plain(value: Any) -> Any:
    if isinstance(value, Artifact):
        return value.fingerprint
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a fingerprint")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def fingerprint(value: Any) -> str:
    """The first 16 hex digits of the sha256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """A piece of stored work. `label` is for people; `fingerprint` is what identifies it."""

    kind: str
    label: str
    fingerprint: str

    @classmethod
    def of(cls, kind: str, label: str, version: int, inputs: Mapping[str, Any]) -> "Artifact":
        """The artifact that `inputs` (plain values, dataclasses, fingerprints) and `version` determine."""
        return cls(kind, label, fingerprint({"kind": kind, "version": version, **inputs}))

    @property
    def path(self) -> str:
        readable = re.sub(r"[^A-Za-z0-9_.,@+=-]+", "_", self.label)[:80]
        return f"{Top.ARTIFACTS}/{self.kind}/{readable}-{self.fingerprint}"
