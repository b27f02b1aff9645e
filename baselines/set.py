"""SET, sparse evolutionary training (Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive
sparse connectivity inspired by network science").

Rule: from a random mask, every ``interval`` steps each layer with k weights loses the floor(zeta k) with the smallest
|w| and gains as many at positions drawn uniformly from those that are then free (one just lost may come back):

    m <- m - smallest(|w|, floor(zeta k)) + random(free, floor(zeta k))

The step itself is taken: the update follows it. The authors' code drops by sign, the share zeta of the positive weights
nearest to 0 and the same share of the negative ones; by magnitude alone the two shares may differ.

Adaptation to the stream: Mocanu et al. rewire after every epoch but the last; here ``interval`` counts steps within a
task (about an epoch by default, see the hyper-parameter file), for the whole run, and a task's last step is followed by
no update, so that evaluation sees trained weights. New weights start at 0 (``reinit: zero``, as RigL and SparCL do) or
from the layer's initial distribution (``reinit: random``, as in the authors' code). A layer that ERK leaves dense has
nowhere to grow and is left alone.
"""

from __future__ import annotations

import torch

from sparcl import masks
from sparcl.components import Clock, Run, SparsityPolicy
from sparcl.masks import MaskSet
from sparcl.methods import policy
from sparcl.models import fresh_weights
from sparcl.parameters import parameter
from sparcl.policies.static import DISTRIBUTION, initial_masks


@policy("set", "SET")
class SET(SparsityPolicy):
    """Sparse evolutionary training; see the module's docstring for the rule and its source."""

    zeta: float = parameter(0.3, "share of a layer's weights replaced at each update", low=0, high=1)
    interval: int = parameter(300, "steps between mask updates, counted within a task", low=1, duration=True)
    reinit: str = parameter("zero", "value of a new weight", choices=("zero", "random"))
    distribution: str = DISTRIBUTION

    # -- the run ---------------------------------------------------------------------------------------------------
    def start(self, run: Run) -> None:
        initial_masks(run, "random", self.distribution)

    def after_step(self, run: Run) -> None:
        clock = run.clock
        last = clock.epoch + 1 == clock.epochs and clock.step + 1 == clock.steps
        if run.cell.sparsity > 0 and clock.is_due(self.interval, done=1) and not last:
            self._update(run)

    def _update(self, run: Run) -> None:
        sparse = {name: mask for name, mask in run.masks.weight.items() if not mask.all()}
        smaller, larger = {}, {}
        for name, mask in sparse.items():
            count = int(self.zeta * run.masks.counts()[name])
            score = run.masks.parameters[name].abs()
            smaller[name] = mask & ~masks.smallest_k(score, count, run.generator("prune"), among=mask)
            larger[name] = smaller[name] | masks.random_k(~smaller[name], count, run.generator("grow"))
        pruned = run.masks.replace(smaller).pruned
        grown = run.masks.replace(larger).grown
        if self.reinit == "random":
            for name in sparse:
                weight, new = run.masks.parameters[name], larger[name] & ~smaller[name]
                with torch.no_grad():
                    weight[new] = fresh_weights(weight, int(new.sum()), run.generator("grow-values"))
        run.note_update(pruned, grown)

    # -- plan ------------------------------------------------------------------------------------------------------
    def planned_counts(self, container: MaskSet, sparsity: float, clock: Clock) -> dict[str, int]:
        return masks.allocate(container.shapes, sparsity, self.distribution)
