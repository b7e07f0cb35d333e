"""The flags of `neulig merge`: those of every method, and those that a method's schema adds."""

import argparse
import difflib
import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from neulig_ray.errors import InputError, unknown

if TYPE_CHECKING:
    from neulig_ray.merging import Method
    from neulig_ray.merging.options import Option

_USAGE = "neulig merge METHOD --experts E1 E2 ... --out F [--base B] [--option value ...]"
_GENERAL = """\
Merge models tensor by tensor, in memory that does not grow with their number. E and B are
state dicts: safetensors, what torch.save wrote of a state dict, folders or indices of models in
several files (Hugging Face's, open_clip's), or stored artifacts
(expert:tiny-vit.digits@seed-0, or a fingerprint's first six digits; --storage says where).

`neulig ls methods` lists the METHODs; `neulig merge METHOD --help` tells the options of one:
  neulig merge ties --base b.safetensors --experts a.safetensors c.safetensors \\
      --out m.safetensors --density 0.2 --scaling 0.3"""


class _Once(argparse.Action):
    """Stores a flag's value, and refuses a second one: argparse would silently take the last."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        flag: str | None = None,
    ) -> None:
        given = namespace.__dict__.setdefault("given", set())
        if self.dest in given:
            several = " with all its values" if self.nargs else ""
            raise InputError(f"{flag} is given twice: give it once{several}")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Wrong flags are input errors like all others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register("action", None, _Once)
        # argparse's own knows -0.5 and not -1e-3, which it takes for a flag.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. usage: {_USAGE}")


def general_parser() -> argparse.ArgumentParser:
    """What `neulig merge --help` shows; it imports no method."""
    parser = _Parser(
        prog="neulig merge",
        usage=_USAGE,
        description=_GENERAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    return parser


def plugins_of(arguments: Sequence[str]) -> list[str]:
    """The files of --plugins: they are imported before the method is looked up."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugins", nargs="+", action="extend", default=[])
    return list(parser.parse_known_args(arguments)[0].plugins)


def parse(method: "Method", arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The common flags, and the given options of the method, checked.

    Raises InputError for a wrong flag; an option of another method is told as such.
    """
    parser = _Parser(
        prog=f"neulig merge {method.name}",
        usage=_USAGE.replace("METHOD", method.name),
        description=_about(method),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    own = parser.add_argument_group(f"options of {method.name}" if method.schema else "no options of its own")
    for option in method.schema.values():
        flag = _flag(option.name)
        if flag in parser._option_string_actions:
            raise InputError(f"{method.name} calls an option {flag}, as `neulig merge` calls one: rename it")
        own.add_argument(
            flag,
            dest=f"option:{option.name}",
            nargs="+" if option.several else None,
            metavar=_metavar(option),
            help=_help(option).replace("%", "%%"),
        )
    given, rest = parser.parse_known_args(arguments)
    if rest:
        raise _refused(method, rest[0], parser)
    words = {name: getattr(given, f"option:{name}") for name in method.schema}
    options = {
        name: method.schema[name].read(method.name, found if isinstance(found, list) else [found])
        for name, found in words.items()
        if found is not None
    }
    return given, options


def _add_common(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("models and files")
    flags.add_argument(
        "--experts", nargs="+", action="extend", metavar="E", help="two or more, in the order of the merge"
    )
    flags.add_argument("--base", metavar="B", help="the origin that the experts were fine-tuned from")
    flags.add_argument(
        "--weights-key",
        default="",
        metavar="KEY",
        help="where files hold several models, such as model and ema: the key of the one to take",
    )
    flags.add_argument("--out", metavar="F", help="the safetensors file to write, whole or not at all")
    flags.add_argument(
        "--statistics",
        nargs="+",
        action="extend",
        metavar="S",
        help="of measured methods: what was measured on each expert, in the order of the experts",
    )
    flags.add_argument("--task", metavar="T", help="of masked methods: write the dense model of this expert")
    flags.add_argument(
        "--masks",
        metavar="M",
        help="with --task, in place of --experts: a masked model that was written before",
    )
    flags.add_argument(
        "--buffers",
        choices=("average", "base", "re-estimate"),
        default="average",
        help="BatchNorm statistics: the experts' mean (default), the base's, or measured anew on images",
    )
    flags.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the floats written; default: the first expert's. The arithmetic is float32",
    )
    flags.add_argument(
        "--storage", default="./neulig-storage", metavar="URI", help="default ./neulig-storage"
    )
    flags.add_argument("--threads", type=_count, metavar="N", help="default: one for each processor, up to 8")
    flags.add_argument(
        "--plugins", nargs="+", action="extend", default=[], metavar="PATH", help="files that add methods"
    )
    flags.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    flags.add_argument("--quiet", action="store_true", help="no progress bar, nothing but errors")


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(option: "Option") -> str:
    from neulig_ray.merging.options import base_types

    if option.choices:
        return "|".join(map(str, option.choices))
    names = {float: "NUMBER", int: "N", bool: "true|false", str: "TEXT"}
    return next((names[kind] for kind in base_types(option.type) if kind in names), "VALUE")


def _about(method: "Method") -> str:
    lines = [inspect.getdoc(method.function) or "", ""]
    lines.append(f"kind    {method.kind}")
    lines.append(f"needs   {', '.join(('experts', *method.needs))}")
    lines.append(f"paper   {method.paper}")
    return "\n".join(lines)


def _help(option: "Option") -> str:
    from neulig_ray.merging.options import type_name

    parts = [f"{option.about.text}: {type_name(option.type)}"]
    if option.about.bounded:
        parts.append(f"in {option.about.interval()}")
    parts.append("required" if option.required else f"default {spelled(option.default)}")
    if option.grid:
        parts.append(f"experiments choose it on val among {', '.join(map(spelled, option.grid))}")
    return "; ".join(parts)


def spelled(value: Any) -> str:
    """An option's value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return " ".join(map(spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _refused(method: "Method", flag: str, parser: argparse.ArgumentParser) -> InputError:
    """The error for a word that is no flag of the method."""
    from neulig_ray.merging import METHODS

    if not flag.startswith("-"):
        return InputError(f"{flag!r} belongs to no flag: experts are given as --experts E1 E2 ...")
    flag = flag.partition("=")[0]
    name = flag.removeprefix("--").replace("-", "_")
    own = [_flag(option) for option in method.schema]
    if owners := [other.name for other in METHODS.values() if name in other.schema]:
        near = difflib.get_close_matches(flag, own, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        return InputError(
            f"{flag} is not an option of {method.name}, but of {', '.join(owners)}.{hint} "
            f"{method.name} has {', '.join(own) or 'no options'}."
        )
    flags = [text for action in parser._actions for text in action.option_strings if text.startswith("--")]
    remedy = f"Options of {method.name}: {', '.join(own) or 'none'}."
    return unknown(f"flag of `neulig merge {method.name}`:", flag, flags, remedy)
