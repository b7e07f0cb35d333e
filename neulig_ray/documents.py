"""JSON that somebody else may have written, read within bounds of size and depth."""

import json
from typing import Any, Final

from neulig_ray.errors import InputError

MOST_BYTES: Final = 32 * 2**20
MOST_DEPTH: Final = 100


def bounded_json(data: bytes | str, where: str) -> Any:
    """The value of a JSON text; raises InputError, naming `where`, for none, and one too large or too deep.

    At most MOST_BYTES long and MOST_DEPTH containers deep: what takes a value apart may recurse into it.
    """
    if len(data) > MOST_BYTES:
        raise InputError(f"{where}: more than {MOST_BYTES >> 20} MiB of JSON, more than this package writes")
    try:
        found = json.loads(data)
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {str(error)[:200]}") from error
    level = [found]
    for _ in range(MOST_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return found
    raise _too_deep(where)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep(where: str) -> InputError:
    return InputError(f"{where}: JSON nested more than {MOST_DEPTH} deep, deeper than this package writes")
