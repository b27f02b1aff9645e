"""Masks: exact counts, ties, what an update does to weights and momentum, 1,000 random schedules."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparcl import masks
from sparcl.masks import Churn, MaskSet, allocate, keep_count, random_k, smallest_k, top_k
from sparcl.optimizer import SGD

sparsities = st.floats(0, 0.999).map(lambda x: round(x, 4))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- counts ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [(10, 0.0, 10), (10, 0.75, 2), (14, 0.75, 4), (36864, 0.9, 3686), (36864, 0.95, 1843), (2304, 0.74, 599),
     (2359296, 0.95, 117965), (1000, 0.999, 1), (3, 0.9, 0)],
)  # fmt: skip
def test_keep_count_by_hand(size: int, sparsity: float, count: int) -> None:
    """round((1 - s) n): 2.5 and 3.5 go to the even neighbors 2 and 4; binary 0.9 does not leak in."""
    assert keep_count(size, sparsity) == count


@given(st.integers(0, 10**7), sparsities)
def test_keep_count_is_the_nearest_integer(size: int, sparsity: float) -> None:
    exact = size * (1 - Fraction(str(sparsity)))
    assert abs(keep_count(size, sparsity) - exact) <= Fraction(1, 2)


def test_erk_by_hand() -> None:
    """a: 2 x 2, b: 10 x 10, density 0.5 of 104 = 52. Raw densities 4/4 and 20/100, so 4 + 20 = 24 weights at factor 1.

    Factor 52/24 > 1 makes a dense; b gets the other 48.
    """
    shapes = {"a": torch.Size([2, 2]), "b": torch.Size([10, 10])}
    assert allocate(shapes, 0.5, "erk") == {"a": 4, "b": 48}


def test_erk_without_a_dense_layer() -> None:
    """Two layers, 20 x 20 and 40 x 40 (2,000 weights), s = 0.95: 100 weights, shared 40 : 80, so 33 and 67."""
    shapes = {"a": torch.Size([20, 20]), "b": torch.Size([40, 40])}
    assert allocate(shapes, 0.95, "erk") == {"a": 33, "b": 67}


def test_unknown_distribution() -> None:
    with pytest.raises(ValueError, match="expected 'uniform' or 'erk', got 'ERK'"):
        allocate({}, 0.5, "ERK")


shapes_of_layers = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=4).map(torch.Size), min_size=1, max_size=6
)


@given(shapes_of_layers, sparsities)
def test_erk_total_is_exact(shapes: list[torch.Size], sparsity: float) -> None:
    named = {f"layer{i}": shape for i, shape in enumerate(shapes)}
    counts = allocate(named, sparsity, "erk")
    assert sum(counts.values()) == keep_count(sum(s.numel() for s in shapes), sparsity)
    assert all(0 <= counts[name] <= shape.numel() for name, shape in named.items())


@given(shapes_of_layers, sparsities)
def test_uniform_is_the_same_share_of_every_layer(shapes: list[torch.Size], sparsity: float) -> None:
    named = {f"layer{i}": shape for i, shape in enumerate(shapes)}
    assert allocate(named, sparsity) == {name: keep_count(s.numel(), sparsity) for name, s in named.items()}


# -- selection ---------------------------------------------------------------------------------------------------------
def test_top_and_smallest_by_hand() -> None:
    score = torch.tensor([[3.0, -1.0], [2.0, 5.0]])
    assert top_k(score, 2, generator()).tolist() == [[True, False], [False, True]]
    assert smallest_k(score, 1, generator()).tolist() == [[False, True], [False, False]]
    among = torch.tensor([[False, True], [True, True]])
    assert top_k(score, 2, generator(), among).tolist() == [[False, False], [True, True]]
    assert not top_k(score, 0, generator()).any()
    assert top_k(score, 3, generator(), among).tolist() == among.tolist()


@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(1, 6), st.floats(0, 1), st.floats(0, 1))
def test_top_k_is_exact_and_no_larger_score_is_left_out(
    seed: int, size: int, levels: int, share: float, open_share: float
) -> None:
    draw = generator(seed)
    score = torch.randint(levels, (size,), generator=draw).float()  # few levels: many ties
    among = torch.rand(size, generator=draw) < open_share
    k = int(share * int(among.sum()))
    chosen = top_k(score, k, draw, among)
    assert int(chosen.sum()) == k
    assert not (chosen & ~among).any()
    if 0 < k < int(among.sum()):
        assert score[chosen].min() >= score[among & ~chosen].max()
    assert torch.equal(smallest_k(-score, k, generator(1), among), top_k(score, k, generator(1), among))


@pytest.mark.parametrize("k", [-1, 4])
def test_too_few_candidates(k: int) -> None:
    among = torch.tensor([True, True, True, False])
    with pytest.raises(ValueError, match="expected 0 <= k <= 3"):
        top_k(torch.zeros(4), k, generator(), among)
    with pytest.raises(ValueError, match="expected 0 <= k <= 3"):
        random_k(among, k, generator())


def test_ties_are_broken_evenly_and_by_the_generator_alone() -> None:
    """Two of five equal scores, 3,000 times: 1,200 each; chi-squared with 4 degrees stays below its 0.1 % quantile."""
    draw, hits = generator(3), torch.zeros(5)
    for _ in range(3000):
        hits += top_k(torch.zeros(5), 2, draw)
    assert hits.sum() == 6000
    assert float(((hits - 1200) ** 2 / 1200).sum()) < 18.5
    assert torch.equal(top_k(torch.zeros(99), 40, generator(7)), top_k(torch.zeros(99), 40, generator(7)))
    assert not torch.equal(top_k(torch.zeros(99), 40, generator(7)), top_k(torch.zeros(99), 40, generator(8)))


def test_without_ties_no_random_number_is_drawn() -> None:
    draw = generator()
    before = draw.get_state()
    top_k(torch.arange(10.0), 4, draw)
    assert torch.equal(draw.get_state(), before)


@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_random_k_is_exact_and_stays_among_candidates(seed: int, size: int, share: float, open_share: float) -> None:
    draw = generator(seed)
    among = torch.rand(size, generator=draw) < open_share
    k = int(share * int(among.sum()))
    chosen = random_k(among, k, draw)
    assert int(chosen.sum()) == k
    assert not (chosen & ~among).any()


def test_by_magnitude_and_globally() -> None:
    layers = {"a": torch.tensor([1.0, -4, 2]), "b": torch.tensor([[-3.0], [0.5]])}
    chosen = masks.by_magnitude(layers, {"a": 1, "b": 1}, generator())
    assert {n: m.flatten().tolist() for n, m in chosen.items()} == {"a": [False, True, False], "b": [True, False]}
    together = masks.globally({n: w.abs() for n, w in layers.items()}, 3, generator())
    assert {n: m.flatten().tolist() for n, m in together.items()} == {"a": [False, True, True], "b": [True, False]}
    assert together["b"].shape == (2, 1)


# -- the container -----------------------------------------------------------------------------------------------------
def small() -> tuple[MaskSet, SGD]:
    parameters = {"a": nn.Parameter(torch.tensor([1.0, 2, 3, 4])), "b": nn.Parameter(torch.tensor([[5.0, 6]]))}
    optimizer = SGD(parameters.values(), 0.1, 0.9)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    container = MaskSet(parameters)
    container.momenta = optimizer.momenta
    return container, optimizer


def test_what_leaves_and_what_comes_is_0_and_has_no_momentum() -> None:
    container, optimizer = small()
    a = container.parameters["a"]
    assert container.replace({"a": torch.tensor([True, True, False, False])}) == Churn(pruned=2, grown=0)
    assert a.tolist() == pytest.approx([1, 2, 0, 0])
    assert optimizer.momenta[a].tolist() == [1, 1, 0, 0]
    with torch.no_grad():
        a[2:] = 7.0  # whatever was written there meanwhile does not come back
    optimizer.momenta[a][2:] = 7.0
    assert container.replace({"a": torch.tensor([False, True, True, False])}) == Churn(pruned=1, grown=1)
    assert a.tolist() == pytest.approx([0, 2, 0, 0])
    assert optimizer.momenta[a].tolist() == [0, 1, 0, 0]
    assert container.counts() == {"a": 2, "b": 2}
    assert container.density() == 4 / 6


def test_adopted_weights_keep_their_values() -> None:
    container, _ = small()
    container.adopt({"a": torch.tensor([False, True, False, True])})
    assert container.parameters["a"].tolist() == pytest.approx([0, 2, 0, 4])
    assert container.counts() == {"a": 2, "b": 2}


def test_gradient_masks() -> None:
    container, _ = small()
    container.adopt({"a": torch.tensor([True, True, False, True])})
    container.restrict_gradients({"a": torch.tensor([True, False, True, False]), "b": torch.tensor([[False, True]])})
    assert container.gradient_counts() == {"a": 1, "b": 1}
    assert container.gradient_density() == 2 / 6
    for parameter in container.parameters.values():
        parameter.grad = torch.full_like(parameter, 2.0)
    container.mask_gradients()
    assert container.parameters["a"].grad.tolist() == [2, 0, 0, 0]
    assert container.parameters["b"].grad.tolist() == [[0, 2]]
    container.restrict_gradients(None)
    assert container.gradient_counts() == container.counts() == {"a": 3, "b": 2}
    container.restrict_gradients({n: torch.ones_like(m) for n, m in container.weight.items()})
    container.replace({"a": torch.tensor([True, True, True, True])})
    assert container.gradient is None


def test_project_clears_masked_weights_and_momentum() -> None:
    container, optimizer = small()
    container.adopt({"a": torch.tensor([True, False, True, False])})
    a = container.parameters["a"]
    a.grad = torch.ones_like(a)
    optimizer.step()
    assert a[1] != 0
    container.project()
    assert (a[1], a[3]) == (0, 0)
    assert optimizer.momenta[a].tolist() == pytest.approx([1.9, 0, 1.9, 0])


@pytest.mark.parametrize("mask", [torch.ones(4), torch.ones(3, dtype=torch.bool)])
def test_a_mask_of_another_kind_is_refused(mask: torch.Tensor) -> None:
    container, _ = small()
    with pytest.raises(ValueError, match=r"a: expected a bool mask of shape \(4,\)"):
        container.replace({"a": mask})


def test_state_goes_round() -> None:
    container, _ = small()
    container.adopt({"a": torch.tensor([True, True, False, True])})
    container.restrict_gradients({"a": torch.tensor([True, False, False, False]), "b": torch.tensor([[False, True]])})
    other, _ = small()
    other.load(container.state())
    assert other.counts() == container.counts()
    assert other.gradient_counts() == container.gradient_counts()
    for name in container.names:
        assert torch.equal(other.weight[name], container.weight[name])
        assert torch.equal(other.gradient[name], container.gradient[name])


def test_version_grows_with_every_change() -> None:
    container, _ = small()
    versions = [container.version]
    container.replace({"a": torch.tensor([True, True, False, True])})
    versions.append(container.version)
    container.restrict_gradients(container.weight)
    versions.append(container.version)
    container.adopt({})
    versions.append(container.version)
    assert versions == sorted(set(versions))


def test_counts_after_1000_random_schedules() -> None:
    """Prune, grow, restrict and switch at random; after every change all counts and zeros are exact."""
    for seed in range(1000):
        draw = generator(seed)

        def number(high: int, draw: torch.Generator = draw) -> int:
            return int(torch.randint(high + 1, (), generator=draw))

        shapes = [(number(5) + 1, number(5) + 1) for _ in range(number(2) + 1)]
        container = MaskSet({f"w{i}": nn.Parameter(torch.randn(s, generator=draw)) for i, s in enumerate(shapes)})
        for _ in range(6):
            action, new, expected = number(3), {}, {}
            for name, mask in container.weight.items():
                active = int(mask.sum())
                if action == 0:  # prune to a target by magnitude
                    expected[name] = number(active)
                    new[name] = top_k(container.parameters[name].abs(), expected[name], draw, among=mask)
                elif action == 1:  # grow at random
                    added = number(mask.numel() - active)
                    expected[name] = active + added
                    new[name] = mask | random_k(~mask, added, draw)
                else:  # exchange
                    count = number(min(active, mask.numel() - active))
                    smaller = mask & ~smallest_k(container.parameters[name].abs(), count, draw, among=mask)
                    expected[name] = active
                    new[name] = smaller | random_k(~smaller, count, draw)
            before = container.counts()
            churn = container.replace(new)
            assert container.counts() == expected == {n: int(m.sum()) for n, m in container.weight.items()}
            assert churn.grown - churn.pruned == sum(expected.values()) - sum(before.values())
            if action == 3:
                learning = {n: random_k(m, number(int(m.sum())), draw) for n, m in container.weight.items()}
                container.restrict_gradients(learning)
                assert container.gradient_counts() == {n: int(m.sum()) for n, m in learning.items()}
            with torch.no_grad():
                for parameter in container.parameters.values():
                    parameter.add_(torch.randn(parameter.shape, generator=draw))
            container.project()
            for name, mask in container.weight.items():
                weight = container.parameters[name].detach()
                assert (weight[~mask] == 0).all()
                assert int(weight.count_nonzero()) == expected[name]


def test_empty() -> None:
    container = MaskSet({})
    assert (container.density(), container.gradient_density(), container.size()) == (1, 1, 0)
    assert container.replace({}) == Churn(0, 0)
