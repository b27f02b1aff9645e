"""Training FLOPs and memory as they are published: functions of a run's settings, not of what it does.

The conventions on layers and images are those of :mod:`sparcl.costs.ledger`; :func:`paper_flops` is SparCL's count.
Nothing here changes a run: a record's identity does not cover this module, so a corrected formula changes tables and
re-runs no cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparcl.costs.ledger import LayerCost


def _density(sparsity: float | Mapping[str, float], cost: LayerCost) -> float:
    if not cost.maskable:
        return 1.0
    return 1.0 - (sparsity.get(cost.name, 0.0) if isinstance(sparsity, Mapping) else sparsity)


def paper_flops(
    costs: Sequence[LayerCost],
    images_per_task: Sequence[int],
    epochs: int,
    replay_batches: int,
    weight_sparsity: float | Mapping[str, float] = 0.0,
    gradient_sparsity: float | Mapping[str, float] | None = None,
    data_fraction: float = 1.0,
) -> float:
    """Training FLOPs by the published convention (SparCL, Wang et al. 2022; inferred from its tables).

    ``F = u r [(1 + n) d(s) + 2 d(g)]`` where ``u`` is one dense forward pass over the whole run and ``d(x)``
    the share of a forward pass that is left when the maskable layers have sparsity ``x`` and the others are
    dense::

        u = 2 * MACs * epochs * images          d(x) = sum_l macs_l * density_l(x) / MACs

    Each step pays ``1 + n`` forward passes at weight density (the stream's batch and ``n`` replayed ones,
    whose backward passes are not charged) and two backward products of the stream's batch at gradient
    density. ``docs/flops.md`` derives it and lists the residuals.

    Args:
        costs: layers, from :func:`layer_costs`.
        images_per_task: training images of each task.
        epochs: passes over each task.
        replay_batches: ``n``, replayed batches per step (0 none, 1 ER, 2 DER++).
        weight_sparsity: ``s`` of the maskable layers in [0, 1), one for all or one per weight name.
        gradient_sparsity: ``g``, fraction of the maskable weights without a gradient; as ``weight_sparsity``
            if None.
        data_fraction: ``r``, mean fraction of a task's images that is presented.
    """
    if gradient_sparsity is None:
        gradient_sparsity = weight_sparsity
    forward = sum(cost.macs * _density(weight_sparsity, cost) for cost in costs)
    backward = sum(cost.macs * _density(gradient_sparsity, cost) for cost in costs)
    images = epochs * sum(images_per_task) * data_fraction
    return 2.0 * images * ((1 + replay_batches) * forward + 2 * backward)


def isolation_paper_flops(
    costs: Sequence[LayerCost], images_per_task: Sequence[int], epochs: int, sparsity: float
) -> float:
    """Training FLOPs that fit the published figures of PackNet and LPS, which :func:`paper_flops` does not.

    ``F = sum_t 3 u_t d_t`` with ``d = 1`` in the first task and ``d = 1 - sparsity`` in all later ones, every
    layer alike. It has no free constant and meets both published figures, but the papers do not state it:
    ``docs/flops.md`` says what it could mean.
    """
    first, *later = images_per_task
    dense = 6.0 * sum(cost.macs for cost in costs) * epochs
    return dense * (first + sum(later) * (1.0 - sparsity))


def ramp_fraction(proportion: float, cutoff_epochs: float, epochs: float) -> float:
    """Mean fraction of a task presented when it shrinks linearly by ``proportion`` until ``cutoff_epochs``.

    0.76 for 30 % over 20 of 50 epochs. A run that ends before the cutoff ends on the ramp; with a cutoff of 0
    nothing is removed.
    """
    if cutoff_epochs <= 0:
        return 1.0
    ramp = min(cutoff_epochs, epochs)
    removed = proportion * (ramp * ramp / (2 * cutoff_epochs) + (epochs - ramp))
    return 1.0 - removed / epochs


def paper_memory(
    parameters: int, outputs: int, batch_size: int, weight_sparsity: float = 0.0, gradient_sparsity: float | None = None
) -> dict[str, float]:
    """Bytes by the published convention (SparCL, Wang et al. 2022; inferred from its figures).

    ``4 P ((1 - s) + (1 - g)) + 4 k A`` with ``P`` parameters, every layer taken as sparse, and ``A`` the outputs of all
    convolutions for one batch. The ablation table counts activations and their gradients (``k = 2``), the savings on
    the phone activations alone (``k = 1``). Index storage, replayed batches and the memory are left out.

    Args:
        parameters: of the network, batch normalization included.
        outputs: numbers that the convolutions put out for one image.
        batch_size: images of a stream batch.
        weight_sparsity: ``s`` in [0, 1).
        gradient_sparsity: ``g``; as ``weight_sparsity`` if None.

    Returns:
        ``ablation_table`` and ``phone``.
    """
    if gradient_sparsity is None:
        gradient_sparsity = weight_sparsity
    values = 4 * parameters * ((1 - weight_sparsity) + (1 - gradient_sparsity))
    activations = 4 * outputs * batch_size
    return {"ablation_table": values + 2 * activations, "phone": values + activations}
