"""The command line: `neulig COMMAND ...`. Commands import what they need when they run."""

import importlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence

from neulig_ray import __version__
from neulig_ray.errors import InputError, StageError, unknown
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.stages import commands

# command -> (module with a `main(command, arguments) -> int`, what it does)
COMMANDS = {
    "run": (
        "run.command",
        "the whole pipeline; resumes; prints the merging-versus-ensembling table",
    ),
    **{command: ("run.command", about) for command, about in commands().items()},
    "merge": (
        "merge.command",
        "one method over any state dicts, stand-alone: safetensors in, safetensors out",
    ),
    "report": ("report", "one self-contained HTML page for one or several experiments"),
    "compare": ("compare", "two rows of the results, image by image: do they differ, and by how much"),
    "ls": ("ls.command", "tasks, archs, methods or experiments: what there is, with what each needs"),
    "import": ("import_", "an expert of another project: Hugging Face, open_clip, TALL masks, task_vectors"),
    "export": ("export", "a merged model or an expert for open_clip, Hugging Face, or as safetensors"),
    "storage": ("storage", "what is stored; are the hashes right; remove what nothing refers to"),
    "doctor": (
        "doctor.command",
        "python, torch, GPUs, Ray, storage, MLflow, every node: what works, what to do",
    ),
}

_USAGE = """\
NeuLig-Ray: model merging that matches ensembling, on Ray Train, Ray Tune and MLflow.

usage: neulig COMMAND [arguments]

{commands}

EXPERIMENT is a Python file that defines `experiment = Experiment(...)`, or the stem of one in ./experiments
or of the package's own (`neulig ls experiments`).
Every field can be set on the command line: neulig run quickstart --archs tiny-rn --ligand.epochs 20
`neulig COMMAND --help` tells the rest.

exit status: 0 done; 1 something failed, what is finished is kept; 2 unusable input, nothing was started
"""


def usage() -> str:
    width = max(map(len, COMMANDS))
    return _USAGE.format(
        commands="\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    tolerant_consoles()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] == "--version":
        print(__version__)
        return 0
    return guarded(lambda: _dispatch(given[0], given[1:]))


def _dispatch(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS, "`neulig --help` describes them.")
    module = importlib.import_module(f"neulig_ray.cli.{COMMANDS[command][0]}")
    status: int = module.main(command, arguments)
    return status


def tolerant_consoles() -> None:
    """Signs that a console's encoding lacks are shown as escapes: they end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def guarded(run: Callable[[], int]) -> int:
    """The exit status of `run`, with errors told as people read them."""
    try:
        return run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(
            f"failed: {error}\nWhat was finished is kept: the same command goes on from there.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1


def launch(experiment: Experiment, variants: Mapping[str, Experiment] | None = None) -> None:
    """`neulig run` for an experiment's own file: `python experiments/quickstart.py [flags]`.

    `variants`: the file's own of that name; `--NAME` among the flags chooses one.
    """
    from neulig_ray.cli.run.command import run_command

    tolerant_consoles()
    flags, prog = sys.argv[1:], sys.argv[0]
    about = str(getattr(sys.modules["__main__"], "__doc__", "") or "")
    sys.exit(
        guarded(lambda: run_command("run", experiment, flags, prog=prog, about=about, variants=variants))
    )
