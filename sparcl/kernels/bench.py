"""How fast a training step is with the sparse kernel: ``sparcl bench``.

Everything is measured in one process, one variant after the other in every round, so that a busy machine slows all of
them; a ratio is the median over rounds of dense time by variant's time in the same round. A step is zeroed gradients,
forward, loss, backward, masked SGD with momentum: all that a training step does but loading images. The share of peak
is that of the multiply-adds of existing weights in the machine's peak, measured by the loops' own instructions.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl import models
from sparcl.errors import Parser, UserError, check_count
from sparcl.files import atomic
from sparcl.kernels import library
from sparcl.kernels.attach import shapes_of
from sparcl.kernels.network import Network
from sparcl.masks import MaskSet, allocate, at_random
from sparcl.optimizer import SGD

SPARSITIES = (0.75, 0.90, 0.95)
PAPERS_STEPS = 1565
"""Steps between two mask updates in the SparCL paper: 5 epochs of 10,000 images in batches of 32."""


@dataclass(frozen=True)
class Case:
    """A network and the batches of a step: ``passes`` of 32 images each, with batch statistics of their own."""

    name: str
    model: str
    width: int
    shape: tuple[int, int, int]
    passes: int
    rounds: int


CASES = (
    Case("resnet18-64", "resnet18", 64, (3, 32, 32), 2, 8),
    Case("resnet18-20", "resnet18", 20, (3, 32, 32), 2, 20),
    Case("digits", "resnet8", 16, (1, 8, 8), 3, 200),
)
BATCH = 32


@dataclass
class Row:
    """One measured variant; seconds are medians over rounds, ``ratio`` is dense = 1, ``peak`` a fraction."""

    case: str
    variant: str
    sparsity: float
    seconds: float
    fastest: float
    images_per_second: float
    ratio: float
    peak: float | None


class Workload:
    """A model with masks in training, its images, and one step of each kernel."""

    def __init__(self, case: Case, sparsity: float, learning: float = 1.0):
        """Draw a model; ``learning`` is the share of the existing weights that learn."""
        generator = torch.Generator().manual_seed(0)
        self.model = models.build(case.model, case.width, 10, case.shape, generator)
        weights = dict(self.model.named_parameters())
        self.masks = MaskSet({n: weights[n] for n in models.maskable(self.model)})
        if sparsity:
            self.masks.adopt(at_random(self.masks.parameters, allocate(self.masks.shapes, sparsity), generator))
        if learning < 1:
            self.masks.restrict_gradients(
                {n: torch.rand(m.shape, generator=generator) < learning for n, m in self.masks.weight.items()}
            )
        self.optimizer = SGD(self.model.parameters(), 0.01, 0.9)
        self.masks.momenta = self.optimizer.momenta
        self.passes = [
            torch.randn(BATCH, *case.shape, generator=generator).contiguous(memory_format=torch.channels_last)
            for _ in range(case.passes)
        ]
        self.labels = torch.randint(0, 10, (BATCH,), generator=generator)
        self.network: Network | None = None

    def loss(self, features: Sequence[Tensor]) -> Tensor:
        """Return the summed cross-entropy of the passes' features, each (N, D)."""
        return torch.stack([F.cross_entropy(self.model.head(f), self.labels) for f in features]).sum()

    def dense(self) -> None:
        """One step with PyTorch's convolutions, channels_last."""
        self.optimizer.zero_grad()
        self.loss([self.model.features(images) for images in self.passes]).backward()
        self.masks.mask_gradients()
        self.optimizer.step()
        self.masks.project()

    def sparse(self) -> None:
        """One step with the sparse kernel."""
        if self.network is None:
            self.network = Network(self.model)
            self.network.accumulate = True
        self.network.follow(self.masks)
        self.network.zero_gradients(self.optimizer)
        self.loss(self.network.features(self.passes)).backward()
        self.network.step(self.optimizer)

    def update(self) -> None:
        """A mask update: other random masks of the same counts, and the indices that the next step needs."""
        assert self.network is not None
        generator = torch.Generator().manual_seed(1)
        self.masks.replace(at_random(self.masks.parameters, self.masks.counts(), generator))
        self.network.follow(self.masks)
        self.network.density()


def with_sparseprop(work: Workload) -> Callable[[], None] | None:
    """Return a step with IST-DASLab's SparseProp in every masked convolution, None if it is not installed."""
    try:
        from sparseprop.modules import SparseConv2d
    except ImportError:
        return None
    layers = {name.removesuffix(".weight") for name in work.masks.names}
    for name, module in list(work.model.named_modules()):
        if name in layers and isinstance(module, nn.Conv2d):
            parent, _, child = name.rpartition(".")
            module.weight.data = module.weight.data.contiguous()
            setattr(work.model.get_submodule(parent), child, SparseConv2d.from_dense(module))
    optimizer = torch.optim.SGD(work.model.parameters(), lr=0.01, momentum=0.9, foreach=True)
    passes = [images.contiguous() for images in work.passes]

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        work.loss([work.model.features(images) for images in passes]).backward()
        optimizer.step()

    return step


def peak(threads: int) -> float:
    """Return the floating-point operations per second that ``threads`` reach in registers."""
    loops, best = library.require(), 0.0
    for _ in range(20):
        started = time.perf_counter()
        work = loops.peak_work(20 * threads, threads)
        best = max(best, work / (time.perf_counter() - started))
    return best


def measure(case: Case, rounds: int, sparsities: Sequence[float], peak_rate: float) -> list[Row]:
    """Measure the steps of ``case``, every variant once in every round."""
    dense = Workload(case, 0.0)
    steps: list[tuple[str, float, Callable[[], None]]] = [
        ("dense", 0.0, dense.dense),
        ("sparse", 0.0, Workload(case, 0.0).sparse),
    ]
    for sparsity in sparsities:
        steps.append(("sparse", sparsity, Workload(case, sparsity).sparse))
    steps.append(("sparse, 80 % of them learn", 0.9, Workload(case, 0.9, learning=0.8).sparse))
    other = with_sparseprop(Workload(case, 0.9))
    if other is not None:
        steps.append(("SparseProp", 0.9, other))
    seconds: list[list[float]] = [[] for _ in steps]
    for i in range(rounds + 2):
        for (_, _, step), times in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step()
            if i > 1:
                times.append(time.perf_counter() - started)
    shapes = shapes_of(dense.model) or []
    images = case.passes * BATCH
    rows = []
    for (variant, sparsity, _), times in zip(steps, seconds, strict=True):
        operations = 2 * images * sum(s.multiply_adds * ((1 - sparsity) if s.maskable else 1) for s in shapes)
        median = statistics.median(times)
        rows.append(
            Row(
                case.name,
                variant,
                sparsity,
                median,
                min(times),
                images / median,
                statistics.median(a / b for a, b in zip(seconds[0], times, strict=True)),
                None if variant == "SparseProp" else operations / median / peak_rate,
            )
        )
    return rows


def measure_update(case: Case, rounds: int) -> Row:
    """Measure a mask update; ``ratio`` is its share of the training time between two of the paper's updates."""
    work = Workload(case, 0.9)
    work.sparse()
    updates, steps = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        work.update()
        updates.append(time.perf_counter() - started)
        started = time.perf_counter()
        work.sparse()
        steps.append(time.perf_counter() - started)
    update = statistics.median(updates)
    share = update / (PAPERS_STEPS * statistics.median(steps))
    return Row(case.name, "mask update (share of training time)", 0.9, update, min(updates), 0.0, share, None)


def machine(threads: int, peak_rate: float) -> dict[str, object]:
    """Describe where was measured."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {
        "cpu": name, "threads": threads, "instruction_set": library.instruction_set(), "torch": torch.__version__,
        "peak_gflops": peak_rate / 1e9, "system": platform.platform(),
    }  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a text table."""
    lines = [
        f"{'case':12} {'variant':36} {'zeros':>6} {'ms':>9} {'fastest':>9} {'images/s':>9} {'ratio':>7} {'peak':>5}"
    ]
    for row in rows:
        speed = f"{row.images_per_second:9.0f}" if row.images_per_second else f"{'':9}"
        ratio = f"{100 * row.ratio:6.2f}%" if row.variant.startswith("mask") else f"{row.ratio:7.2f}"
        share = "" if row.peak is None else f"{100 * row.peak:4.0f}%"
        lines.append(
            f"{row.case:12} {row.variant:36} {100 * row.sparsity:5.0f}% {1e3 * row.seconds:9.2f} "
            f"{1e3 * row.fastest:9.2f} {speed} {ratio} {share:>5}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    names = [case.name for case in CASES]
    parser = Parser(prog="sparcl bench", description="Measure training steps, dense and sparse.")
    parser.add_argument("--case", action="append", choices=names, help="what to measure, repeatable (default: all)")
    parser.add_argument("--threads", type=int, help="threads of a step (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, help="rounds of every case (default: by case)")
    parser.add_argument("--sparsity", type=float, action="append", help="repeatable (default: 0.75, 0.9, 0.95)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too ('-': on standard output only)")
    args = parser.parse_args(argv)
    if not library.available():
        print("error: the sparse kernel is not compiled here: python -m sparcl.kernels.build", file=sys.stderr)
        return 2
    check_count("--threads", args.threads)
    check_count("--rounds", args.rounds, high=1_000_000)
    for value in args.sparsity or ():
        if not 0 <= value < 1:
            raise UserError(f"--sparsity: expected a number from 0 to below 1, got {value:g}")
    if args.json not in (None, "-"):
        if not Path(args.json).absolute().parent.is_dir():
            raise UserError(f"--json: expected a file in a folder that exists, got {args.json}")
        atomic.check("--json", Path(args.json))
    if args.threads:
        torch.set_num_threads(args.threads)
    threads = torch.get_num_threads()
    rate = peak(threads)
    rows: list[Row] = []
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        rounds = args.rounds or case.rounds
        rows += measure(case, rounds, args.sparsity or SPARSITIES, rate)
        rows.append(measure_update(case, min(rounds, 5)))
    report = json.dumps({"machine": machine(threads, rate), "rows": [asdict(row) for row in rows]}, indent=1)
    if args.json == "-":
        print(report)
        return 0
    if args.json:
        atomic.write_text(Path(args.json), report + "\n")
    for key, value in machine(threads, rate).items():
        print(f"{key}: {value}")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
