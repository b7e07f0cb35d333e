"""Models as they go together in a merge: whose names count, what is lent, copied, left out or refused."""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from neulig_ray.errors import InputError
from neulig_ray.weights.comparison import agree
from neulig_ray.weights.compatibility import check_pairs, check_specs, lacking
from neulig_ray.weights.factors import check_factors, integer_share, is_integer
from neulig_ray.weights.prefixes import SAME, Prefix, find_prefix
from neulig_ray.weights.sources import Source
from neulig_ray.weights.tensor_file import Spec
from neulig_ray.weights.views import View

VISUAL = "visual."  # how a whole CLIP of open_clip calls its visual tower
# Float buffers that programs compute anew and that older ones saved: rotary frequencies, masks of attention.
_COMPUTED = re.compile(
    r"(^|\.)((original_)?inv_freq|(cos|sin)(_cached)?|freqs_cis|masked_bias|attn_mask|causal_mask|_float_tensor)$"
)


@dataclass(frozen=True)
class Fitted:
    """The models with the same names. `copied`: float tensors that are no parameters; `notes`: for people."""

    experts: Mapping[str, Source]
    base: Source | None = None
    prefix: Prefix = SAME
    copied: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def fit(experts: Mapping[str, Source], base: Source | None = None, base_label: str = "the base") -> Fitted:
    """Bring the models of a merge under the experts' names.

    Integers, and floats that are computed and not learned, are lent to experts that lack them. The base may
    have the experts' tensors under a prefix, and others beside them, which are left out. What it lacks must
    be integers, or the same in all experts: that is copied.

    Raises InputError for float tensors that only some experts have or that the base lacks, for shapes and
    kinds that differ, for integers that differ between the experts (counters of one number apart), and for
    adapters and quantised weights.
    """
    labelled = {label: source.specs for label, source in experts.items()}
    lent = _lent(labelled)
    complete, notes = _lend(experts, lent)
    check_specs({label: source.specs for label, source in complete.items()})
    first = next(iter(complete.values()))
    if not any(spec.dtype.is_floating_point for spec in first.specs.values()):
        raise InputError(
            f"{next(iter(experts))!r} holds no float parameter ({len(first.specs)} tensors): there is "
            "nothing to merge; of quantised models, merge the originals"
        )
    check_integers(complete)
    computed = frozenset(name for name in lent if first.specs[name].dtype.is_floating_point)
    if base is None:
        return Fitted(complete, copied=computed, notes=tuple(notes))
    return _with_base(complete, computed, base, base_label, notes)


def check_integers(models: Mapping[str, Source]) -> None:
    """Raises InputError for integers of more than one number that differ between models of equal specs.

    What is copied from one model must be that of all; a counter, which is one number, decides nothing.
    """
    labels, sources = list(models), list(models.values())
    for name, spec in sources[0].specs.items():
        if spec.dtype.is_floating_point or spec.numel <= 1 or agree(sources, name):
            continue
        other = next(i for i in range(1, len(sources)) if not agree([sources[0], sources[i]], name))
        what = str(spec.dtype).removeprefix("torch.")
        remedy = "convert it to real numbers"
        if is_integer(spec):
            remedy = (
                "integers are copied, and these are not the same in all models. "
                f"{integer_share(sources[0].specs.values())}: of quantised weights, merge the originals and "
                "quantise the result"
            )
        raise InputError(
            f"{labels[0]!r} and {labels[other]!r} cannot be merged: {name!r} is {what} and differs between "
            f"them; {remedy}"
        )


def _dispensable(name: str, spec: Spec) -> bool:
    """Whether an expert may lack a tensor that others have."""
    return is_integer(spec) or bool(_COMPUTED.search(name))


def _lent(specs: Mapping[str, Mapping[str, Spec]]) -> dict[str, str]:
    """name -> the expert that lends it, of what some experts may and do lack.

    Nothing where they differ in more: that is refused, and told by all names.
    """
    needed = {
        frozenset(name for name, spec in found.items() if not _dispensable(name, spec))
        for found in specs.values()
    }
    if len(needed) != 1:
        return {}
    owners: dict[str, list[str]] = {}
    for label, found in specs.items():
        for name in found:
            owners.setdefault(name, []).append(label)
    return {name: have[0] for name, have in owners.items() if len(have) < len(specs)}


def _lend(experts: Mapping[str, Source], lent: Mapping[str, str]) -> tuple[dict[str, Source], list[str]]:
    """The experts with what they lack of `lent`, and a note for each lender."""
    found = dict(experts)
    for label, source in experts.items():
        if missing := [name for name in lent if name not in source.specs]:
            own = {name: (source, name) for name in source.specs}
            found[label] = View(own | {name: (experts[lent[name]], name) for name in missing})
    notes = []
    for lender in dict.fromkeys(lent.values()):
        names = [name for name, label in lent.items() if label == lender]
        notes.append(f"not all experts have {_some(names)}: copied from {lender}")
    return found, notes


def _with_base(
    experts: Mapping[str, Source], computed: frozenset[str], base: Source, label: str, notes: list[str]
) -> Fitted:
    sources = list(experts.values())
    specs = sources[0].specs

    @functools.cache
    def dispensable(name: str) -> bool:
        return not specs[name].dtype.is_floating_point or agree(sources, name)

    prefix = find_prefix(base.specs, specs, dispensable)
    first = next(iter(experts))
    if prefix is None:
        prefix = SAME
        if missing := [name for name in specs if name not in base.specs and not dispensable(name)]:
            raise lacking(first, label, missing, base.specs.keys() - specs.keys())
    there = {name: prefix.in_base(name) for name in specs if prefix.in_base(name) in base.specs}
    check_factors(label, {name: spec for name, spec in base.specs.items() if name.startswith(prefix.base)})
    missing = [name for name in specs if name not in there]
    unused = sorted(base.specs.keys() - {*there.values()})
    fitted = base
    if missing or unused or prefix != SAME:
        # What the base lacks is the first expert's there too, so that every reader finds every name.
        places = {name: (base, there[name]) if name in there else (sources[0], name) for name in specs}
        fitted = View(places)
    check_pairs({first: specs, label: fitted.specs})
    constants = frozenset(name for name in missing if specs[name].dtype.is_floating_point)
    notes += _notes(label, prefix, missing, unused)
    return Fitted(experts, fitted, prefix, computed | constants, tuple(notes))


def _notes(label: str, prefix: Prefix, missing: list[str], unused: list[str]) -> Iterator[str]:
    if prefix.base == VISUAL:
        yield f"{label} is a whole CLIP and the experts are towers: its visual tower is the base"
    elif prefix.base:
        rest = f"; {len(unused)} others are left out" if unused else ""
        yield f"{label} has the experts' tensors under {prefix.base!r}: these are the base{rest}"
    elif unused:
        yield f"only {label} has {_some(unused)}: left out"
    if prefix.experts:
        yield f"the experts' names begin with {prefix.experts!r} and those of {label} do not: paired without"
    if missing:
        yield f"{label} lacks {_some(missing)}: copied from the experts"


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
