"""How long the parts of a run take, each group against a reference in the same run.

    python -m pytest tests/benchmarks --benchmark-enable --benchmark-group-by=group

The numbers in parentheses are ratios to the fastest of the group; there are no absolute bounds.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import transforms

from sparcl import components, masks, models, resolve, streams, trainer
from sparcl.costs import ledger
from sparcl.policies import tdm
from sparcl.running import environment
from sparcl.streams import augment

PLAIN = "plain loop (reference)"
METHODS = ["derpp", "static-derpp", "gmp-derpp", "snip-derpp", "set-derpp", "rigl-derpp", "tdm-derpp", "sparcl-derpp"]


def running(method: str) -> tuple[trainer.Run, Iterator[components.Batch]]:
    """Return a run in the middle of its second task, where replay is on, and an endless supply of its batches."""
    chosen = resolve.make("split-digits", method, 0.9 if "-" in method else 0.0, 50, 0)
    environment.prepare(chosen)
    run = trainer.Run(chosen, streams.load(chosen.stream, None, {}))

    class Reached(Exception):
        pass

    def stop(run: trainer.Run) -> None:
        if run.clock.task == 1 and run.clock.step == 1:
            raise Reached

    with pytest.raises(Reached):
        trainer.train(run, stop)
    clock = run.clock

    def supply() -> Iterator[components.Batch]:
        while True:
            run.clock = clock
            yield from trainer.batches(run)

    return run, supply()


class PlainLoop:
    """DER++ as a tutorial writes it: images are augmented, remembered and counted one by one."""

    def __init__(self, run: trainer.Run) -> None:
        self.run = run
        self.model = copy.deepcopy(run.model).to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.03)
        self.memory: list[tuple[Tensor, int, Tensor]] = []
        self.seen = 0
        self.misclassified: dict[int, int] = {}
        info, crop = run.info, transforms.RandomCrop(run.info.shape[1:], padding=run.info.pad)
        self.transform = transforms.Compose(
            [
                *([crop] if info.pad else []),
                *([transforms.RandomHorizontalFlip()] if info.flip else []),
                transforms.Lambda(lambda image: image.float() / info.scale),
                transforms.Normalize(info.mean, info.std),
            ]
        )

    def images(self, raw: Sequence[Tensor]) -> Tensor:
        return torch.stack([self.transform(image) for image in raw])

    def replayed(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, logits = zip(*random.sample(self.memory, count), strict=True)
        return self.images(images), torch.tensor(labels), torch.stack(logits)

    def step(self, batch: components.Batch) -> None:
        self.optimizer.zero_grad()
        output = self.model(self.images(list(batch.raw)))
        loss = functional.cross_entropy(output, batch.labels)
        if self.seen:
            count = min(len(batch.raw), len(self.memory))
            images, _, logits = self.replayed(count)
            loss = loss + 0.1 * functional.mse_loss(self.model(images), logits)
            images, labels, _ = self.replayed(count)
            loss = loss + 0.5 * functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        for position, image, label, scores in zip(
            batch.positions.tolist(), batch.raw, batch.labels.tolist(), output.detach(), strict=True
        ):
            wrong = int(scores.argmax()) != label
            self.misclassified[position] = self.misclassified.get(position, 0) + wrong
            self.seen += 1
            if len(self.memory) < self.run.cell.buffer:
                self.memory.append((image, label, scores))
            elif (place := random.randrange(self.seen)) < self.run.cell.buffer:
                self.memory[place] = (image, label, scores)


@pytest.mark.parametrize("method", [*METHODS, PLAIN])
@pytest.mark.benchmark(group="training step, DER++ on Split-Digits, sparsity 0.90 (derpp: dense)")
def test_training_step(benchmark: Callable, method: str) -> None:
    run, batches = running("derpp" if method == PLAIN else method)
    if method == PLAIN:
        plain = PlainLoop(run)
        benchmark(lambda: plain.step(next(batches)))
        assert plain.seen
        assert sum(plain.misclassified.values())
    else:
        benchmark(lambda: trainer.step(run, next(batches)))


@pytest.fixture(scope="module")
def resnet18() -> masks.MaskSet:
    model = models.build("resnet18", 64, 10, (3, 32, 32), torch.Generator().manual_seed(0))
    weights = dict(model.named_parameters())
    return masks.MaskSet({name: weights[name] for name in models.maskable(model)})


@pytest.mark.benchmark(group="mask update, largest layer of ResNet-18 (2.4 M weights)")
@pytest.mark.parametrize("part", ["importance", "top-k", "random growth", "torch.sort (reference)"])
def test_mask_update(benchmark: Callable, resnet18: masks.MaskSet, part: str) -> None:
    weight = resnet18.parameters["layer4.1.conv2.weight"].detach()
    gradient, generator = torch.randn_like(weight), torch.Generator().manual_seed(0)
    free = torch.rand_like(weight) > 0.1
    parts = {
        "importance": lambda: tdm.importance(weight, gradient, gradient, 0.5, 1.0),
        "top-k": lambda: masks.top_k(weight.abs(), weight.numel() // 10, generator),
        "random growth": lambda: masks.random_k(free, weight.numel() // 100, generator),
        "torch.sort (reference)": lambda: weight.abs().reshape(-1).sort(),
    }
    benchmark(parts[part])


@pytest.mark.benchmark(group="augmentation of 32 CIFAR-10 images")
@pytest.mark.parametrize("part", ["draw", "apply", "normalize", "image by image (reference)"])
def test_augmentation(benchmark: Callable, part: str) -> None:
    info = streams.describe("split-cifar10", {})
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 32, 32), generator=generator, dtype=torch.uint8)
    draws = augment.draw(32, info, generator)

    def one_by_one() -> list[torch.Tensor]:
        padded = torch.nn.functional.pad(images, (info.pad,) * 4)
        crops = [padded[i, :, dy : dy + 32, dx : dx + 32] for i, (dy, dx, _) in enumerate(draws.tolist())]
        return [crop.flip(-1) if flip else crop for crop, flip in zip(crops, draws[:, 2].tolist(), strict=True)]

    parts = {
        "draw": lambda: augment.draw(32, info, generator),
        "apply": lambda: augment.apply(images, draws, info),
        "normalize": lambda: augment.normalize(images, info),
        "image by image (reference)": one_by_one,
    }
    benchmark(parts[part])


@pytest.mark.benchmark(group="ledger of a ResNet-18 (against one multiplication by its masks)")
@pytest.mark.parametrize("part", ["entries of a step", "counts change", "projection (reference)"])
def test_ledger(benchmark: Callable, resnet18: masks.MaskSet, part: str) -> None:
    model = models.build("resnet18", 64, 10, (3, 32, 32), torch.Generator().manual_seed(0))
    book = ledger.Ledger(ledger.layer_costs(model, (3, 32, 32)))
    counts = masks.allocate(resnet18.shapes, 0.9)
    generator = torch.Generator().manual_seed(0)
    resnet18.adopt(masks.at_random(resnet18.parameters, counts, generator))

    def step() -> None:
        book.forward("stream", 32)
        book.backward("stream", 32)

    def change() -> None:
        step()
        book.set_weight_counts(counts)

    benchmark({"entries of a step": step, "counts change": change, "projection (reference)": resnet18.project}[part])
