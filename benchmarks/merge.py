"""What `neulig merge` costs: processor time, memory and bytes per second, beside mergekit where it is there.

    python benchmarks/merge.py
    python benchmarks/merge.py --peer .venv-mergekit/bin/mergekit-pytorch --methods average ties tsv-merge

Experts are made on the fly in a temporary folder: seeded noise on a seeded base, float32, in the shapes of
open_clip's visual towers. Every merge runs in a process of its own, through the command line. The disk needs
7 GB; on two cores it takes two minutes, and with mergekit about ten more, most of them its TIES.

Targets (exit status 1 when one that could be checked is missed):
- peak resident memory above `import torch, numpy`: at most 3 x the largest tensor + 128 MiB for average and
  task-arithmetic, 256 MiB more for ties, whatever the number of experts;
- user processor time of average (linear) and ties at 16 experts: at most 0.6 x mergekit's, each after its own
  imports (ours: torch and numpy alone).
Figures without a target: other methods, and bytes per second (inputs read once and the output written, over
the wall time) as a fraction of plainly reading and writing the same files; on a busy machine both vary.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
SEED = 20
PIECE = 1 << 22
SIZES = (("ViT-B-32", 4), ("ViT-B-32", 16), ("ViT-L-14", 4))
METHODS = ("average", "task-arithmetic", "ties")
ALLOWED = {
    "average": 128 * MIB,
    "task-arithmetic": 128 * MIB,
    "ties": 384 * MIB,
}  # and 3 x the largest
PEERS = {"average": "linear", "ties": "ties"}
FASTER = 0.6  # of mergekit's user time, at the largest number of experts
OWN_IMPORTS = "import torch, numpy"  # our own modules count as our work
PEER_IMPORTS = "import mergekit.scripts.merge_raw_pytorch"
# What happens after the imports, seen from inside: each process is its own measure of what they cost.
# VmHWM is of this program alone; ru_maxrss would remember the parent's memory from before exec.
MEASURE = """
import json, resource, sys, time
def seen():
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return {"user": used.ru_utime, "system": used.ru_stime, "wall": time.perf_counter(), "peak": peak}
started = time.perf_counter()
imports, code, out = sys.argv[1:]
exec(imports)
bare = seen()
exec(code, {"sys": sys})
after = seen()
with open(out, "w") as file:
    bare_cost = bare | {"wall": bare["wall"] - started}
    json.dump([bare_cost, {name: after[name] - bare[name] for name in bare}], file)
"""
RUN_NEULIG = "from neulig_ray.cli import main; status = main({arguments!r}); assert status == 0, status"
RUN_PEER = """
import runpy
sys.argv[1:] = {arguments!r}
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
"""
PLAIN = """
import os
buffer, out = memoryview(bytearray(1 << 20)), os.open({target!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for source in {sources!r}:
    handle = os.open(source, os.O_RDONLY)
    while count := os.readv(handle, [buffer]):
        source == {sources!r}[0] and os.write(out, buffer[:count])
"""


@dataclass(frozen=True)
class Cost:
    """Of a part of a process: user, system and wall seconds, and by how many bytes its peak grew."""

    user: float
    system: float
    wall: float
    peak: int


@dataclass(frozen=True)
class Row:
    """One line of the table. `passed` is None where there is no target."""

    what: str
    cost: Cost
    figure: str
    target: str = ""
    passed: bool | None = None


@dataclass(frozen=True)
class Models:
    """The files of one architecture's base and experts."""

    arch: str
    base: Path
    experts: tuple[Path, ...]
    largest: int  # bytes of the largest tensor

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.experts)


def measure(imports: str, code: str, python: str = sys.executable) -> tuple[Cost, Cost]:
    """What the imports cost, and what `code` costs after them, in a process of its own.

    Raises RuntimeError, with its output, where it fails.
    """
    with tempfile.NamedTemporaryFile() as out:
        command = [python, "-c", MEASURE, imports, code, out.name]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            raise RuntimeError(f"{code[:200]}\n{done.stdout}{done.stderr}")
        bare, after = json.loads(Path(out.name).read_text(encoding="utf-8"))
    return Cost(**bare), Cost(**after)


def shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the visual tower's parameters, from open_clip's configuration."""
    import open_clip
    import torch

    with torch.device("meta"):
        tower = open_clip.create_model(arch, load_weights=False, device="meta").visual
    return {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}


def make(arch: str, n: int, folder: Path) -> Models:
    """Write the base and n experts, in pieces: noise of 2 % of the base's own spread."""
    import torch

    from neulig_ray.weights.tensor_file import Spec, TensorFile
    from neulig_ray.weights.tensor_writer import TensorWriter

    specs = {name: Spec(shape, torch.float32) for name, shape in shapes(arch).items()}
    base = folder / f"{arch}.base.safetensors"
    experts = tuple(folder / f"{arch}.expert-{i}.safetensors" for i in range(n))
    for seed, path in enumerate((base, *experts)):
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(SEED + seed)
        with TensorWriter(path, specs, {}) as writer:
            for name, spec in specs.items():
                for at in range(0, spec.numel, PIECE):
                    noise = torch.randn(min(PIECE, spec.numel - at), generator=generator)
                    if path == base:
                        writer.write(name, noise.mul_(0.02), at)
                    else:
                        start = TensorFile(base).read(name, at, at + noise.numel())
                        writer.write(name, start.add_(noise, alpha=0.0004), at)
    return Models(arch, base, experts, max(spec.nbytes for spec in specs.values()))


def merge(method: str, models: Models, out: Path, threads: int | None) -> Cost:
    arguments = ["merge", method, "--experts", *map(str, models.experts), "--base", str(models.base)]
    arguments += ["--out", str(out), "--quiet", *(["--threads", str(threads)] if threads else [])]
    return measure(OWN_IMPORTS, RUN_NEULIG.format(arguments=arguments))[1]


def merge_with_peer(method: str, models: Models, out: Path, peer: Path) -> Cost:
    """The same by mergekit-pytorch, from a configuration written beside the output."""
    config: dict[str, Any] = {"merge_method": PEERS[method], "dtype": "float32"}
    config["models"] = [{"model": str(path), "parameters": {"weight": 1.0}} for path in models.experts]
    if method == "ties":
        config |= {"base_model": str(models.base), "parameters": {"density": 0.2, "lambda": 1.0}}
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    arguments = [str(file), str(out.with_suffix("")), "--quiet"]
    code = RUN_PEER.format(arguments=arguments, script=str(peer))
    return measure(PEER_IMPORTS, code, interpreter(peer))[1]


def interpreter(script: Path) -> str:
    """The Python of an installed command."""
    return script.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!").strip()


def rows(
    sizes: Sequence[tuple[str, int]],
    methods: Sequence[str],
    folder: Path,
    peer: Path | None,
    threads: int | None,
) -> Iterator[Row]:
    """Measure everything, the files of one size at a time on the disk."""
    bare = measure(OWN_IMPORTS, "")[0]
    yield Row(OWN_IMPORTS, bare, f"{bare.peak / MIB:.0f} MiB")
    if peer is not None:
        bare = measure(PEER_IMPORTS, "", interpreter(peer))[0]
        yield Row("import mergekit", bare, f"{bare.peak / MIB:.0f} MiB")
    most = max(n for _, n in sizes)
    for arch, n in sizes:
        for other in folder.glob("*.safetensors"):
            if not other.name.startswith(f"{arch}."):
                other.unlink()
        models, out = make(arch, n, folder), folder / "merged.safetensors"
        case = f"{n} x {arch}"
        sources = [str(path) for path in models.experts]
        plain = measure("", PLAIN.format(sources=sources, target=str(out)))[1]
        moved = models.bytes + models.base.stat().st_size
        yield Row(f"{case} plain read and write", plain, f"{moved / plain.wall / 1e9:.2f} GB/s")
        for method in methods:
            cost = merge(method, models, out, threads)
            yield from _own_rows(f"{case} {method}", method, cost, models, moved / plain.wall)
            if peer is not None and method in PEERS:
                theirs = merge_with_peer(method, models, out, peer)
                figure = f"{theirs.peak / MIB:.0f} MiB"
                yield Row(f"{case} mergekit {PEERS[method]}", theirs, figure)
                ratio = cost.user / theirs.user
                checked = n == most
                yield Row(
                    f"{case} {method} / mergekit, user time",
                    cost,
                    f"{ratio:.2f} x",
                    f"<= {FASTER} x" if checked else "",
                    ratio <= FASTER if checked else None,
                )
            shutil.rmtree(out.with_suffix(""), ignore_errors=True)
            out.unlink(missing_ok=True)


def _own_rows(what: str, method: str, cost: Cost, models: Models, plain: float) -> Iterator[Row]:
    allowed = 3 * models.largest + ALLOWED[method] if method in ALLOWED else None
    yield Row(
        what,
        cost,
        f"{cost.peak / MIB:.0f} MiB",
        f"<= {allowed / MIB:.0f} MiB" if allowed else "",
        cost.peak <= allowed if allowed else None,
    )
    rate = (models.bytes + models.base.stat().st_size) / cost.wall
    yield Row(f"{what}, speed", cost, f"{rate / 1e9:.2f} GB/s = {rate / plain:.2f} x plain")


def _line(row: Row) -> str:
    verdict = {None: "", True: "pass", False: "MISSED"}[row.passed]
    c = row.cost
    return (
        f"{row.what:<50} {c.wall:7.1f} {c.user:7.1f} {c.system:7.1f}  "
        f"{row.figure:<26} {row.target:<12} {verdict}"
    ).rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sizes", nargs="+", default=[f"{arch}:{n}" for arch, n in SIZES], metavar="ARCH:N")
    parser.add_argument("--peer", type=Path, help="mergekit-pytorch; default: the one on PATH")
    parser.add_argument("--no-peer", action="store_true", help="leave mergekit out")
    parser.add_argument("--folder", type=Path, help="where the temporary files lie (7 GB)")
    parser.add_argument("--threads", type=int, help="of neulig merge")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    given = parser.parse_args(arguments)
    sizes = [(arch, int(n)) for arch, _, n in (size.rpartition(":") for size in given.sizes)]
    found = shutil.which("mergekit-pytorch")
    peer = None if given.no_peer else given.peer or (Path(found) if found else None)
    if peer is None:
        print(
            "mergekit: skipped, its targets are not checked (no mergekit-pytorch on PATH; --peer names one)"
        )
    print(f"{'':<50} {'wall s':>7} {'user s':>7} {'sys s':>7}  figure{'':<20} target")
    done = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="neulig-bench-", dir=given.folder) as folder:
        for row in rows(sizes, given.methods, Path(folder), peer, given.threads):
            done.append(row)
            print(_line(row), flush=True)
    missed = [row.what for row in done if row.passed is False]
    print(
        f"{time.perf_counter() - started:.0f} s; "
        + (f"missed: {', '.join(missed)}" if missed else "no target missed")
    )
    if given.json:
        given.json.write_text(
            json.dumps([vars(row) | {"cost": vars(row.cost)} for row in done], indent=1), encoding="utf-8"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
