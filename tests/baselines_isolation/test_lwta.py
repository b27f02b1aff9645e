"""LWTA: posterior, KL and Concrete samples by hand and in distribution, tickets, sparsities, FLOPs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from short_runs import complete, logits, make
from torch import nn

from baselines import lwta
from sparcl import methods, models
from sparcl.costs import convention, ledger, planning
from sparcl.errors import UserError
from sparcl.trainer import Run, batches, evaluate, evaluation_mode

LOG = math.log


# -- the layer's numbers -----------------------------------------------------------------------------------------------
def test_posterior_by_hand():
    """Blocks (0, log 3) and (log 2): softmax 1/4, 3/4 and 1; plus 1e-4, renormalized."""
    pi = lwta.posterior(torch.tensor([0.0, LOG(3), LOG(2)]), 2)
    assert pi.tolist() == pytest.approx([0.2501 / 1.0002, 0.7501 / 1.0002, 1.0])


def test_divergence_by_hand():
    """KL of (1/4, 3/4) to (1/2, 1/2) is log 2 - H; a block of one unit has none; uniform blocks have none."""
    pi = torch.tensor([0.25, 0.75, 1.0])
    entropy = -(0.25 * LOG(0.25) + 0.75 * LOG(0.75))
    assert lwta.divergence(pi, 2).item() == pytest.approx(LOG(2) - entropy)
    assert lwta.divergence(torch.full((8,), 0.25), 4).item() == pytest.approx(0, abs=1e-6)


def test_concrete_by_hand():
    """Without noise at temperature 1 the sample is pi; at 0.5 it is pi squared, renormalized; noise shifts the logs."""
    pi = torch.tensor([0.25, 0.75, 1.0])
    still = torch.zeros(1, 3)
    assert lwta.concrete(pi, still, 2, 1.0)[0].tolist() == pytest.approx([0.25, 0.75, 1.0])
    assert lwta.concrete(pi, still, 2, 0.5)[0].tolist() == pytest.approx([0.1, 0.9, 1.0])
    shifted = lwta.concrete(pi, torch.tensor([[LOG(3), 0.0, 5.0]]), 2, 1.0)[0]
    assert shifted.tolist() == pytest.approx([0.5, 0.5, 1.0])


def test_concrete_sums_to_one_and_has_finite_gradients():
    values = torch.tensor([30.0, -30.0, 0.0, 1.0, 2.0], requires_grad=True)
    noise = lwta.draw_gumbel((7, 5), torch.Generator().manual_seed(0))
    sample = lwta.concrete(lwta.posterior(values, 4), noise, 4, 0.67)
    assert torch.allclose(sample[:, :4].sum(1), torch.ones(7))
    assert torch.equal(sample[:, 4], torch.ones(7))
    (sample * torch.arange(5.0)).sum().backward()
    assert values.grad.isfinite().all()


def test_gradients_of_the_whole_gate():
    """Logits to gate to loss against finite differences, in float64."""
    values = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(3, 6, dtype=torch.float64)

    def loss(a):
        pi = lwta.posterior(a[1], 3)
        return (lwta.concrete(pi, noise, 3, 0.67) ** 2).sum() + lwta.divergence(pi, 3)

    assert torch.autograd.gradcheck(loss, (values,))


def test_gumbel_noise_is_gumbel():
    """Mean 0.5772 and variance pi^2 / 6; the distribution function exp(-exp(-x)) at some points."""
    noise = lwta.draw_gumbel((200_000,), torch.Generator().manual_seed(1))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.015)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)
    for point in (-1.0, 0.0, 1.0, 3.0):
        assert (noise <= point).double().mean().item() == pytest.approx(math.exp(-math.exp(-point)), abs=0.005)


def test_winners_of_samples_follow_the_posterior():
    """The largest entry of a Concrete sample is unit j with probability pi_j (chi-squared, three degrees, 0.1 %)."""
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4])
    noise = lwta.draw_gumbel((40_000, 4), torch.Generator().manual_seed(2))
    counts = lwta.concrete(pi, noise, 4, 0.67).argmax(1).bincount(minlength=4).double()
    expected = 40_000 * pi.double()
    assert ((counts - expected) ** 2 / expected).sum().item() < 16.27


def test_winners_by_hand():
    scores = torch.tensor([0.1, 0.7, 0.2, 0.3, 0.3, 0.3, 0.9])
    assert lwta.winners(scores, 3).tolist() == [False, True, False, True, False, False, True]


@pytest.mark.parametrize(("sparsity", "units"), [(0.5, 2), (0.75, 4), (0.8, 5), (0.875, 8), (0.9, 10), (0.95, 20)])
def test_units_per_block(sparsity, units):
    assert lwta.units_per_block(sparsity) == units


# -- the module --------------------------------------------------------------------------------------------------------
def test_linear_and_convolutional_outputs_by_hand():
    competition = lwta.Competition("w", tasks=2, units=4, size=2, temperature=1.0, samples=3)
    with torch.no_grad():
        competition.logits[1] = torch.tensor([0.0, LOG(3), 0.0, 0.0])
    competition.task = 1
    h = torch.tensor([[4.0, 4.0, 2.0, -2.0]])
    pi = competition.pi(1).tolist()
    assert competition(h)[0].tolist() == pytest.approx([4 * pi[0], 4 * pi[1], 1.0, -1.0])
    maps = h.reshape(1, 4, 1, 1).expand(2, 4, 3, 3)
    assert competition(maps)[1, 1, 2, 2].item() == pytest.approx(4 * pi[1])
    competition.eval()
    competition.ticket.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert competition(h)[0].tolist() == [0, 4, 0, -2]
    assert competition(maps)[0, :, 0, 0].tolist() == [0, 4, 0, -2]


@pytest.mark.parametrize(("name", "kind"), [("resnet8", nn.BatchNorm2d), ("cnn", nn.BatchNorm2d), ("mlp", nn.Linear)])
def test_every_maskable_layer_competes_and_no_name_changes(name, kind, digits):
    run = Run(make("lwta", 0.75, model=name, width=8), digits)
    plain = Run(make("finetune", model=name, width=8), digits)
    assert list(lwta.competitions(run.model)) == list(run.masks.parameters)
    assert all(isinstance(host, kind) for host in lwta.hosts(run.model).values())
    state = run.model.state_dict()
    for key, value in plain.model.state_dict().items():
        assert torch.equal(state[key], value)
    assert {key for key in state if "competition" not in key} == set(plain.model.state_dict())
    assert ledger.layer_costs(plain.model, (1, 8, 8)) == run.ledger.costs


def test_batch_norm_hosts_come_right_after_their_convolution():
    model = models.build("resnet8", 4, 10, (1, 8, 8), torch.Generator())
    found = lwta.hosts(model)
    assert found["layer2.0.conv1.weight"] is model.layer2[0].bn1
    assert found["layer2.0.conv2.weight"] is model.layer2[0].bn2


def test_loss_of_a_step(digits):
    """Cross-entropy and kl / n times the divergence, and the logits' gradient is multiplied by the rate."""
    run = Run(make("lwta", 0.75, params={"lwta.kl": 2.0, "lwta.rate": 7.0}), digits)
    run.phase = run.phases[0]
    run.enter_phase()
    run.clock = run.clock_at(0)
    run.learner.begin_task(run)
    with torch.no_grad():
        for competition in lwta.competitions(run.model).values():
            competition.logits.normal_(generator=torch.Generator().manual_seed(0))
    batch = next(batches(run))
    replays = run.learner.replay(run)
    assert replays == []
    terms, _ = run.learner.terms(run, batch.images, batch.labels, replays)
    expected = sum(lwta.divergence(c.pi(0), 4).item() for c in lwta.competitions(run.model).values())
    assert terms["divergence"].item() == pytest.approx(2.0 * expected / run.pool_size, rel=1e-5)
    run.backward(batch, replays, by_term=False)
    first = next(iter(lwta.competitions(run.model).values()))
    before = first.logits.grad.clone()
    assert int(before[1:].count_nonzero()) == 0  # only the current task's posterior learns
    assert before[0].count_nonzero() > 0
    run.learner.adjust_gradients(run)
    assert torch.equal(first.logits.grad, 7 * before)


def test_noise_is_the_runs_own(digits):
    run = Run(make("lwta", 0.75), digits)
    state = torch.get_rng_state()
    run.learner.replay(run)
    expected = lwta.draw_gumbel(
        (run.cell.batch_size, 4 * 2 + 8 * 2 + 16 * 2), Run(run.cell, digits).generator("gumbel")
    )
    noises = [c.noise for c in lwta.competitions(run.model).values()]
    assert torch.equal(torch.cat(noises, 1), expected)
    assert torch.equal(torch.get_rng_state(), state)


# -- tickets -----------------------------------------------------------------------------------------------------------
RATE = {"lwta.rate": 1000.0, "lwta.kl": 0.01}


@pytest.mark.parametrize("fields", [{"width": 6}, {"model": "mlp", "width": 24}, {"model": "cnn", "width": 4}])
@pytest.mark.parametrize("norm", ["per-task", "frozen"])
def test_a_protected_task_keeps_its_logits(fields, norm, digits, images):
    """Task k's own logits are equal, bit for bit, after every later task."""
    outputs = {}

    def check(run):
        for earlier in range(run.phase.index):
            assert torch.equal(logits(run, images, earlier), outputs[earlier])
        outputs[run.phase.index] = logits(run, images, run.phase.index)

    params = RATE | {"tickets.batch_norm": norm, "protocol.single_head": False}
    run = complete("lwta", digits, 0.75, after_task=check, params=params, **fields)
    for task in range(5):
        assert len({run.accuracy["task_il"][row][task] for row in range(task, 5)}) == 1
    assert run.accuracy["class_il"][4][0] is not None


def test_unprotected_tasks_go_on_changing(digits):
    run = complete("lwta", digits, 0.5, params=RATE | {"tickets.protect": "none", "tickets.batch_norm": "shared"})
    start = Run(run.cell, digits).model.state_dict()
    assert not torch.equal(run.model.conv1.weight, start["conv1.weight"])
    assert run.model.conv1.weight.grad is not None


def test_tickets_keep_one_unit_of_each_block_with_exact_counts(digits):
    run = complete("lwta", digits, 0.75, width=6, params=RATE)
    before = {name: weight.detach().clone() for name, weight in run.masks.parameters.items()}
    for task in range(5):
        with run.sparsity.show(run, task):
            for name, weight in run.masks.parameters.items():
                units = weight.shape[0]
                won = run.sparsity.won[str(task)][name]
                blocks = [won[first : first + 4] for first in range(0, units, 4)]
                assert [int(block.sum()) for block in blocks] == [1] * math.ceil(units / 4)
                assert int(weight.flatten(1).any(1).sum()) == math.ceil(units / 4)
                assert torch.equal(weight[won], before[name][won])
                assert int(weight[~won].count_nonzero()) == 0
                counts = lwta.ticket_count(weight, 4)
                assert counts == math.ceil(units / 4) * weight[0].numel()
                assert torch.equal(lwta.competitions(run.model)[name].ticket, won.float())
    assert all(torch.equal(weight, before[name]) for name, weight in run.masks.parameters.items())


def test_a_ticket_needs_the_winners_weights_alone(digits, images):
    """The gates alone give the same logits: the losers' weights are dead."""
    run = complete("lwta", digits, 0.75, width=6, params=RATE)
    expected = logits(run, images, 4)
    with evaluation_mode(run.model), torch.no_grad(), run.sparsity.show(run, 4):
        for name, weight in run.masks.parameters.items():
            weight[~run.sparsity.won["4"][name]] = 100.0
        assert torch.allclose(run.model(images)[:, 8:10], expected, atol=1e-5)


def test_scores_are_each_tasks_classes_by_its_own_ticket(digits, images):
    run = complete("lwta", digits, 0.75, params=RATE)
    with evaluation_mode(run.model), torch.no_grad():
        scores = run.learner.predict(run, images)
        for task in digits.tasks:
            with run.sparsity.show(run, task.index):
                own = run.model(images)
            assert torch.equal(scores[:, list(task.classes)], own[:, list(task.classes)])


def test_evaluation_does_not_know_whose_images_it_scores(digits):
    """Class-IL accuracy on a task is that of the scores, taken without its view."""
    run = complete("lwta", digits, 0.75, params=RATE)
    found = evaluate(run, digits.info.classes)["class_il"]
    with evaluation_mode(run.model), torch.no_grad():
        for task, accuracy in zip(digits.tasks, found, strict=True):
            scores = run.learner.predict(run, run.network_input(digits.test_images[task.test_index]))
            right = scores.argmax(1) == digits.test_labels[task.test_index]
            assert accuracy == pytest.approx(100 * right.double().mean().item())


def test_losing_units_and_earlier_winners_do_not_learn(digits):
    """Weight gradients are sparse by winning probability; the winners of earlier tasks are frozen."""
    run = Run(make("lwta", 0.75, width=8), digits)
    run.phase = run.phases[1]
    name, competition = next(iter(lwta.competitions(run.model).items()))
    everything = {n: torch.zeros(len(c.ticket), dtype=torch.bool) for n, c in lwta.competitions(run.model).items()}
    run.sparsity.won = {"0": everything}
    run.sparsity.won["0"][name] = torch.tensor([True] + [False] * 7)
    with torch.no_grad():
        competition.logits[1] = torch.tensor([0.0, 0, 0, 0, 3, 3, 0, 0])
    run.sparsity.begin_epoch(run)
    # second block: pi = 1/(2 + 2 e^3) = 0.024 for the losers, below 0.5 / 4
    rows = run.masks.gradient[name].flatten(1).all(1)
    assert rows.tolist() == [False, True, True, True, True, True, False, False]
    assert torch.equal(run.masks.gradient[name].flatten(1).any(1), rows)
    assert run.masks.gradient_counts()[name] == 5 * run.masks.parameters[name][0].numel()


def test_sampled_tickets_follow_the_posterior(digits):
    run = Run(make("lwta", 0.5, width=4, params={"tickets.inference": "sample"}), digits)
    for competition in lwta.competitions(run.model).values():
        with torch.no_grad():
            competition.logits[0, ::2] = LOG(4)
    won = 0
    for _ in range(300):
        run.sparsity.end_task(run)
        won += sum(int(mask[::2].sum()) for mask in run.sparsity.won["0"].values())
    draws = 300 * (2 * 2 + 4 * 2 + 8 * 2)
    assert won / draws == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / draws) + 1e-4)


# -- the run -----------------------------------------------------------------------------------------------------------
def test_model_can_be_copied_and_measured(digits):
    """The memory footprint works on a copy of the model without data."""
    run = complete("lwta", digits, 0.75, epochs=1)
    found = planning.facts(run.cell)
    assert found["memory"]["activations"] > 0
    assert found["paper_memory_phone"] > 0
    twin = copy.deepcopy(run.model).eval()
    x = torch.randn(2, 1, 8, 8)
    with evaluation_mode(run.model):
        assert torch.equal(twin(x), run.model(x))


# -- FLOPs and registration --------------------------------------------------------------------------------------------
def test_ledgers(digits):
    """Dense forward; weight gradients at what learns; evaluation at the ticket's density, once per ticket."""
    run = complete("lwta", digits, 0.75, width=6, params=RATE)
    executed, approximate = planning.executed(run.cell)
    lines, planned = run.ledger.as_record()["lines"], executed["lines"]
    assert approximate
    assert lines["evaluation"] == planned["evaluation"]
    assert lines["stream"]["forward"] == planned["stream"]["forward"]
    assert lines["stream"]["input_gradient"] == planned["stream"]["input_gradient"]
    assert 0 < lines["stream"]["weight_gradient"] < planned["stream"]["weight_gradient"]
    dense = {cost.name: cost.macs for cost in run.ledger.costs}
    ticket = sum(
        cost.macs if not cost.maskable
        else cost.macs // cost.weights * lwta.ticket_count(run.masks.parameters[cost.name], 4)
        for cost in run.ledger.costs
    )  # fmt: skip
    tests = sum(len(task.test_index) for task in digits.tasks)
    untrained = sum(dense.values())
    found = lines["evaluation"]["forward"]
    assert found == 2 * tests * (untrained + (1 + 2 + 3 + 4 + 5) * ticket)
    assert planning.paper(run.cell)["training"] == convention.paper_flops(
        run.ledger.costs, [len(task.train_index) for task in digits.tasks], 2, 0
    )


def test_momentum_is_refused_where_units_rest():
    with pytest.raises(UserError, match=r"^protocol\.momentum: tickets with a cutoff need 0"):
        make("lwta", 0.75, params={"protocol.momentum": 0.9})
    make("lwta", 0.75, params={"protocol.momentum": 0.9, "tickets.cutoff": 0.0})


def test_registered_as_one_method():
    found = methods.get("lwta")
    assert (found.family, found.learner, dict(found.policies)) == ("sibling", "lwta", {"sparsity": "tickets"})
    assert [name for name in methods.names() if name.endswith("-lwta")] == []
    with pytest.raises(UserError, match="tickets of its own"):
        methods.get("tdm-lwta")
    with pytest.raises(UserError, match=r"give 0\.5 or more, got 0\.2"):
        make("lwta", 0.2)
