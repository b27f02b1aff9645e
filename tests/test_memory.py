"""Reservoir memory: against algorithm R done one by one, uniform by statistics, draws, state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl.memory import ReservoirMemory

SHAPE = (1, 2, 2)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def present(memory: ReservoirMemory, start: int, count: int, draws: torch.Generator, task: int = 0) -> None:
    """Present the samples ``start`` to ``start + count - 1``: image, label, logits, position are the number."""
    numbers = torch.arange(start, start + count)
    images = (numbers % 256).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, *SHAPE)
    memory.add(images, numbers, numbers[:, None].float().expand(-1, 3), task, draws, numbers)


def algorithm_r(capacity: int, uniforms: list[float]) -> list[int]:
    """Vitter's algorithm R, one presentation at a time; return the number held in each slot."""
    held: list[int] = []
    for number, uniform in enumerate(uniforms):
        if number < capacity:
            held.append(number)
            continue
        slot = int(uniform * (number + 1))
        if slot < capacity:
            held[slot] = number
    return held


@given(st.integers(1, 20), st.lists(st.integers(0, 30), max_size=6), st.integers(0, 10**6))
def test_batches_are_algorithm_r_one_by_one(capacity: int, batches: list[int], seed: int) -> None:
    memory, draws = ReservoirMemory(capacity, SHAPE, 3), generator(seed)
    for index, count in enumerate(batches):
        present(memory, sum(batches[:index]), count, draws)
    again = generator(seed)
    uniforms = [u for count in batches for u in torch.rand(count, generator=again, dtype=torch.float64).tolist()]
    reference = algorithm_r(capacity, uniforms)
    size = min(capacity, sum(batches))
    assert len(memory) == size
    assert memory.seen == sum(batches)
    assert memory.labels[:size].tolist() == reference
    assert memory.positions[:size].tolist() == reference
    assert memory.logits[:size, 1].tolist() == reference
    assert memory.images[:size, 0, 0, 0].tolist() == [number % 256 for number in reference]


def test_every_presentation_is_held_with_the_same_probability() -> None:
    """B = 10 of 50, 4,000 runs in batches of 7: 800 expected each; chi-squared, 49 degrees, 0.1 % quantile 85.4.

    The held ones are drawn without replacement, so the statistic is (1 - B/N) times smaller than for independent
    draws; it is scaled back.
    """
    hits = torch.zeros(50)
    for seed in range(4000):
        memory, draws = ReservoirMemory(10, SHAPE, 3), generator(seed)
        for start in range(0, 50, 7):
            present(memory, start, min(7, 50 - start), draws)
        hits[memory.labels] += 1
    assert hits.sum() == 40_000
    statistic = float(((hits - 800) ** 2 / 800).sum()) / (1 - 10 / 50)
    assert 23.9 < statistic < 85.4


def test_replacement_is_uniform_over_slots() -> None:
    """After 40 presentations to 4 slots, the mean age of what each slot holds is alike."""
    sums = torch.zeros(4)
    for seed in range(3000):
        memory = ReservoirMemory(4, SHAPE, 3)
        present(memory, 0, 40, generator(seed))
        sums += memory.labels
    assert sums.tolist() == pytest.approx([3000 * 19.5] * 4, rel=0.03)


def test_of_two_rows_on_one_slot_the_later_stays() -> None:
    memory = ReservoirMemory(1, SHAPE, 3)
    for seed in range(200):
        places = memory.slots(5, generator(seed))
        uniforms = torch.rand(5, generator=generator(seed), dtype=torch.float64)
        winners = [0] + [i for i in range(1, 5) if int(uniforms[i] * (i + 1)) == 0]
        assert places == {0: winners[-1]}


def test_draws_are_without_replacement_and_uniform() -> None:
    memory, draws = ReservoirMemory(8, SHAPE, 3), generator(0)
    present(memory, 0, 5, draws)
    assert sorted(memory.draw(32, draws).labels.tolist()) == [0, 1, 2, 3, 4]
    hits = torch.zeros(5)
    for _ in range(3000):
        drawn = memory.draw(2, draws)
        assert len(set(drawn.labels.tolist())) == 2
        assert drawn.logits[:, 0].tolist() == drawn.labels.tolist()
        hits[drawn.labels] += 1
    assert float(((hits - 1200) ** 2 / 1200).sum()) < 18.5  # chi-squared, 4 degrees, 0.1 % quantile


def test_a_draw_may_be_restricted() -> None:
    memory, draws = ReservoirMemory(6, SHAPE, 3), generator(0)
    present(memory, 0, 6, draws)
    allowed = torch.tensor([True, False, True, False, False, True])
    assert {tuple(sorted(memory.draw(32, draws, allowed).labels.tolist())) for _ in range(9)} == {(0, 2, 5)}
    assert len(memory.draw(2, draws, allowed).labels) == 2
    assert len(memory.draw(2, draws, torch.zeros(6, dtype=torch.bool)).labels) == 0


def test_tasks_are_remembered() -> None:
    memory, draws = ReservoirMemory(4, SHAPE, 3), generator(0)
    present(memory, 0, 2, draws, task=0)
    present(memory, 2, 2, draws, task=1)
    assert memory.tasks.tolist() == [0, 0, 1, 1]


def test_a_resumed_memory_goes_on_as_if_nothing_had_happened() -> None:
    """The number of presentations so far is part of the state: without it later samples crowd out earlier ones."""
    whole, draws = ReservoirMemory(5, SHAPE, 3), generator(1)
    present(whole, 0, 100, draws)
    resumed = ReservoirMemory(5, SHAPE, 3)
    resumed.load({k: v.clone() if torch.is_tensor(v) else v for k, v in whole.state().items()})
    other_draws = torch.Generator()
    other_draws.set_state(draws.get_state())
    present(whole, 100, 100, draws)
    present(resumed, 100, 100, other_draws)
    for key, value in whole.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.state()[key])), key
