"""What the experiments' first lines and docs/paper.md count is what there is."""

import math
import re
from collections.abc import Iterator

import pytest
from conftest import REPOSITORY

from neulig_ray.cli.experiments import load_file
from neulig_ray.experiment.config import Experiment

FILES = sorted((REPOSITORY / "experiments").glob("*.py"))
PAPER = (REPOSITORY / "docs/paper.md").read_text(encoding="utf-8")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {**{word: i for i, word in enumerate(WORDS, 1)}, "twenty": 20, **{str(i): i for i in range(1, 21)}}
COUNT = re.compile(r"\b(\w+) (?:tiny |CLIP )?(task|arch|expert|pair)s?\b")
RANGE = re.compile(r"\b(\w+) to (\w+)\b")
ROW = re.compile(r"^\| `(\w+)(?: --([\w-]+))?` \| (.*?) \|", re.MULTILINE)


def stated() -> Iterator[tuple[str, str, Experiment]]:
    """Where, a text that counts, and the experiment that it speaks of."""
    for file in FILES:
        loaded = load_file(str(file))
        yield file.stem, loaded.about.splitlines()[0], loaded.experiment
    for stem, variant, text in ROW.findall(PAPER):
        loaded = load_file(str(REPOSITORY / f"experiments/{stem}.py"))
        yield f"docs/paper.md {stem} {variant}", text, loaded.variants.get(variant, loaded.experiment)


def counts() -> Iterator[tuple[str, str, int, int]]:
    """Where, what is counted, the number that is stated and the one that there is."""
    for where, text, e in stated():
        tasks = len(e.tasks)
        there = {"task": tasks, "expert": tasks, "arch": len(e.archs), "pair": math.comb(tasks, 2)}
        for number, what in COUNT.findall(text):
            if number.lower() in NUMBERS:
                yield where, what, NUMBERS[number.lower()], there[what]
        for low, high in RANGE.findall(text):
            if low.lower() in NUMBERS and high.lower() in NUMBERS:
                yield where, "least n", NUMBERS[low.lower()], min(e.n)
                yield where, "most n", NUMBERS[high.lower()], max(e.n)


@pytest.mark.parametrize(
    ("number", "there"), [pytest.param(*pair, id=f"{where}-{what}") for where, what, *pair in counts()]
)
def test_a_number_is_right(number: int, there: int) -> None:
    assert number == there


def test_numbers_are_found() -> None:
    assert len({where for where, *_ in counts()}) >= 10


def test_the_papers_files_are_counted() -> None:
    number = re.search(r"^(\w+) files in `experiments/`", PAPER, re.MULTILINE)
    assert number is not None
    assert NUMBERS[number[1].lower()] == len({stem for stem, *_ in ROW.findall(PAPER)})
