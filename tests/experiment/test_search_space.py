"""The settings of a search: the reference's first, then a repeatable list that covers the space."""

import math

import pytest

from neulig_ray.experiment.config import Search
from neulig_ray.experiment.search_space import REFERENCE, Setting, settings


def test_the_references_pair_comes_first() -> None:
    assert REFERENCE == (1e-3, 0.01)
    for seed in range(3):
        assert settings(Search(trials=5), seed)[0] == Setting(1e-3, 0.01)
    assert settings(Search(trials=1), 0) == [Setting(1e-3, 0.01)]


def test_seed_and_space_alone_decide() -> None:
    assert settings(Search(trials=16), 3) == settings(Search(trials=16), 3)
    assert settings(Search(trials=16), 3) != settings(Search(trials=16), 4)


def test_more_trials_keep_the_earlier_ones() -> None:
    assert settings(Search(trials=16), 1)[:6] == settings(Search(trials=6), 1)


def test_settings_lie_in_the_ranges_and_differ() -> None:
    found = settings(Search(trials=64), 0)
    assert len(set(found)) == len(found) == 64
    for setting in found[1:]:
        assert 1e-4 <= setting.learning_rate <= 1e-1
        assert setting.alignment_weight == 0 or 1e-4 <= setting.alignment_weight <= 10


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_zero_share_is_kept(share: float) -> None:
    found = settings(Search(trials=129, zero_alignment=share), 0)[1:]
    assert sum(s.alignment_weight == 0 for s in found) == pytest.approx(share * len(found), abs=2)


def test_both_axes_are_covered_log_uniformly() -> None:
    found = settings(Search(trials=65, zero_alignment=0.0), 0)[1:]
    for values, low, high in (
        ([s.learning_rate for s in found], 1e-4, 1e-1),
        ([s.alignment_weight for s in found], 1e-4, 10.0),
    ):
        places = [math.log(v / low) / math.log(high / low) for v in values]
        eighths = [sum(e <= 8 * p < e + 1 for p in places) for e in range(8)]
        assert all(6 <= count <= 10 for count in eighths), eighths


def test_a_setting_reads_back_from_its_text() -> None:
    for setting in settings(Search(trials=32), 2):
        assert float(f"{setting.learning_rate:g}") == setting.learning_rate
        assert float(f"{setting.alignment_weight:g}") == setting.alignment_weight


def test_a_degenerate_range_is_one_value() -> None:
    found = settings(Search(trials=4, learning_rate=(1e30, 1e30)), 0)
    assert {s.learning_rate for s in found[1:]} == {1e30}
