"""Parameters combined, BatchNorm statistics, and how methods are declared."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import ARCH, KEYS, SmallTower, make_images, make_states, make_tower

from neulig_ray.errors import InputError
from neulig_ray.evaluation.forward import embed_with
from neulig_ray.merging import METHODS
from neulig_ray.merging.batchnorm import has_batchnorm, re_estimate
from neulig_ray.merging.declare.streamed import StreamedMethod
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.models import Tensors
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import ARCHS

weights = st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3)


def read_only(stack: ExpertStack) -> ExpertStack:
    """As it comes out of an object store."""
    arrays = pickle.loads(pickle.dumps(stack.to_arrays()))
    for vector in arrays["vectors"].values():
        vector.flags.writeable = False
    return ExpertStack.from_arrays(arrays)


@settings(max_examples=25, deadline=None)
@given(weights)
def test_combined_parameters_are_the_naive_sum(beta: list[float]) -> None:
    states = make_states()
    merged = ExpertStack.from_states(states).combine(torch.tensor(beta))
    assert merged.keys() == states["a@seed-0"].keys()
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            naive = sum(
                np.float64(b) * s[name].double().numpy() for b, s in zip(beta, states.values(), strict=True)
            )
            np.testing.assert_allclose(tensor.numpy(), naive, rtol=1e-5, atol=1e-5)


def test_running_statistics_are_averaged_with_beta_and_counters_come_from_the_first() -> None:
    states = make_states()
    merged = ExpertStack.from_states(states).combine(torch.tensor([0.5, 0.25, 0.25]))
    first, second, third = (s["bn.running_var"] for s in states.values())
    torch.testing.assert_close(merged["bn.running_var"], 0.5 * first + 0.25 * second + 0.25 * third)
    assert merged["bn.num_batches_tracked"] == 3  # the others have 4 and 5


def test_parameters_come_first_in_a_vector() -> None:
    stack = ExpertStack.from_states(make_states())
    parameters = sum(p.numel() for p in SmallTower().parameters())
    assert stack.num_parameters == parameters
    assert stack.size == parameters + 8  # four means, four variances
    assert [vector.shape for vector in stack.vectors.values()] == [(stack.size,)] * 3
    assert stack.has_batchnorm
    torch.testing.assert_close(stack.vectors["b@seed-0"][-4:], make_states()["b@seed-0"]["bn.running_var"])


@pytest.mark.parametrize("expert", range(3))
def test_a_one_hot_beta_gives_back_the_expert_exactly(expert: int) -> None:
    states = make_states()
    merged = ExpertStack.from_states(states).combine(torch.eye(3)[expert])
    images = make_images("test")["b"]
    tower = make_tower(expert)
    expected = embed_with(tower, tower.state_dict(), images, ARCH)
    assert torch.equal(embed_with(SmallTower(), merged, images, ARCH), expected)


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit"])
def test_a_one_hot_beta_of_a_real_tower_gives_the_stored_embeddings(name: str) -> None:
    from neulig_ray.models.clip import build_tower, embed

    arch = ARCHS[name]
    towers = [build_tower(arch) for _ in range(2)]
    with torch.no_grad():
        for tensor in towers[1].state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    states = {f"{task}@seed-0": tower.state_dict() for task, tower in zip("ab", towers, strict=True)}
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    merged = ExpertStack.from_states(states).combine(torch.tensor([0.0, 1.0]))
    found = embed_with(towers[0], merged, images, arch)
    np.testing.assert_allclose(found.numpy(), embed(towers[1], images, arch), rtol=1e-5, atol=1e-5)
    assert not np.allclose(found.numpy(), embed(towers[0], images, arch), rtol=1e-2)


def test_shared_read_only_memory_is_used_without_copy_warning_or_write() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack = read_only(ExpertStack.from_states(make_states()))
    before = {key: vector.clone() for key, vector in stack.vectors.items()}
    beta, images = torch.tensor([0.2, 0.3, 0.5]), make_images("val")["a"]
    state = stack.combine(beta)
    embed_with(SmallTower(), state, images, ARCH)
    merge_with(METHODS["average"], {key: stack.state(key) for key in stack.keys})
    torch.testing.assert_close(stack.vectors, before, rtol=0, atol=0)
    torch.testing.assert_close(state, ExpertStack.from_states(make_states()).combine(beta))


def test_a_selection_shares_memory_and_follows_the_order_asked_for() -> None:
    stack = ExpertStack.from_states(make_states())
    chosen = stack.select((KEYS[2], KEYS[0]))
    assert chosen.vectors[KEYS[2]].data_ptr() == stack.vectors[KEYS[2]].data_ptr()
    beta = torch.tensor([0.25, 0.0, 0.75])
    torch.testing.assert_close(chosen.combine(beta[[2, 0]])["proj.bias"], stack.combine(beta)["proj.bias"])
    with pytest.raises(InputError, match=r"'c@seed-7'.*Did you mean 'c@seed-1'"):
        stack.select(("c@seed-7",))


def test_half_precision_experts_are_merged_in_float32() -> None:
    halves = {key: {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
              for key, state in make_states().items()}  # fmt: skip
    merged = ExpertStack.from_states(halves).combine(torch.full((3,), 1 / 3))
    assert merged["conv.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("proj.bias"), r"'a@seed-0' has 'proj.bias' and 'b@seed-0' has not"),
        (lambda s: s.update(extra=torch.zeros(1)), r"'b@seed-0' has 'extra' and 'a@seed-0' has not"),
        (lambda s: s.update({"proj.bias": torch.zeros(7)}), r"'proj.bias' is \(6,\).*and \(7,\)"),
        (lambda s: s.update({"proj.bias": torch.zeros(6, dtype=torch.long)}), r"torch.int64 in the other"),
    ],
)
def test_models_that_do_not_correspond_are_refused_by_name(damage: object, message: str) -> None:
    states = make_states()
    damage(states["b@seed-0"])  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        ExpertStack.from_states(states)
    with pytest.raises(InputError, match=message):
        merge_with(METHODS["average"], states)


def test_average_is_the_uniform_beta() -> None:
    states = make_states()
    merged = merge_with(METHODS["average"], states)
    torch.testing.assert_close(merged, ExpertStack.from_states(states).combine(torch.full((3,), 1 / 3)))


def _towards(tensors: Tensors, *, base: torch.Tensor, scaling: float = 2.0) -> torch.Tensor:
    """Task arithmetic, for these tests."""
    return base + scaling * sum(t - base for t in tensors)


def test_a_method_with_a_base_sees_parameters_only_and_never_extrapolates_statistics() -> None:
    states, base = make_states(), make_tower(9).state_dict()
    method = StreamedMethod("towards", _towards, needs=("base",))
    merged = merge_with(method, states, base, {"scaling": 0.5}, buffers="base")
    offsets = sum(s["proj.weight"] - base["proj.weight"] for s in states.values())
    torch.testing.assert_close(merged["proj.weight"], base["proj.weight"] + 0.5 * offsets)
    assert torch.equal(merged["bn.running_var"], base["bn.running_var"])
    assert merged["bn.num_batches_tracked"] == base["bn.num_batches_tracked"]
    averaged = merge_with(method, states, base)
    expected = torch.stack([s["bn.running_var"] for s in states.values()]).mean(0)
    torch.testing.assert_close(averaged["bn.running_var"], expected)


def test_a_missing_base_a_wrong_option_and_a_wrong_kind_are_refused() -> None:
    states, method = make_states(), StreamedMethod("towards", _towards, needs=("base",))
    with pytest.raises(InputError, match="needs the base model"):
        merge_with(method, states)
    with pytest.raises(InputError, match="needs the base model"):
        merge_with(METHODS["average"], states, buffers="base")
    with pytest.raises(InputError, match=r"'scalin'.*Did you mean 'scaling'"):
        merge_with(method, states, make_tower(9).state_dict(), {"scalin": 1.0})
    with pytest.raises(InputError, match="its kind is ensemble"):
        merge_with(METHODS["ensemble-vote"], states)


def test_re_estimated_statistics_are_those_of_the_images() -> None:
    tower = make_tower(2)
    before = {name: t.clone() for name, t in tower.state_dict().items()}
    batches = [torch.randn(20, 3, 8, 8) + shift for shift in (0.0, 3.0)]
    state = re_estimate(tower, before, batches)
    features = [tower.conv(batch).detach() for batch in batches]
    means = torch.stack([f.mean((0, 2, 3)) for f in features])
    variances = torch.stack([f.var((0, 2, 3)) for f in features])
    torch.testing.assert_close(state["bn.running_mean"], means.mean(0))
    torch.testing.assert_close(state["bn.running_var"], variances.mean(0))
    for name, tensor in before.items():
        assert torch.equal(tower.state_dict()[name], tensor)
        if not name.startswith("bn.running") and "num_batches" not in name:
            assert torch.equal(state[name], tensor)


def test_re_estimation_works_in_double_precision() -> None:
    tower = make_tower(0).double()
    state = re_estimate(tower, tower.state_dict(), [torch.randn(8, 3, 8, 8)])
    assert state["bn.running_var"].dtype == torch.float64


def test_re_estimation_needs_batchnorm_and_images() -> None:
    assert has_batchnorm(SmallTower())
    assert not has_batchnorm(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="no BatchNorm"):
        re_estimate(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).state_dict(), [torch.ones(1, 2)])
    with pytest.raises(InputError, match="no image"):
        re_estimate(SmallTower(), SmallTower().state_dict(), [])


def test_every_method_of_this_layer_declares_itself() -> None:
    kinds = {
        "average": "streamed", "ligand": "ligand", "hard-routing": "ligand", "expert": "reference",
        "zeroshot": "reference", "joint": "reference", "ensemble-embedding": "ensemble",
        "ensemble-logit": "ensemble", "ensemble-probability": "ensemble", "ensemble-vote": "ensemble",
    }  # fmt: skip
    for name, kind in kinds.items():
        method = METHODS[name]
        assert (method.kind, bool(method.paper), bool(method.summary)) == (kind, True, True), name


def test_hard_routing_is_the_largest_beta_alone() -> None:
    beta = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
    assert METHODS["hard-routing"].function(beta).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert torch.equal(METHODS["ligand"].function(beta), beta)
