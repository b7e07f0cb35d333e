"""What an experiment is: typed, frozen, and checked before anything starts."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from neulig_ray.errors import InputError, unknown
from neulig_ray.ligand.recipe import DEFAULT, PAPER, LigandInput, LigandRecipe, Objective, Rate, Semi
from neulig_ray.results.granularities import OWN, check_granularity
from neulig_ray.storage.layout import LONGEST, reserved, usable_name

GRANULARITIES = OWN  # the package's own
METHODS = (
    "zeroshot",
    "expert",
    "average",
    "hard-routing",
    "ensemble-embedding",
    "ensemble-logit",
    "ensemble-probability",
    "ensemble-vote",
    "ligand",
)


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """How origins named seed-K are made where the package ships none. None: the arch's own recipe."""

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    images: int | None = None
    tasks: tuple[str, ...] = ("digits", "letters", "signs", "shapes", "textures", "count", "mnist-5k")
    """Tasks whose captioned streams are the pre-training data."""
    workers: int = 1
    """Ray Train workers."""
    shipped: bool = True
    """Take a shipped origin where there is one; False trains it all the same."""


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """How experts are made. None: the arch's own recipe."""

    epochs: int | None = None
    batch_size: int | None = None
    """Images of one optimiser step over all workers."""
    learning_rate: float | None = None
    weight_decay: float | None = None
    augment: Literal["shift", "crop", "none"] | None = None
    """Of training images. `shift`: by up to two pixels (tiny archs); `crop`: open_clip's random crop of 90 to
    100 % of the area (the others)."""
    micro_batch: int | None = None
    """Images of one forward pass of a worker: larger shares are split and their gradients added up."""
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    """`auto`: bfloat16 autocast on GPUs, float32 elsewhere."""
    batchnorm: Literal["train", "frozen", "synchronised"] | None = None
    """Statistics of each worker's share, the origin's, or of all workers (GPUs only)."""
    channels_last: bool | None = None
    gradient_checkpointing: bool | None = None
    compile: bool | None = None
    """torch.compile: pays on GPUs and long trainings."""
    workers: int = 1
    """Ray Train workers for one expert (data parallel): the batch size is that of all of them."""


@dataclass(frozen=True, kw_only=True)
class Ligand:
    """The gate and its training (the paper's Portland)."""

    epochs: int = 10
    """Passes; each is min_t(batches of task t) rounds over the n tasks."""
    batch_size: int = 128
    alignment_form: Literal["scalar", "gram"] = "scalar"
    """The weighted-offset term L_a: the reference's scalar, or the Gram matrix of the offsets."""
    seeds: tuple[int, ...] = ()
    """Ligands of each combination, one for each seed, of every expert seed; (): the experts' own seed."""
    input: LigandInput | None = None
    """What the gate is trained on: embeddings as they are, with mean 0 and deviation 1 over the train images,
    or each at length 1. None, of this and of the next three: the protocol's."""
    rate: Rate | None = None
    """The setting's learning rate throughout, or falling from it to 0 as half a cosine."""
    average: float | None = None
    """Share of the last rounds over which the weights are averaged; 0: the last weights alone."""
    semi: Semi | None = None
    """L_b without labels: the entropy of predictions, or minus the mutual information of image and class."""

    def recipe(self, protocol: str) -> LigandRecipe:
        """Input, rate, average and semi: what is given, else what `protocol` takes."""
        base = PAPER if protocol == "paper" else DEFAULT
        names = ("input", "rate", "average", "semi")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(base, **given)

    def identity(self, protocol: str, objective: str) -> dict[str, Any]:
        """What a ligand is told apart by, as far as this goes."""
        own = {"epochs": self.epochs, "batch_size": self.batch_size, "alignment_form": self.alignment_form}
        recipe = self.recipe(protocol).identity
        return own | {name: value for name, value in recipe.items() if name != "semi" or objective == name}


@dataclass(frozen=True, kw_only=True)
class Search:
    """One (learning rate, alignment weight) for each cell (arch, origin, n, sup or semi)."""

    trials: int = 8
    """Settings for each cell, the reference's (1e-3, 0.01) first, then a seeded quasi-random list."""
    learning_rate: tuple[float, float] = (1e-4, 1e-1)
    alignment_weight: tuple[float, float] = (1e-4, 10.0)
    zero_alignment: float = 0.25
    """Fraction of the settings whose alignment weight is 0."""
    val_images: int = 200
    """Val images of each task that the merged models of a trial are measured on."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured on the test split."""

    granularities: tuple[str, ...] = GRANULARITIES
    """What one merged model serves (docs/results.md); plugins add others."""
    sample_images: int = 200
    """Test images of each task at `sample`, where every image has a merged model of its own."""
    batch_size: int = 128
    order_seeds: int = 5
    """Shuffles of the batches; dealt out over the seeds where a combination has several ligands."""
    batchnorm_images: int = 480
    """Unlabelled train images of each task that re-estimate BatchNorm statistics."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What one worker takes, and what the run may take of the cluster."""

    cpus_per_worker: int = 1
    """CPUs, and torch threads, of each worker: fixed, so that the same command gives the same numbers."""
    gpus_per_worker: float = 0.0
    gpus_per_evaluation: float | None = None
    """GPUs of one job that evaluates or measures, 0.25 to let four share one; None: gpus_per_worker."""
    cpus_per_trial: float | None = None
    """CPUs of one ligand trial, 0.5 to let two share one; None: cpus_per_worker."""
    max_groups: int | None = None
    """Most groups of training workers at once; None: as many as fit."""
    max_failures: int = 3
    """Retries after a lost worker or node, for each job."""
    autoscaling: bool = False
    """The cluster grows on demand: do not refuse what it does not have yet."""

    @property
    def trial_cpus(self) -> float:
        return self.cpus_per_worker if self.cpus_per_trial is None else self.cpus_per_trial

    @property
    def evaluation_gpus(self) -> float:
        return self.gpus_per_worker if self.gpus_per_evaluation is None else self.gpus_per_evaluation


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison of merging and ensembling: which models, which combinations, which methods."""

    name: str
    archs: tuple[str, ...] = ("tiny-vit", "tiny-rn")
    origins: tuple[str, ...] = ("seed-0",)
    """Foundation weights: seed-K of our own pre-training, open_clip tags, paths, hf-hub:OWNER/NAME, the mean
    of an origin's experts as NAME=fuse:ORIGIN:TASK+TASK; with ARCH: in front, of that arch alone."""
    tasks: tuple[str, ...] = ("digits", "letters", "signs", "shapes", "textures")
    """Names, [NAME=]folder:PATH, or [NAME=]hub:DATASET?image=COLUMN&label=COLUMN (docs/tasks.md)."""
    experts: tuple[str, ...] = ()
    """Imported experts in place of fine-tuning: files of `neulig import`, or their names in the storage
    (ARCH.TASK@ORIGIN-FINGERPRINT, or without the fingerprint where only one is there)."""
    n: tuple[int, ...] = (2,)
    """Numbers of collaborators."""
    combinations: int | None = None
    """Most combinations of each n, drawn by the seed so that tasks occur evenly; None: all."""
    mixed_origins: tuple[int, ...] = ()
    """The n for which combinations of experts that start from different origins are added."""
    methods: tuple[str, ...] = METHODS
    """Method names, each with options as name:option=value,option=value."""
    alignment: tuple[Objective, ...] = ("sup", "semi")
    """The ligand's prediction term: cross-entropy with class labels, what `ligand.semi` says without, or the
    cross-entropy of beta with the data set that an image is from."""
    protocol: Literal["standard", "paper"] = "standard"
    """Which splits: `standard`, or `paper`, the reference's, whose test images lie in the training split."""
    views: int = 1
    """Protocol paper: how often each test image is shown through the training transform; 0: never."""
    published: str = ""
    """Published rows that the report shows beside these: the stem of a file in report/published."""
    seed: int = 0
    """Of experts, ligands, search and orders."""
    seeds: tuple[int, ...] = ()
    """In place of `seed`, several: of experts, ligands and methods together, each with rows of its own.
    Combinations, images of val and of `sample`, the settings searched and the orders are the first one's for
    all, so that rows are pairs."""
    task_seed: int = 0
    """Of the tasks' images and splits."""
    plugins: tuple[str, ...] = ()
    """Python files that add tasks, archs, methods or granularities."""
    pretrain: Pretrain = field(default_factory=Pretrain)
    finetune: Finetune = field(default_factory=Finetune)
    ligand: Ligand = field(default_factory=Ligand)
    search: Search = field(default_factory=Search)
    evaluation: Evaluation = field(default_factory=Evaluation)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def by_seed(self) -> "tuple[Experiment, ...]":
        """One experiment for each of the seeds, which is its `seed`; what all share is still `drawn_by`."""
        return tuple(replace(self, seed=seed) for seed in self.seeds or (self.seed,))

    @property
    def drawn_by(self) -> int:
        """The seed of what is the same for all seeds: combinations, images, settings, orders."""
        return self.seeds[0] if self.seeds else self.seed

    @property
    def ligand_seeds(self) -> tuple[int, ...]:
        """Of the ligands beside the experts of `seed`."""
        return self.ligand.seeds or (self.seed,)


def _check_name(name: str) -> None:
    if usable_name(name):
        return
    if reserved(name):
        raise InputError(
            f"name {name!r} is reserved: storages and MLflow keep things of their own under it. "
            f"Choose another, such as {'my-' + name!r}"
        )
    raise InputError(
        f"name {name[: LONGEST + 1]!r}: use at most {LONGEST} letters, digits, '_', '.' and '-', "
        "a letter or digit first and no '.' last (it names a folder)"
    )


def check_values(experiment: Experiment) -> None:
    """Raises InputError for values that no run could use, naming the field, the value and the remedy."""
    e = experiment
    _check_name(e.name)
    for label, values in (("archs", e.archs), ("origins", e.origins), ("tasks", e.tasks), ("n", e.n)):
        if not values:
            raise InputError(f"{label} is empty: name at least one")
        if len(set(values)) != len(values):
            twice = next(v for v in values if values.count(v) > 1)
            raise InputError(f"{label} names {twice!r} twice")
    for n in e.n:
        if n < 2:
            raise InputError(f"n {n}: a combination has at least 2 collaborators")
        if n > len(e.tasks):
            raise InputError(
                f"n {n} is larger than the number of tasks ({len(e.tasks)}: {', '.join(e.tasks)}); "
                f"add tasks or use n of at most {len(e.tasks)}"
            )
    for label, seeds in (("seeds", e.seeds), ("ligand.seeds", e.ligand.seeds)):
        if len(set(seeds)) != len(seeds):
            raise InputError(f"{label} names {next(s for s in seeds if seeds.count(s) > 1)} twice")
        if negative := [seed for seed in seeds if seed < 0]:
            raise InputError(f"{label} {negative[0]} must not be negative")
    if e.seeds and e.seed not in (0, e.seeds[0]):
        raise InputError(
            f"seed {e.seed} beside seeds {e.seeds}: they are in its place; leave one of them out"
        )
    for objective in e.alignment:
        if objective not in get_args(Objective):
            raise unknown("objective in alignment:", str(objective), get_args(Objective))
        if e.alignment.count(objective) > 1:
            raise InputError(f"alignment names {objective!r} twice")
    if e.protocol == "standard" and e.views != 1:
        raise InputError(f"views {e.views} is of protocol paper alone: leave it out, or use --protocol paper")
    if extra := [n for n in e.mixed_origins if n not in e.n]:
        raise InputError(
            f"mixed_origins {extra[0]} is not among n ({', '.join(map(str, e.n))}): add it there"
        )
    if e.mixed_origins and len(e.origins) < 2:
        raise InputError(f"mixed_origins needs two origins or more, not {len(e.origins)}: add --origins")
    gated = [name for name in ("ligand", "hard-routing") if name in e.methods]
    if gated and not e.alignment:
        raise InputError(
            f"alignment is empty, but {gated[0]} is among the methods and needs a ligand: use sup, semi or "
            "both"
        )
    positive = {
        "combinations": e.combinations,
        "pretrain.steps": e.pretrain.steps,
        "pretrain.batch_size": e.pretrain.batch_size,
        "pretrain.learning_rate": e.pretrain.learning_rate,
        "pretrain.images": e.pretrain.images,
        "pretrain.workers": e.pretrain.workers,
        "finetune.epochs": e.finetune.epochs,
        "finetune.batch_size": e.finetune.batch_size,
        "finetune.learning_rate": e.finetune.learning_rate,
        "finetune.micro_batch": e.finetune.micro_batch,
        "finetune.workers": e.finetune.workers,
        "ligand.epochs": e.ligand.epochs,
        "ligand.batch_size": e.ligand.batch_size,
        "search.trials": e.search.trials,
        "search.val_images": e.search.val_images,
        "evaluation.sample_images": e.evaluation.sample_images,
        "evaluation.batch_size": e.evaluation.batch_size,
        "evaluation.order_seeds": e.evaluation.order_seeds,
        "evaluation.batchnorm_images": e.evaluation.batchnorm_images,
        "cluster.cpus_per_worker": e.cluster.cpus_per_worker,
        "cluster.cpus_per_trial": e.cluster.cpus_per_trial,
        "cluster.max_groups": e.cluster.max_groups,
    }
    for label, value in positive.items():
        if value is not None and not value > 0:
            raise InputError(f"{label} {value!r} must be greater than 0")
    for label, value in {
        "cluster.gpus_per_worker": e.cluster.gpus_per_worker,
        "cluster.gpus_per_evaluation": e.cluster.evaluation_gpus,
        "seed": e.seed,
        "task_seed": e.task_seed,
        "views": e.views,
        "cluster.max_failures": e.cluster.max_failures,
    }.items():
        if not value >= 0:
            raise InputError(f"{label} {value!r} must not be negative")
    for label, (low, high) in (
        ("search.learning_rate", e.search.learning_rate),
        ("search.alignment_weight", e.search.alignment_weight),
    ):
        if not 0 < low <= high:
            raise InputError(f"{label} ({low}, {high}) must be an increasing pair of positive numbers")
    if not 0 <= e.search.zero_alignment <= 1:
        raise InputError(f"search.zero_alignment {e.search.zero_alignment} must lie in 0..1")
    e.ligand.recipe(e.protocol).check()
    if "ligand" in e.methods and not e.evaluation.granularities:
        raise InputError(f"evaluation.granularities is empty: use some of {', '.join(GRANULARITIES)}")
    for granularity in e.evaluation.granularities:
        check_granularity(granularity, "granularity in evaluation.granularities:")
        if e.evaluation.granularities.count(granularity) > 1:
            raise InputError(f"evaluation.granularities names {granularity!r} twice")
