"""The learners' names are the published ones, and their planned FLOPs round to the published figures."""

from __future__ import annotations

import pytest

from sparcl import methods, resolve
from sparcl.costs import planning, published

DENSE = ("ewc", "lwf", "agem", "icarl", "fdr", "er", "derpp")
FIGURES = [f for f in published.select(metric="training_flops", table="table1") if f.method in DENSE and not f.sparsity]


def test_every_published_dense_learner_is_a_method() -> None:
    assert {f.method for f in FIGURES} == set(DENSE)
    assert set(DENSE) <= set(methods.names())
    families = {name: methods.get(name).family for name in DENSE}
    assert families == dict.fromkeys(DENSE, "rehearsal") | {"ewc": "regularization", "lwf": "regularization"}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f"{f.stream}-{f.method}-{f.buffer}")
def test_paper_ledger_of_the_method(figure) -> None:
    chosen = resolve.make(figure.stream, figure.method, 0.0, figure.buffer or 0, 0)
    assert figure.rounds_from(planning.paper(chosen)["training"])
