"""The paired bootstrap and the sign test, against scipy and against what is true of simulated systems."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neulig_ray.results.paired import Difference, bootstrap, difference, sign_test


def systems(images: int, seed: int = 0, better: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers (N,) of two systems that mostly fail on the same images."""
    generator = np.random.default_rng(seed)
    hard = generator.random(images)
    noise = generator.normal(0, 0.08, (2, images))
    return (hard + noise[0] < 0.8 + better).astype(float), (hard + noise[1] < 0.8).astype(float)


@pytest.mark.parametrize("images", [40, 500])
def test_the_interval_is_that_of_scipy(images: int) -> None:
    first, second = systems(images)
    result = stats.bootstrap(
        (first, second),
        lambda x, y, axis: 100 * (x - y).mean(axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(1),
    )
    found = difference([first], [second])
    width = found.high - found.low
    assert found.points == pytest.approx(100 * (first.mean() - second.mean()))
    assert found.low == pytest.approx(result.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(result.confidence_interval.high, abs=0.05 * width)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_the_sign_test_is_that_of_scipy(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_the_sign_test_counts_many_pairs() -> None:
    assert sign_test(30_300, 29_700) == pytest.approx(stats.binomtest(29_700, 60_000).pvalue, rel=1e-7)


@pytest.mark.parametrize(("images", "wins", "losses"), [(200, 0.12, 0.06), (600, 0.05, 0.05)])
def test_the_interval_covers_the_truth_as_often_as_it_says(images: int, wins: float, losses: float) -> None:
    generator = np.random.default_rng(0)
    covered, tries = 0, 1000
    for seed in range(tries):
        counts = generator.multinomial(images, [wins, losses, 1 - wins - losses])
        low, high = bootstrap([np.repeat([1.0, -1.0, 0.0], counts)], resamples=1000, seed=seed)
        covered += low <= 100 * (wins - losses) <= high
    assert 0.93 <= covered / tries <= 0.97


def test_the_mean_over_tasks_weighs_each_alike_and_resamples_each_by_itself() -> None:
    (a, b), (c, d) = systems(900, 1), systems(100, 2)
    found = difference([a, c], [b, d])
    assert found.points == pytest.approx(100 * ((a - b).mean() + (c - d).mean()) / 2)
    spreads = [100 * (x - y).std() / np.sqrt(len(x)) for x, y in ((a, b), (c, d))]
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.hypot(*spreads) / 2, rel=0.05)
    assert (found.images, found.wins) == (1000, int((a > b).sum() + (c > d).sum()))


def test_seeds_that_differ_widen_the_interval_and_seeds_that_do_not_leave_it() -> None:
    one, other = systems(400)
    same = difference([np.stack([one] * 5)], [np.stack([other] * 5)])
    alone = difference([one], [other])
    assert (same.points, same.wins, same.losses, same.p) == (alone.points, alone.wins, alone.losses, alone.p)
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high), abs=0.3)
    shifted = [np.where(np.arange(400) < 40 * seed, 0.0, one) for seed in range(5)]
    wide = difference([np.stack(shifted)], [np.stack([other] * 5)])
    of_seeds = np.std([100 * part.mean() for part in shifted])
    assert wide.high - wide.low > 2 * 1.5 * of_seeds / np.sqrt(5)
    averaged = difference([np.mean(shifted, 0)], [other])
    assert wide.points == pytest.approx(averaged.points)
    assert wide.high - wide.low > averaged.high - averaged.low


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [np.random.default_rng(0).uniform(-1, 1, 50)]
    assert bootstrap(values, resamples=500, seed=3) == bootstrap(values, resamples=500, seed=3)
    assert bootstrap(values, resamples=500, seed=3) != bootstrap(values, resamples=500, seed=4)


def test_systems_that_never_differ_have_an_interval_of_no_width() -> None:
    answers = systems(50)[0]
    assert difference([answers], [answers]) == Difference(0.0, 0.0, 0.0, 0, 0, 1.0, 50)


def test_a_draw_of_many_kinds_is_done_in_parts() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 5000)
    low, high = bootstrap([values], resamples=2000)
    sd = 100 * values.std() / np.sqrt(5000)
    assert (low, high) == pytest.approx(
        (100 * values.mean() - 1.96 * sd, 100 * values.mean() + 1.96 * sd), abs=0.2 * sd
    )


def test_nothing_is_claimed_from_no_image_and_no_interval_from_one() -> None:
    none = difference([np.empty(0)], [np.empty(0)])
    assert np.isnan([none.points, none.low, none.high, none.p]).all()
    assert not none.significant
    single = difference([np.ones(1)], [np.zeros(1)])
    assert (single.points, single.wins, single.losses, single.p) == (100.0, 1, 0, 1.0)
    assert np.isnan([single.low, single.high]).all()


def test_images_with_nan_are_left_out_and_counted() -> None:
    first, second = systems(100)
    bad_first, bad_second = np.append(first, [np.nan, 1.0]), np.append(second, [1.0, np.nan])
    found, clean = difference([bad_first], [bad_second]), difference([first], [second])
    assert found.left_out == 2
    assert (found.points, found.low, found.high, found.images) == (
        clean.points,
        clean.low,
        clean.high,
        100,
    )
    seeds = np.stack([first, np.where(np.arange(100) == 7, np.nan, first)])
    assert difference([seeds], [np.stack([second] * 2)]).left_out == 1


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        difference([np.zeros(3)], [np.zeros(4)])
    with pytest.raises(ValueError, match="same seeds"):
        difference([np.zeros((2, 3)), np.zeros((3, 3))], [np.zeros((2, 3)), np.zeros((3, 3))])
