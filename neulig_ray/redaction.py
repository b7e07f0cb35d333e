"""Users, passwords and keys that stand in addresses: never shown, never stored."""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

HIDDEN: Final = "***"
T = TypeVar("T")

# Bounds keep the search linear in texts of any length.
_SCHEME: Final = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,40}://)"
# user:password@, the password with any sign but white space; what follows a host's colon is a port, and no
# password, where it is a number.
_PASSWORD: Final = re.compile(_SCHEME + r"[^\s/?#@:]{0,300}:(?!\d+(?:[/?#\s'\"]|$))\S{0,300}@")
_USER: Final = re.compile(_SCHEME + r"[^\s/?#]{1,500}@")
_QUERY: Final = re.compile(_SCHEME + r"(?P<place>[^\s?#]{0,1000})(?P<rest>[?#]\S+)")
_PAIR: Final = re.compile(r"(?P<mark>[?#&;])(?P<name>[^=&;#]*)(?P<value>=[^&;#]*)?")
_NAMED: Final = re.compile(
    r"\b(?P<name>(?:[\w-]{0,40}[_-])?(?:token|password|passwd|secret|signature|sig|credentials?|"
    r"(?:api|access|account|secret)[_-]?key(?:[_-]id)?))=(?P<value>[^\s&;,'\"]+)",
    re.IGNORECASE,
)
_AFTER: Final = "'\")].,:;>"  # what stands after an address in a sentence


def redacted(text: str) -> str:
    """A URI, or a text with URIs in it, without what may be secret: user, password, values of the query.

    `s3://KEY:SECRET@bucket/x?token=abc` becomes `s3://***@bucket/x?token=***`. Paths, ports and everything
    that is no URI stay; so do values that are named token, password and the like, but for the value.
    """
    text = _PASSWORD.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(_without_values, text)
    return _NAMED.sub(rf"\g<name>={HIDDEN}", text)


def without_secrets(value: T) -> T:
    """The same value with every text in it redacted: lists, tuples and mappings of plain values."""
    found: Any = value
    if isinstance(value, str):
        found = redacted(value)
    elif isinstance(value, Mapping):
        found = {without_secrets(key): without_secrets(inner) for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(without_secrets(inner) for inner in value)
    return found


def _without_values(found: re.Match[str]) -> str:
    rest = found["rest"]
    address = rest.rstrip(_AFTER)
    hidden = _PAIR.sub(_without_value, address)
    return f"{found['scheme']}{found['place']}{hidden}{rest[len(address) :]}"


def _without_value(pair: re.Match[str]) -> str:
    if pair["value"] is not None:
        return f"{pair['mark']}{pair['name']}={HIDDEN}"
    kept = pair["mark"] == "#" or not pair["name"]  # a place in a page
    return pair["mark"] + (pair["name"] if kept else HIDDEN)
