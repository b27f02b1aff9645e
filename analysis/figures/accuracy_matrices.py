"""Accuracy matrices as heat maps."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from analysis.configurations import Configuration
from analysis.contrasts import RELEASED
from analysis.figures import style
from analysis.figures.scene import Drawing, Scene, finish


def draw(scene: Scene) -> Drawing | None:
    """Heat maps of accuracy by training task and test task: one row per learner."""
    buffer = scene.buffers[-1]
    grid = _matrix_methods(scene, buffer)
    columns = max(map(len, grid), default=0)
    if not columns:
        return None
    figure, axes = style.subplots(len(grid), columns, 2.1 * columns + 0.9, 2.45 * len(grid) + 0.7, layout="compressed")
    image = None
    for i, row in enumerate(grid):
        for j in range(columns):
            ax = axes[i][j]
            ax.grid(False)
            if j >= len(row):
                ax.axis("off")
                continue
            c = row[j]
            image = _heat_map(ax, scene, c)
            ax.set_title(f"{c.label}, {c.sparsity:.2f}" if c.sparsity else c.label, fontsize=8.5)
            ax.set_xlabel("Tested on task" if i == len(grid) - 1 else "")
            ax.set_ylabel("After training task" if j == 0 else "")
    panels = [ax for row in axes for ax in row]
    assert image is not None
    figure.colorbar(image, ax=panels, shrink=0.7, label="Class-IL accuracy (%)", pad=0.01)
    return finish(
        scene,
        f"Accuracy matrices with a buffer of {buffer}",
        "Class-IL accuracy on each task's test images (columns) after training each task (rows), mean over"
        f" seeds{_chosen(scene)}; a "
        "number beside a method is its sparsity. Forgetting shows as a column that darkens downwards. "
        "Joint training is tested once, after all tasks.",
        figure,
        [*(c for row in grid for c in row), *scene.unfinished(buffer)],
    )


def _chosen(scene: Scene) -> str:
    """What the caption says of the methods that are shown."""
    if not scene.learners:
        return ""
    named = ", ".join(filter(None, ("the dense method", scene.highlighted)))
    return f": {named} and, of the sparse-training baselines with the most seeds, the two with the best mean"


def _matrix_methods(scene: Scene, buffer: int) -> list[list[Configuration]]:
    """A bound, the dense learner, SparCL and the two best baselines, per learner; without sparse methods, all."""
    bounds = [scene.find("finetune", 0.0, 0), scene.find("joint", 0.0, 0)]
    if not scene.learners:
        dense = [c for c in scene.shown_methods(buffer) if not c.task_il_only]
        return [dense[start : start + 5] for start in range(0, min(len(dense), 15), 5)]
    grid = []
    for number, learner in enumerate(scene.learners):
        level = [
            c
            for c in scene.sparse
            if c.learner == learner and c.buffer == buffer and c.n and abs(c.sparsity - scene.focus) < 1e-9
        ]
        ours = [c for c in level if c.bundle == scene.highlight]
        rivals = [c for c in level if c.bundle not in (scene.highlight, RELEASED)]
        most = max((c.n for c in rivals), default=0)
        others = sorted((c for c in rivals if c.n == most), key=lambda c: -c.mean("class_il"))
        row = [bounds[number] if number < 2 else None, scene.find(learner, 0.0, buffer), *ours[:1], *others[:2]]
        grid.append([c for c in row if c is not None])
    return grid


def _heat_map(ax: Axes, scene: Scene, c: Configuration):
    mean = scene.results.matrices(c.paths).mean(axis=0)
    tasks = len(mean)
    mean = np.where(np.tril(np.ones((tasks, tasks), bool)), mean, np.nan)
    image = ax.imshow(mean, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    for t in range(tasks):
        for k in range(t + 1):
            if not np.isnan(mean[t, k]):
                ax.text(
                    k,
                    t,
                    f"{mean[t, k]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5 if tasks <= 6 else 5,
                    color="white" if mean[t, k] < 55 else "black",
                )
    ax.set_xticks(range(tasks), [str(task + 1) for task in range(tasks)])
    ax.set_yticks(range(tasks), [str(task + 1) for task in range(tasks)])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image
