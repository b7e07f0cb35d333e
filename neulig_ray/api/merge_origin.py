"""The origin of a merged tower: that of its experts, whose text tower `neulig export` needs."""

from collections.abc import Mapping, Sequence
from typing import Any

About = Mapping[str, Any]
_FINGERPRINT = "origin_fingerprint"


def carried_origin(experts: Sequence[About], base: About | None) -> dict[str, str]:
    """What a merged tower's file says of its origin, from what those of its experts and base say of theirs.

    One name where all share it; experts that do not say theirs come from the base, where that says its own.
    Names joined by commas where they differ, and nothing where one is unknown.
    """
    base = base or {}
    known = [about if about.get("origin") else base for about in experts]
    names = [str(about.get("origin") or "") for about in known]
    if not all(names):
        return {}
    fingerprints = [str(about.get(_FINGERPRINT) or "") for about in known]
    each = sorted({part for name in names for part in name.split(",")})
    if len(each) > 1:
        return {"origin": ",".join(each)}
    if len({*fingerprints} - {""}) > 1:  # two models of one name
        return {"origin": f"{names[0]},{names[0]}"}
    found = {"origin": names[0]}
    return found | ({_FINGERPRINT: fingerprints[0]} if all(fingerprints) else {})
