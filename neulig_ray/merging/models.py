"""The models of one merge, side by side: checked against each other, read piece by piece, surveyed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any, Protocol, TypeVar

import torch

from neulig_ray.errors import InputError
from neulig_ray.merging.options import accepted
from neulig_ray.merging.selection import Selection
from neulig_ray.weights.comparison import agree
from neulig_ray.weights.fitting import fit
from neulig_ray.weights.sources import Source
from neulig_ray.weights.tensor_file import Spec

T = TypeVar("T")
Tensors = Sequence[torch.Tensor]  # the experts' tensors of one name, read when they are indexed
# Numbers of all experts together in one piece: each thread holds 4 MiB of them, however many experts there
# are. Measured: pieces of less than 2^14 numbers cost more time in calls than in arithmetic.
PIECE = 1 << 20
_LARGEST_PIECE = 1 << 18  # of each, so that the threads' shares stay even
EXTREME = 1e36  # beyond that, a sum of few numbers may leave float32


def is_batchnorm_statistic(name: str) -> bool:
    """Whether a state dict's entry is a BatchNorm running mean or variance: a buffer, never a parameter."""
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var")


class NotFiniteInput(InputError):
    """A tensor that goes into a merge holds what is not finite, in the float32 of its arithmetic at least."""


class Progress(Protocol):
    """Is told how far a merge is, in numbers read of each model."""

    def stage(self, what: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...


@dataclass(frozen=True)
class Piece:
    """Numbers start..stop of a tensor's flat view."""

    name: str
    start: int
    stop: int


class Lazy(Sequence[torch.Tensor]):
    """Tensors float32 of one shape that are read when they are indexed."""

    def __init__(self, sources: Sequence[Source], name: str, labels: Sequence[str]) -> None:
        self._sources, self._name, self._labels = sources, name, labels

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source, spec = self._sources[index], self._sources[index].specs[self._name]
        found = torch.empty(spec.numel)
        source.read_into(found, self._name)
        check_finite(found[None], self._name, [self._labels[index]], lambda _: source.read(self._name))
        return found.view(spec.shape)


class Statistics(Mapping[str, torch.Tensor]):
    """The statistics of one expert, read when they are looked up."""

    def __init__(self, source: Source, label: str) -> None:
        self._source, self._label = source, label

    def __getitem__(self, name: str) -> torch.Tensor:
        found = self._source.read(name)
        check_finite(found[None], name, [self._label])
        return found.view(self._source.specs[name].shape)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._source.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.specs)

    def __len__(self) -> int:
        return len(self._source.specs)


def check_finite(
    rows: torch.Tensor,
    name: str,
    labels: Sequence[str],
    stored: Callable[[int], torch.Tensor] | None = None,
) -> None:
    """Raises NotFiniteInput, naming tensor and model, when rows (n, size) hold NaN or infinite values.

    `stored(i)`: the numbers of row i as its model has them, which may be wider than float32.
    """
    # A sum is several times cheaper than isfinite, and finite unless a number is not (or it overflows).
    if rows.sum().isfinite():
        return
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        bad = int((~row.isfinite()).sum())
        if not bad:
            continue
        if stored is not None and (numbers := stored(i)).isfinite().all():
            raise NotFiniteInput(
                f"{label}: {name!r} holds numbers beyond float32's largest, 3.4e38 "
                f"({numbers.abs().max():.3g}), and merges are computed in float32: leave this model out, or "
                "scale it down"
            )
        raise NotFiniteInput(
            f"{label}: {name!r} holds NaN or infinite values ({bad} of the {row.numel()} looked at) and is "
            "not the same in all models, as a mask would be; if the training that wrote it failed, leave "
            "this model out or make it again"
        )


class Models:
    """n experts and, where it is given, their base, under the experts' names (see `fit`).

    `experts`: label -> source, in the order of the merge. `statistics`: one source for each expert, of what
    was measured on it. `threads` workers share the pieces; results never depend on how many they are.
    `constants`: what was found on the way to be no parameter (see `set_constants_aside`).
    """

    def __init__(
        self,
        experts: Mapping[str, Source],
        base: Source | None = None,
        *,
        statistics: Sequence[Source] = (),
        threads: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Raises InputError, naming two of them, when the models' tensors do not correspond."""
        fitted = fit(experts, base)
        self.labels = tuple(experts)
        self.sources = tuple(fitted.experts.values())
        self.base = fitted.base
        self.copied = fitted.copied
        self.constants: frozenset[str] = frozenset()
        self.statistics = tuple(statistics)
        self.threads = threads
        self._progress = progress
        self._buffers = local()
        if statistics and len(statistics) != len(experts):
            raise InputError(f"{len(statistics)} statistics for {len(experts)} experts: give one for each")

    @property
    def n(self) -> int:
        return len(self.sources)

    @property
    def specs(self) -> Mapping[str, Spec]:
        return self.sources[0].specs

    @property
    def names(self) -> tuple[str, ...]:
        """The float parameters, in the first expert's order: what methods decide about."""
        others = self.copied | self.constants
        return tuple(
            name
            for name, spec in self.specs.items()
            if spec.dtype.is_floating_point and not is_batchnorm_statistic(name) and name not in others
        )

    @property
    def size(self) -> int:
        """Numbers in all float parameters of one model: d."""
        return sum(self.specs[name].numel for name in self.names)

    @property
    def piece_size(self) -> int:
        """Numbers of each expert in one piece: a multiple of 8, so that its mask fills whole bytes."""
        return max(min(PIECE // self.n, _LARGEST_PIECE) // 8 * 8, 8)

    @property
    def _statistics_labels(self) -> list[str]:
        return [f"the statistics of {label}" for label in self.labels]

    def same_in_all(self, name: str) -> bool:
        """Whether all experts, and the base, have a tensor bit by bit the same."""
        return agree([*self.sources, *([] if self.base is None else [self.base])], name)

    def set_constants_aside(self) -> bool:
        """Take tensors that no arithmetic is right for, and that are the same in all models, for constants.

        Those are masks and the like, with NaN, infinite or extreme numbers. One model is read for them.
        Returns whether there are any more than before.
        """
        source = self.sources[0]
        found = [name for name in self.names if _extreme(source, name) and self.same_in_all(name)]
        self.constants |= {*found}
        return bool(found)

    def pieces(self, names: Sequence[str], elementwise: bool) -> list[Piece]:
        """Flat pieces of at most `piece_size` numbers, or whole tensors, the largest first."""
        found = []
        for name in names:
            numel = self.specs[name].numel
            step = self.piece_size if elementwise else max(numel, 1)
            found += [Piece(name, at, min(at + step, numel)) for at in range(0, max(numel, 1), step)]
        return sorted(found, key=lambda p: p.start - p.stop)

    def each(self, what: str, pieces: Sequence[Piece], work: Callable[[Piece], T]) -> Iterator[T]:
        """`work` on every piece by the threads; results in the order of the pieces."""
        if self._progress is not None:
            self._progress.stage(what, sum(p.stop - p.start for p in pieces))

        def told(piece: Piece) -> T:
            found = work(piece)
            if self._progress is not None:
                self._progress.advance(piece.stop - piece.start)
            return found

        with one_torch_thread():
            if self.threads == 1:
                yield from map(told, pieces)
                return
            with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                try:
                    yield from pool.map(told, pieces)
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise

    def inputs(self, piece: Piece, elementwise: bool) -> tuple[Any, dict[str, Any]]:
        """What a method's function is given for a piece: the experts' tensors, and its keywords.

        The memory of elementwise pieces is used again for the next piece of the same thread.
        """
        name = piece.name
        more: dict[str, Any] = {"name": name, "start": piece.start}
        if not elementwise:
            if self.base is not None:
                more["base"] = Lazy([self.base], name, ["the base"])[0]
            if self.statistics:
                labels = self._statistics_labels
                more["statistics"] = [Statistics(*s) for s in zip(self.statistics, labels, strict=True)]
            return Lazy(self.sources, name, self.labels), more
        size = piece.stop - piece.start
        rows = self._rows("experts", self.n)[:, :size]
        for row, source in zip(rows, self.sources, strict=True):
            source.read_into(row, name, piece.start)
        check_finite(rows, name, self.labels, lambda i: self.sources[i].read(name, piece.start, piece.stop))
        if (base := self.base) is not None:
            more["base"] = self._rows("base", 1)[0, :size]
            base.read_into(more["base"], name, piece.start)
            stored = lambda _: base.read(name, piece.start, piece.stop)  # noqa: E731
            check_finite(more["base"][None], name, ["the base"], stored)
        if self.statistics and all(name in source.specs for source in self.statistics):
            more["statistics"] = self._rows("statistics", self.n)[:, :size]
            for row, source in zip(more["statistics"], self.statistics, strict=True):
                source.read_into(row, name, piece.start)
            check_finite(more["statistics"], name, self._statistics_labels)
        return rows, more

    def _rows(self, kind: str, count: int) -> torch.Tensor:
        buffer: torch.Tensor | None = getattr(self._buffers, kind, None)
        if buffer is None:
            buffer = torch.empty(count, min(self.piece_size, max(spec.numel for spec in self.specs.values())))
            setattr(self._buffers, kind, buffer)
        return buffer

    def map(
        self,
        what: str,
        function: Callable[..., T],
        *,
        elementwise: bool,
        names: Sequence[str] | None = None,
        **more: Any,
    ) -> list[tuple[Piece, T]]:
        """A survey's pass: `function(tensors, ...)` on every piece, with those of base, name, start,
        statistics and `more` that it has keywords for; each piece with its result, in an order of its own."""
        pieces = self.pieces(self.names if names is None else names, elementwise)

        def work(piece: Piece) -> T:
            tensors, known = self.inputs(piece, elementwise)
            return function(tensors, **accepted(function, {**known, **more}))

        return list(zip(pieces, self.each(what, pieces, work), strict=True))

    def order_statistics(
        self, values: Callable[..., torch.Tensor], ranks: torch.Tensor, what: str = "thresholds", **more: Any
    ) -> torch.Tensor:
        """Exact order statistics over whole vectors that are never held: two passes over the pieces.

        `values(tensors, ...)` gives non-negative float32 (n, size) for a piece; ranks int64 (n, r), counted
        from 0 for the smallest of the row's `size` numbers. Returns float32 (n, r).
        """
        selection = Selection(ranks)

        def count(tensors: torch.Tensor, **known: Any) -> None:
            selection.add(values(tensors, **accepted(values, {**known, **more})))

        for _ in range(2):
            self.map(what, count, elementwise=True)
            selection.narrow()
        return selection.found()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread for each torch operation: pieces run side by side instead, and numbers stay the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _extreme(source: Source, name: str) -> bool:
    """Whether a tensor holds NaN, or a number that is infinite or nearly so in float32."""
    numel = source.specs[name].numel
    pieces = (
        source.read(name, at, min(at + _LARGEST_PIECE, numel)) for at in range(0, numel, _LARGEST_PIECE)
    )
    return not all((piece.abs() < EXTREME).all() for piece in pieces)
