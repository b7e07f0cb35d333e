"""Portland: its loss and gradient worked out by hand, its training, and what makes it reproducible."""

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import KEYS, make_data, make_states

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.ligand.coopvec import coopvecs, entropy, global_beta, routing_accuracy, task_beta
from neulig_ray.ligand.data import Combination, LigandData
from neulig_ray.ligand.loss import ligand_loss, prediction_loss
from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.recipe import PAPER
from neulig_ray.ligand.schedule import Schedule
from neulig_ray.ligand.training import ligand_rungs, train_ligands
from neulig_ray.ligand.weighted_offset import Offsets, weighted_offset_loss
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.seeds import stable_seed

PAIR: Combination = ("a@o", "b@o")
STANDARD_PAIR = torch.tensor([[[0.5, -0.5], [-0.5, 0.5]]])  # s s^T of s = (0.7071, -0.7071)


def experts_data(
    sizes: dict[str, int], classes: dict[str, int], *, dim: int = 8, seed: int = 0
) -> LigandData:
    """Experts that know their own task: class means plus noise; foreign tasks are noise around a point."""
    rng = np.random.default_rng(seed)
    labels = {t: rng.integers(0, classes[t], n) for t, n in sizes.items()}
    heads = {f"{t}@o": 10 * rng.standard_normal((c, dim)).astype(np.float32) for t, c in classes.items()}
    embeddings = {}
    for expert in sizes:
        for task, size in sizes.items():
            z = rng.standard_normal((size, dim)) + 3 * rng.standard_normal(dim)
            if task == expert:
                z = rng.standard_normal((size, dim)) + 0.5 * heads[f"{task}@o"][labels[task]]
            embeddings[f"{expert}@o", task] = z.astype(np.float32)
    for array in (*embeddings.values(), *labels.values(), *heads.values()):
        array.flags.writeable = False
    return LigandData(embeddings, labels, heads)


SIZES, CLASSES = {"a": 150, "b": 333, "c": 70}, {"a": 3, "b": 7, "c": 4}
DATA = experts_data(SIZES, CLASSES)
TRIPLE_PAIRS: list[Combination] = [("a@o", "b@o"), ("a@o", "c@o"), ("b@o", "c@o")]
SETTINGS: dict[str, Any] = {"learning_rate": 3e-3, "alignment_weight": 0.01, "batch_size": 32, "seed": 5}


def hand_portland() -> Portland:
    """beta = (3/4, 1/4) for whatever input."""
    return Portland([PAIR], torch.zeros(1, 2, 4), torch.tensor([[math.log(3), 0.0]]))


def test_loss_and_gradient_worked_out_by_hand() -> None:
    # One image, z_1 = (1, 0), z_2 = (0, 1): the ensembled embedding is beta itself.
    z = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    scale, alpha = 4.0, 0.1
    heads = scale * torch.eye(2)[None]
    portland = hand_portland()
    loss = ligand_loss(
        portland.logits(z), z.view(1, 1, 2, 2), heads, torch.tensor([[0]]), torch.ones(1, 1), STANDARD_PAIR,
        own=0, objective="sup", semi="entropy", alignment_weight=alpha,
    )  # fmt: skip
    # ||(3/4, 1/4)|| = sqrt(10)/4, so the normalised embedding is (3, 1)/sqrt(10).
    u0, u1 = 3 / math.sqrt(10), 1 / math.sqrt(10)
    p1 = 1 / (1 + math.exp(scale * (u0 - u1)))  # 0.0738
    cross_entropy = -math.log(1 - p1)  # 0.0767
    offset = 0.5 * (0.75 - 0.25) ** 2  # (beta . s)^2 = 1/8
    assert loss.item() == pytest.approx(cross_entropy + alpha * offset, abs=1e-6)
    assert loss.item() == pytest.approx(0.089158, abs=1e-5)

    loss.sum().backward()
    # dL/dlogits = (-p1, p1); dlogits/dembedding = scale / norm (I - u u^T); dembedding/dbeta_i = z_i.
    inner = -p1 * u0 + p1 * u1
    factor = scale / (math.sqrt(10) / 4)
    by_beta = [factor * (-p1 - u0 * inner), factor * (p1 - u1 * inner)]
    by_beta = [by_beta[0] + alpha * (0.75 - 0.25), by_beta[1] - alpha * (0.75 - 0.25)]
    mean = 0.75 * by_beta[0] + 0.25 * by_beta[1]
    by_logit = [0.75 * (by_beta[0] - mean), 0.25 * (by_beta[1] - mean)]
    assert by_logit == pytest.approx([-0.093261, 0.093261], abs=1e-5)
    assert portland.bias.grad is not None
    assert portland.weight.grad is not None
    assert portland.bias.grad[0].tolist() == pytest.approx(by_logit, abs=1e-6)
    expected = torch.outer(torch.tensor(by_logit), torch.tensor([1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(portland.weight.grad[0], expected, atol=1e-6, rtol=1e-5)


def test_the_entropy_objective_worked_out_by_hand_needs_no_labels() -> None:
    logits = torch.tensor([[[math.log(3), 0.0, -torch.inf]]])  # the third class is impossible
    expected = -0.75 * math.log(0.75 + 1e-6) - 0.25 * math.log(0.25 + 1e-6)
    for label in (0, 1):
        found = prediction_loss(logits, torch.tensor([[label]]), torch.ones(1, 1), "semi", "entropy")
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_mutual_information_worked_out_by_hand() -> None:
    """Two sure images: of two classes they tell log 2, of one none; entropy takes both for as good."""
    apart = torch.tensor([[[50.0, 0.0], [0.0, 50.0]]])
    alike = torch.tensor([[[50.0, 0.0], [50.0, 0.0]]])
    weights, labels = torch.full((1, 2), 0.5), torch.zeros(1, 2, dtype=torch.int64)
    for logits, told in ((apart, math.log(2)), (alike, 0.0)):
        found = {
            semi: prediction_loss(logits, labels, weights, "semi", semi).item()
            for semi in ("entropy", "information")
        }
        assert found["entropy"] == pytest.approx(0, abs=1e-5)
        assert found["information"] == pytest.approx(-told, abs=1e-5)


def test_an_image_of_weight_0_changes_no_loss() -> None:
    logits, labels = torch.randn(2, 3, 4), torch.randint(0, 4, (2, 3))
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    for objective, semi in (("sup", "entropy"), ("semi", "entropy"), ("semi", "information")):
        found = prediction_loss(logits, labels, weights, objective, semi)
        other = logits.clone()
        other[:, 2] = 7 * torch.randn(4)
        torch.testing.assert_close(prediction_loss(other, labels, weights, objective, semi), found)


def test_route_is_the_cross_entropy_of_beta_with_the_own_expert() -> None:
    beta, weights = hand_portland()(torch.zeros(1, 1, 4)).squeeze(2), torch.ones(1, 1)
    for own, probability in ((0, 0.75), (1, 0.25)):
        loss = ligand_loss(
            hand_portland().logits(torch.zeros(1, 1, 4)), torch.randn(1, 1, 2, 2), torch.randn(1, 3, 2),
            torch.tensor([[2]]), weights, STANDARD_PAIR,
            own=own, objective="route", semi="entropy", alignment_weight=0.2,
        )  # fmt: skip
        assert loss.item() == pytest.approx(-math.log(probability) + 0.2 * 0.125, abs=1e-6)
    assert beta[0, 0].tolist() == pytest.approx([0.75, 0.25])


def test_forward_is_a_linear_layer_and_a_softmax_for_each_member() -> None:
    portland = Portland.initialised(TRIPLE_PAIRS, 8, seed=1)
    z = torch.randn(3, 6, 8)
    beta = portland(z)
    assert beta.shape == (3, 6, 1, 2)
    for m in range(3):
        expected = torch.softmax(z[m] @ portland.weight[m].T + portland.bias[m], -1)
        torch.testing.assert_close(beta[m, :, 0], expected)


def test_a_members_initialisation_does_not_depend_on_its_neighbours() -> None:
    together = Portland.initialised(TRIPLE_PAIRS, 8, seed=1)
    alone = Portland.initialised([TRIPLE_PAIRS[1]], 8, seed=1)
    assert torch.equal(together.weight[1], alone.weight[0])
    assert torch.equal(together.bias[1], alone.bias[0])
    assert not torch.equal(alone.weight, Portland.initialised([TRIPLE_PAIRS[1]], 8, seed=2).weight)
    assert together.weight.abs().max() <= 1 / math.sqrt(8)
    assert together.weight.detach().std().item() == pytest.approx(1 / math.sqrt(8) / math.sqrt(3), rel=0.25)


def test_seeds_are_the_same_in_another_process() -> None:
    code = "from neulig_ray.seeds import stable_seed; print(stable_seed('portland', 3, 'a,b'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) == stable_seed("portland", 3, "a,b")
    assert stable_seed("ab", "c") != stable_seed("a", "bc")


def test_state_goes_to_tensors_and_back() -> None:
    portland = Portland.initialised(TRIPLE_PAIRS, 8, seed=1)
    again = Portland.from_state(portland.combinations, portland.state())
    assert again.combinations == portland.combinations
    assert torch.equal(again.weight, portland.weight)
    chosen = portland.select(2)
    assert chosen.combinations == (TRIPLE_PAIRS[2],)
    assert torch.equal(chosen.bias[0], portland.bias[2])
    assert torch.equal(portland.select(-1).weight, chosen.weight)


@pytest.mark.parametrize("objective", ["sup", "semi", "route"])
def test_stacked_members_equal_members_trained_alone(objective: str) -> None:
    # Epochs of 5, 3 and 3 rounds, heads of 3, 7 and 4 classes; two seeds of each.
    forms = torch.stack([STANDARD_PAIR[0]] * 3) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    options = {**SETTINGS, "seed": [5] * 3 + [6] * 3}
    both = [*TRIPLE_PAIRS, *TRIPLE_PAIRS]
    together = train_ligands(both, DATA, forms.repeat(2, 1, 1), objective=objective, epochs=3, **options)
    assert together.seeds == (5, 5, 5, 6, 6, 6)
    for m, pair in enumerate(both):
        own = {**SETTINGS, "seed": together.seeds[m]}
        alone = train_ligands([pair], DATA, forms[m % 3][None], objective=objective, epochs=3, **own)
        assert together.member(pair, own["seed"]) == m
        assert torch.equal(together.weight[m], alone.weight[0])
        assert torch.equal(together.bias[m], alone.bias[0])


def test_training_equals_a_plain_loop_of_the_paper() -> None:
    pair, epochs, batch = TRIPLE_PAIRS[0], 2, 32
    forms = STANDARD_PAIR
    options = {**SETTINGS, "recipe": PAPER}
    trained = train_ligands([pair], DATA, forms, objective="sup", epochs=epochs, **options)
    start = Portland.initialised([pair], 16, seed=5)
    gate = torch.nn.Linear(16, 2)
    gate.load_state_dict({"weight": start.weight[0].detach(), "bias": start.bias[0].detach()})
    adam = torch.optim.Adam(gate.parameters(), lr=3e-3)
    rounds = iter(Schedule(pair, (150, 333), batch, seed=5))
    for _ in range(epochs * 5):  # min(ceil(150 / 32), ceil(333 / 32)) rounds
        images, weights = next(rounds)
        for slot, task in enumerate("ab"):
            rows = images[slot][weights[slot] > 0]
            z = [torch.tensor(DATA.embeddings[c, task][rows]) for c in pair]
            beta = gate(torch.cat(z, 1)).softmax(-1)
            ensembled = beta[:, :1] * z[0] + beta[:, 1:] * z[1]
            logits = torch.nn.functional.normalize(ensembled) @ torch.tensor(DATA.heads[pair[slot]]).T
            s = torch.tensor([1.0, -1.0]) / math.sqrt(2)
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(DATA.labels[task][rows]))
            loss = loss + 0.01 * (beta @ s).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    torch.testing.assert_close(trained.weight[0], gate.weight, atol=2e-6, rtol=1e-5)


def test_rungs_are_the_ligand_after_so_many_epochs() -> None:
    forms = STANDARD_PAIR.repeat(3, 1, 1)
    rungs = dict(ligand_rungs(TRIPLE_PAIRS, DATA, forms, objective="sup", rungs=(0, 1, 3), **SETTINGS))
    assert list(rungs) == [0, 1, 3]
    for epochs, portland in rungs.items():
        straight = train_ligands(TRIPLE_PAIRS, DATA, forms, objective="sup", epochs=epochs, **SETTINGS)
        assert torch.equal(portland.weight, straight.weight), epochs


def test_the_same_seed_gives_the_same_ligand_and_another_gives_another() -> None:
    forms = STANDARD_PAIR.repeat(3, 1, 1)
    once, again = (
        train_ligands(TRIPLE_PAIRS, DATA, forms, objective="sup", epochs=1, **SETTINGS) for _ in range(2)
    )
    assert torch.equal(once.weight, again.weight)
    other = train_ligands(TRIPLE_PAIRS, DATA, forms, objective="sup", epochs=1, **{**SETTINGS, "seed": 6})
    assert not torch.allclose(once.weight, other.weight)


def test_supervision_teaches_routing_and_a_huge_alignment_weight_forbids_it() -> None:
    pair = TRIPLE_PAIRS[2]
    found = {}
    for alpha in (0.0, 1e4):
        options = {**SETTINGS, "alignment_weight": alpha, "learning_rate": 1e-2}
        portland = train_ligands([pair], DATA, STANDARD_PAIR, objective="sup", epochs=15, **options)
        betas = [coopvecs(portland, 0, DATA, task) for task in "bc"]
        found[alpha] = [routing_accuracy(betas[0], 0), routing_accuracy(betas[1], 1), *map(entropy, betas)]
    assert min(found[0.0][:2]) > 95
    assert max(found[0.0][2:]) < 0.3
    assert min(found[1e4][2:]) > 0.98


def test_without_alignment_weight_the_forms_are_not_looked_at() -> None:
    options = {**SETTINGS, "alignment_weight": 0.0}
    one, other = (
        train_ligands([PAIR], DATA, forms, objective="sup", epochs=1, **options)
        for forms in (STANDARD_PAIR, torch.full((1, 2, 2), torch.nan))
    )
    assert torch.equal(one.weight, other.weight)


def test_nan_stops_with_the_combination_and_the_epoch() -> None:
    spoilt = DATA.embeddings["c@o", "b"].copy()
    spoilt[:] = np.nan
    data = replace(DATA, embeddings={**DATA.embeddings, ("c@o", "b"): spoilt})
    with pytest.raises(TrainingDiverged, match=r"b@o,c@o.*epoch 1 of 2"):
        train_ligands(
            TRIPLE_PAIRS, data, STANDARD_PAIR.repeat(3, 1, 1), objective="sup", epochs=2, **SETTINGS
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {**DATA.labels, "a": np.full(150, 3)}}, "labels run from 3 to 3.*has 3 classes"),
        ({"labels": {**DATA.labels, "a": np.zeros(149, int)}}, "150 embeddings by 'a@o', but 149 labels"),
        ({"heads": {**DATA.heads, "a@o": np.ones((3, 9), np.float32)}}, r"different dimensions \[8, 9\]"),
        ({"heads": {"a@o": DATA.heads["a@o"]}}, "no heads of 'b@o'"),
        ({"labels": {**DATA.labels, "a": np.zeros(0, int)}}, "task 'a' has no image"),
    ],
)
def test_data_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    data = replace(DATA, **change)
    with pytest.raises(InputError, match=message):
        train_ligands([PAIR], data, STANDARD_PAIR, objective="sup", epochs=1, **SETTINGS)


def test_two_collaborators_of_one_task_are_refused() -> None:
    with pytest.raises(InputError, match="two collaborators of the task 'a'"):
        DATA.check(("a@o", "a@p"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 3))
def test_an_epoch_shows_no_image_twice_and_the_smallest_task_whole(
    sizes: list[int], batch: int, seed: int
) -> None:
    combination = tuple(f"{i}@o" for i in range(len(sizes)))
    schedule = Schedule(combination, sizes, batch, seed)
    assert schedule.rounds == math.ceil(min(sizes) / batch)
    stream = iter(schedule)
    for _ in range(2):
        epoch = [next(stream) for _ in range(schedule.rounds)]
        for slot, size in enumerate(sizes):
            seen = np.concatenate([images[slot][weights[slot] > 0] for images, weights in epoch])
            assert len(set(seen)) == len(seen) == min(size, schedule.rounds * batch)
            assert seen.max() < size
        for _, weights in epoch:
            np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_epochs_and_tasks_are_shuffled_differently() -> None:
    stream = iter(Schedule(PAIR, (64, 64), 64, seed=0))
    (first, _), (second, _) = next(stream), next(stream)
    assert len({tuple(order) for order in (*first, *second)}) == 4


def permuted(portland: Portland, order: list[int]) -> Portland:
    """The same gate for the collaborators in another order."""
    n = len(order)
    blocks = portland.weight.detach().view(1, n, n, -1)[:, order][:, :, order]
    combination = tuple(portland.combinations[0][i] for i in order)
    return Portland([combination], blocks.reshape(1, n, -1), portland.bias.detach()[:, order])


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 0, 1], [2, 1, 0]])
def test_permuting_the_experts_permutes_beta_and_changes_nothing_else(order: list[int]) -> None:
    states = make_states()
    stack, data = ExpertStack.from_states(states), make_data("train", states)
    offsets = Offsets.measure(stack)
    gates = [Portland.initialised([KEYS], 18, seed=2)]
    gates.append(permuted(gates[0], order))
    results = []
    for gate in gates:
        keys = gate.combinations[0]
        z = torch.cat(list(data.stacked(keys, "b")), -1).unsqueeze(0)
        heads, labels = data.head("b@seed-0")[None], data.label("b").unsqueeze(0)
        loss = ligand_loss(
            gate.logits(z),
            z.view(*z.shape[:2], len(keys), -1),
            heads,
            labels,
            torch.full(labels.shape, 1 / labels.shape[1]),
            offsets.form(keys, "scalar").unsqueeze(0),
            own=keys.index("b@seed-0"),
            objective="sup",
            semi="entropy",
            alignment_weight=1.0,
        )
        loss.sum().backward()
        assert gate.bias.grad is not None
        beta = coopvecs(gate, 0, data, "b")
        results.append(
            (beta, loss.detach(), gate.bias.grad, stack.select(keys).combine(beta[3])["conv.weight"])
        )
    (beta, loss, gradient, merged), (beta_p, loss_p, gradient_p, merged_p) = results
    torch.testing.assert_close(beta_p, beta[:, order])
    torch.testing.assert_close(loss_p, loss)
    torch.testing.assert_close(gradient_p, gradient[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged_p, merged)


def stack_of(vectors: np.ndarray) -> ExpertStack:
    return ExpertStack.from_states(
        {str(i): {"weight": torch.tensor(v), "bn.running_var": torch.tensor(v) ** 2,
                  "bn.num_batches_tracked": torch.tensor(100 * i)} for i, v in enumerate(vectors)}
    )  # fmt: skip


vectors = st.tuples(st.integers(2, 6), st.integers(1, 12), st.integers(0, 10**6)).map(
    lambda t: np.random.default_rng(t[2]).standard_normal(t[:2]).astype(np.float32)
)


@settings(max_examples=60, deadline=None)
@given(vectors)
def test_offset_forms_vanish_at_the_mean_and_have_their_scale(theta: np.ndarray) -> None:
    n = len(theta)
    offsets, keys = Offsets.measure(stack_of(theta)), [str(i) for i in range(n)]
    s, gram = offsets.scalar(keys), offsets.normalised_gram(keys)
    assert float(s.sum()) == pytest.approx(0, abs=1e-9)
    assert float(s.square().sum()) == pytest.approx(n - 1)
    assert float(gram.trace()) == pytest.approx(n)
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-9
    exact = theta.astype(np.float64) - theta.astype(np.float64).mean(0)
    np.testing.assert_allclose(gram, exact @ exact.T / (np.trace(exact @ exact.T) / n), atol=1e-8)
    sums = exact.sum(1)
    np.testing.assert_allclose(s, sums / sums.std(ddof=1), atol=1e-8)
    uniform = torch.full((1, 1, n), 1 / n)
    for kind in ("scalar", "gram"):
        form = offsets.form(keys, kind).unsqueeze(0)
        assert weighted_offset_loss(uniform, form).item() == pytest.approx(0, abs=1e-6)
        assert weighted_offset_loss(torch.rand(1, 5, n).softmax(-1), form).min() > -1e-6


@settings(max_examples=20, deadline=None)
@given(vectors)
def test_a_combinations_form_does_not_depend_on_the_other_experts(theta: np.ndarray) -> None:
    keys = [str(i) for i in range(len(theta))][-2:]
    alone = Offsets.measure(stack_of(theta).select(keys))
    for kind in ("scalar", "gram"):
        together = Offsets.measure(stack_of(theta)).form(keys, kind)
        torch.testing.assert_close(together, alone.form(keys, kind), atol=1e-6, rtol=1e-6)


def test_two_collaborators_always_have_the_same_standardised_sums() -> None:
    offsets = Offsets.measure(stack_of(np.array([[1.0, 2.0], [3.0, 9.0]], np.float32)))
    assert offsets.scalar(["0", "1"]).tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_equal_experts_have_no_offset() -> None:
    equal = Offsets.measure(stack_of(np.full((3, 5), 0.1, np.float32)))
    assert equal.form(["0", "1", "2"], "scalar").abs().max() == 0
    assert equal.form(["0", "1", "2"], "gram").abs().max() == 0


def test_buffers_and_counters_count_only_where_the_paper_protocol_asks() -> None:
    theta = np.array([[1.0, 2.0], [3.0, 5.0], [0.0, 9.0]], np.float32)
    keys = ["0", "1", "2"]
    with_buffers = Offsets.measure(stack_of(theta), include_buffers=True).scalar(keys)
    sums = theta.sum(1) + (theta**2).sum(1) + np.array([0, 100, 200])
    np.testing.assert_allclose(with_buffers, (sums - sums.mean()) / sums.std(ddof=1), rtol=1e-6)
    without = Offsets.measure(stack_of(theta)).scalar(keys)
    np.testing.assert_allclose(without, (theta.sum(1) - 20 / 3) / theta.sum(1).std(ddof=1), rtol=1e-6)


def test_weighted_offset_loss_is_the_squared_weighted_offset() -> None:
    beta, s = torch.rand(2, 4, 3).softmax(-1), torch.randn(2, 3)
    found = weighted_offset_loss(beta, s.unsqueeze(2) * s.unsqueeze(1))
    torch.testing.assert_close(found, (beta * s.unsqueeze(1)).sum(-1).square())


def test_task_and_global_betas_are_means() -> None:
    portland = train_ligands([PAIR], DATA, STANDARD_PAIR, objective="sup", epochs=1, **SETTINGS)
    betas = {task: coopvecs(portland, 0, DATA, task) for task in "ab"}
    torch.testing.assert_close(task_beta(portland, 0, DATA, "b"), betas["b"].mean(0))
    expected = (betas["a"].mean(0) + betas["b"].mean(0)) / 2  # tasks count the same, images do not
    torch.testing.assert_close(global_beta(portland, 0, DATA), expected)
    torch.testing.assert_close(betas["a"].sum(1), torch.ones(150))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.floats(0.01, 50), st.integers(0, 1000))
def test_entropy_is_a_fraction_of_the_most_there_can_be(n: int, sharpness: float, seed: int) -> None:
    torch.manual_seed(seed)
    assert 0 <= entropy((sharpness * torch.randn(7, n)).softmax(-1)) <= 1 + 1e-6


def test_entropy_and_routing_at_their_ends() -> None:
    assert entropy(torch.eye(3)) == 0
    assert entropy(torch.full((4, 3), 1 / 3)) == pytest.approx(1)
    assert entropy(torch.ones(4, 1)) == 0
    assert routing_accuracy(torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.7, 0.3]]), 0) == 75.0


def test_read_only_inputs_are_not_written_to() -> None:
    before = {key: array.copy() for key, array in DATA.embeddings.items()}
    assert not any(array.flags.writeable for array in DATA.embeddings.values())
    train_ligands([PAIR], DATA, STANDARD_PAIR, objective="semi", epochs=1, **SETTINGS)
    for key, array in DATA.embeddings.items():
        np.testing.assert_array_equal(array, before[key])
