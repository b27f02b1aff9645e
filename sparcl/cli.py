"""The command line: ``sparcl run | export | flops | methods | streams | data | plan | bench | time | new-baseline``.

Exit status 0 for success, 1 for a run that failed, 2 for bad input (one line on standard error), 130 or 143 for a run
that was interrupted and left a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparcl.cell import SETTINGS
from sparcl.errors import Parser, RunError, UserError, check_count, one_line, suggest
from sparcl.files import strict_yaml, typed_json

STOP_SECONDS = 10.0
"""A run that was asked to stop and is not at a step's end by then stops where it is, with its last checkpoint."""


class Stopped(Exception):
    """A run was interrupted; the command ends with the exit status ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = Parser(prog="sparcl", description="Sparse continual learning: runs, methods, streams, FLOPs.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    run = commands.add_parser("run", help="run one cell and write its record")
    _run_options(run)
    run.add_argument("--identity", metavar="SHA256", help="refuse to run if code or libraries give another")
    run.add_argument("--keep-model", action="store_true", help="write the trained model beside the record")

    export = commands.add_parser("export", help="run one cell, write its model as ONNX, and time it in ONNX Runtime")
    _run_options(export)
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ONNX file to write")

    flops = commands.add_parser("flops", help="FLOPs of a cell in three ledgers, without training it")
    _cell_options(flops)
    flops.add_argument("--json", action="store_true", help="print JSON")
    flops.add_argument("--layers", action="store_true", help="also per layer")

    names = commands.add_parser("methods", help="list the methods")
    names.add_argument("pattern", nargs="*", help="shell-style patterns, for example '*rigl*'")
    names.add_argument("--parameters", action="store_true", help="also list each method's parameters")
    names.add_argument("--stream", metavar="NAME", help="list the parameters' values on this stream")
    names.add_argument("--json", action="store_true", help="print JSON")

    listed = commands.add_parser("streams", help="list the streams")
    listed.add_argument("--json", action="store_true", help="print JSON")

    data = commands.add_parser("data", help="download and check the images of a stream, and print their digest")
    data.add_argument("--stream", metavar="NAME", required=True)
    data.add_argument("--set", action="append", default=[], metavar="stream.KEY=VALUE", help="an option of the stream")
    data.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets (default: data)")

    new = commands.add_parser("new-baseline", help="write the files of a new baseline: module, test, config line")
    new.add_argument("name", metavar="NAME", help="name of the policy and its module, for example my_rule")
    new.add_argument("--kind", choices=("sparsity", "gradient", "data"), default="sparsity",
                     help="what it decides: weights, gradients or samples (default: %(default)s)")  # fmt: skip
    new.add_argument("--label", help="what tables and figures print (default: from NAME)")
    place = new.add_mutually_exclusive_group()
    place.add_argument("--folder", type=Path, default=Path("baselines"), metavar="DIR",
                       help="package folder of the module; its test goes to tests/ (default: %(default)s)")  # fmt: skip
    place.add_argument("--package", type=Path, metavar="DIR", help="write an installable package of its own instead")
    new.add_argument("--config", type=Path, metavar="FILE", help="matrix config to add the method to")

    commands.add_parser("bench", help="time training steps, dense and sparse", add_help=False)

    timed = commands.add_parser("time", help="time the steps of a plan's methods on this machine")
    timed.add_argument("--plan", type=Path, required=True, metavar="FILE", help="plan.json of a matrix")
    timed.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file to write")
    timed.add_argument("--cores", type=int, default=None, help="cores to use, beside one (default: all)")
    timed.add_argument("--seconds", type=float, default=20.0, help="of turns, for each number of threads")
    timed.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets (default: data)")

    plan = commands.add_parser("plan", help="check a matrix config and write its plan")
    plan.add_argument("--config", type=Path, required=True, metavar="FILE", help="matrix config (YAML)")
    plan.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="results folder")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    return top


def _run_options(command: argparse.ArgumentParser) -> None:
    _cell_options(command)
    command.add_argument("--results", type=Path, default=Path("results/manual"), metavar="DIR",
                         help="results folder; records are written below DIR/runs (default: %(default)s)")  # fmt: skip
    command.add_argument("--threads", type=int, default=1, help="threads of the run (default: %(default)s)")
    command.add_argument("--force", action="store_true", help="replace a record of another code or library version")
    command.add_argument("--checkpoint-every", type=float, default=60.0, metavar="SECONDS",
                         help="seconds between checkpoints, 0 for every step (default: %(default)s)")  # fmt: skip
    command.add_argument("--quiet", action="store_true", help="print nothing but the result")


def _cell_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cell", metavar="JSON", help="a whole cell as JSON, as a plan holds it")
    command.add_argument("--config", type=Path, metavar="FILE", help="YAML file with the settings of a cell")
    command.add_argument("--stream", metavar="NAME")
    command.add_argument("--method", metavar="NAME")
    for name, setting in SETTINGS.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=setting.kind, help=setting.help)
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                         help="a parameter, for example ddr.proportion=0.1 or stream.class_order_seed=3")  # fmt: skip
    command.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets (default: data)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        top = parser()
        known = tuple(COMMANDS)
        if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
            raise UserError(f"sparcl: unknown command {arguments[0]!r}{suggest(arguments[0], known)}")
        if arguments[:1] == ["bench"]:
            return _bench(arguments[1:])
        options = top.parse_args(arguments)
        if options.command is None:
            top.print_help()
            return 0
        return int(COMMANDS[options.command](options) or 0)
    except UserError as error:
        print(f"error: {one_line(error, 600)}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {one_line(error, 600)}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


# -- cells -------------------------------------------------------------------------------------------------------------
def _cell(options: argparse.Namespace) -> Any:
    from sparcl import methods, resolve

    given: dict[str, Any] = {}
    if options.cell is not None:
        try:
            given = json.loads(options.cell)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--cell: expected JSON ({one_line(error, 100)})") from error
        if not isinstance(given, dict):
            raise UserError("--cell: expected a JSON object")
        strict_yaml.check(given, "--cell")
    if options.config is not None:
        given |= _settings(options.config)
    for name in ("stream", "method", *SETTINGS):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    for name in ("params", "stream_options"):
        if not isinstance(given.get(name, {}), dict):
            raise UserError(f"{name}: expected a mapping, got {one_line(repr(given[name]), 60)}")
    params, stream_options = dict(given.get("params", {})), dict(given.get("stream_options", {}))
    for key, value in _assignments(options.set):
        if key.startswith("stream."):
            stream_options[key.removeprefix("stream.")] = value
        else:
            params[key] = value
    for name in ("stream", "method"):
        if name not in given:
            raise UserError(f"--{name}: missing; name a {name} ('sparcl {name}s' lists them)")
    if "sparsity" not in given and methods.get(given["method"]).is_sparse:
        raise UserError(f"--sparsity: missing; {given['method']} needs one, from 0 (dense) to below 1")
    cell = resolve.from_dict(given | {"params": params, "stream_options": stream_options})
    if options.buffer and not cell.buffer:
        raise UserError(f"--buffer: {cell.method} has no memory and needs buffer 0, got {options.buffer}")
    return cell


def _assignments(texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield key and value of every ``KEY=VALUE``."""
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set {text}: expected KEY=VALUE, for example ddr.proportion=0.1")
        yield key, strict_yaml.parse(value, f"--set {one_line(key, 80)}")


def _settings(path: Path) -> dict[str, Any]:
    data = strict_yaml.load(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected the settings of a cell as 'key: value' lines")
    return data


class Overdue(BaseException):
    """A signal that asks to stop was not heeded in ``STOP_SECONDS``. No ``except Exception`` on the way holds it up."""


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop. One that is not heeded in ``STOP_SECONDS`` raises Overdue."""
    asked: list[int] = []

    def note(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS, 1.0)

    def interrupt(_number: int, _frame: Any) -> None:
        raise Overdue

    handlers: dict[int, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM), note)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        handlers[signal.SIGHUP] = note
    handlers[signal.SIGALRM] = interrupt
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(options: argparse.Namespace) -> int:
    from sparcl.running import runner

    chosen = _cell(options)
    _trained(options, chosen, options.identity, options.keep_model)
    print(runner.folder_of(chosen, options.results) / runner.RECORD)
    return 0


def _trained(options: argparse.Namespace, chosen: Any, planned: str | None, keep_model: bool) -> Mapping[str, Any]:
    """Run a cell, or find it done, and print what came out; return its record."""
    from sparcl import methods, streams
    from sparcl.running import runner
    from sparcl.running.progress import Progress
    from sparcl.trainer import Interrupted

    check_count("--threads", options.threads)
    if not 0 <= options.checkpoint_every < math.inf:
        raise UserError(f"--checkpoint-every: expected a number of seconds, got {options.checkpoint_every}")
    with _signals() as asked, Progress(chosen, quiet=options.quiet) as progress:
        try:
            found = runner.run_cell(
                chosen, options.results, data_root=options.data, threads=options.threads, force=options.force,
                keep_model=keep_model, checkpoint_seconds=options.checkpoint_every, watch=progress.step,
                watch_task=progress.task, planned=planned, stop=lambda: bool(asked),
            )  # fmt: skip
        except (Interrupted, Overdue):
            signal.setitimer(signal.ITIMER_REAL, 0)
            progress.close()
            saved = (runner.folder_of(chosen, options.results) / runner.CHECKPOINT).exists()
            left = "left a checkpoint; the same command continues it" if saved else "is without a checkpoint yet"
            print(f"interrupted: {chosen.path} {left}", file=sys.stderr)
            raise Stopped(128 + asked[0]) from None
    name = methods.get(chosen.method).label
    where = streams.describe(chosen.stream, dict(chosen.stream_options)).label
    print(f"{name} on {where}: {_outcome(found)}")
    return found


def _export(options: argparse.Namespace) -> int:
    from sparcl import export, streams
    from sparcl.costs import memory, planning
    from sparcl.files import atomic
    from sparcl.running import model_file, runner

    chosen = _cell(options)
    model_file.refuse(chosen)
    export.check_packages()
    atomic.check("--out", options.out)
    record = _trained(options, chosen, None, keep_model=True)
    if record["diverged"] is not None:
        raise RunError(f"{chosen.path}: the run diverged, so there is no model to export")
    file = runner.folder_of(chosen, options.results) / model_file.FILE
    stream = streams.load(chosen.stream, options.data, dict(chosen.stream_options))
    model = export.Deployed(model_file.load(file, record["identity"]), stream.info)
    export.write(model, stream.info, chosen, record["identity"], options.out)
    session = export.open_session(options.out, options.threads)
    same = export.agreement(model, session, stream)
    facts = planning.facts(chosen)["memory"]
    layers = ((layer["size"], layer["weights"]) for layer in record["results"]["masks"]["layers"].values())
    stored = memory.stored(facts["dense_parameters"], facts["buffers"], layers)
    print(f"{options.out}: all {same.images} test images are predicted as by PyTorch, "
          f"logits differ by at most {same.difference:.0e} (the largest is {same.largest:.1f})")  # fmt: skip
    print(f"size of the weights: {stored['dense'] / 1e6:.3f} MB dense, {stored['sparse'] / 1e6:.3f} MB sparse; "
          f"files: {options.out.stat().st_size / 1e6:.3f} MB ONNX (dense), "
          f"{file.stat().st_size / 1e6:.3f} MB {file.name} (sparse)")  # fmt: skip
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    print(f"inference, median, {threads}:  {'PyTorch':>10} {'ONNX Runtime':>14}")
    for batch, medians in export.times(model, session, stream).items():
        print(f"  batch {batch:<3} {1e3 * medians['torch']:>24.3f} ms {1e3 * medians['onnxruntime']:>11.3f} ms")
    return 0


def _outcome(found: Mapping[str, Any]) -> str:
    """Return what came out of a run, in one line."""
    from sparcl import metrics

    if found["diverged"] is not None:
        return "diverged in task {task}, epoch {epoch}, step {step}".format(**found["diverged"])
    accuracy = found["results"]["accuracy"]
    result = metrics.summary(accuracy["class_il"], accuracy["task_il"], accuracy["untrained"]["task_il"])
    shown = {name: "-" if value is None else f"{value:.2f}" for name, value in result.items()}
    return (
        f"Class-IL {shown['class_il']} %, Task-IL {shown['task_il']} %, forgetting {shown['forgetting_class_il']}, "
        f"{found['results']['executed']['training']:.3e} training FLOPs"
    )


def _flops(options: argparse.Namespace) -> int:
    from sparcl.costs import planning

    chosen = _cell(options)
    executed, approximate = planning.executed(chosen)
    paper, dense = planning.paper(chosen), planning.dense(chosen)["training"]
    plan: dict[str, Any] = {
        "executed": executed, "paper": paper, "dense": {"training": dense},
        "dense_over_executed": dense / executed["training"] if executed["training"] else None,
        "dense_over_paper": planning.dense_over_paper(chosen), "approximate": approximate,
        "paper_memory": {
            key: planning.facts(chosen)[f"paper_memory_{short}"]
            for key, short in (("ablation_table", "ablation"), ("phone", "phone"))
        },
    }  # fmt: skip
    layers = executed.pop("layers")
    if options.layers:
        executed["layers"] = layers
        for ledger, values in planning.by_layer(chosen).items():
            plan[ledger]["layers"] = values
    if options.json:
        print(json.dumps({"cell": chosen.as_dict(), **plan}, indent=1))
        return 0
    print(f"{chosen.path} (FLOPs; one multiply-add is 2)")
    for name in ("executed", "paper", "dense"):
        print(f"  {name:<10} {plan[name]['training']:.4e}")
    print(f"  dense / executed {plan['dense_over_executed']:.2f}")
    if plan["dense_over_paper"] is not None:
        print(f"  dense / own FLOPs, both by the paper's count {plan['dense_over_paper']:.2f}")
    if approximate:
        print("  (executed is an approximation: the data decide how many weights are left or images replayed)")
    for line, kinds in executed["lines"].items():
        print(f"    {line:<18} {sum(kinds.values()):.4e}")
    memory = plan["paper_memory"]
    print(f"  memory by the paper's count: {memory['ablation_table'] / 1e6:.1f} MB (its ablation table), "
          f"{memory['phone'] / 1e6:.1f} MB (its phone)")  # fmt: skip
    if options.layers:
        print(f"    {'layer':<32} {'executed':>10} {'paper':>10} {'dense':>10}")
        for layer, value in layers.items():
            print(f"    {layer:<32} {value:10.4e} {paper['layers'][layer]:10.4e} "
                  f"{plan['dense']['layers'][layer]:10.4e}")  # fmt: skip
    return 0


# -- lists -------------------------------------------------------------------------------------------------------------
def _methods(options: argparse.Namespace) -> int:
    from sparcl import methods, resolve, streams

    if options.stream is not None and options.stream not in streams.names():
        raise UserError(f"--stream: unknown name {options.stream!r}{suggest(options.stream, streams.names())}")
    found = methods.matching(options.pattern)
    for module, error in methods.broken().items():
        print(f"warning: {module} could not be registered, its methods are missing: {error}", file=sys.stderr)
    if not found:
        wanted = options.pattern[0]
        raise UserError(f"no method matches {wanted!r}{suggest(wanted, methods.names())}; 'sparcl methods' lists them")
    if options.json:
        keys = ("name", "label", "family", "learner", "task_il_only")
        print(json.dumps([{k: getattr(m, k) for k in keys} | {"policies": dict(m.policies)} for m in found], indent=1))
        return 0
    for method in found:
        parts = ", ".join([method.learner, *method.policies.values()])
        print(f"{method.name:<24} {method.label:<26} {method.family:<16} {parts}")
        if options.parameters or options.stream:
            values = resolve.defaults(method, options.stream)
            for key, parameter in method.parameters().items():
                print(f"    {key} = {values[key]}: {parameter.help}")
    return 0


def _streams(options: argparse.Namespace) -> int:
    from sparcl import streams

    for module, reason in streams.broken().items():
        print(f"warning: {module}: {reason}; its streams are missing", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for name in streams.names():
        try:
            info = streams.describe(name, {})
        except UserError:
            rows.append({"name": name, "label": "Folder", "note": "set stream.path"})
            continue
        rows.append(
            {"name": name, "label": info.label, "tasks": info.tasks, "classes": info.classes, "shape": list(info.shape),
             "train": sum(info.train_sizes), "test": sum(info.test_sizes)}
        )  # fmt: skip
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        if "note" in row:
            print(f"{row['name']:<22} {row['label']:<22} {row['note']}")
        else:
            size = "x".join(map(str, row["shape"]))
            print(f"{row['name']:<22} {row['label']:<22} {row['tasks']} tasks, {row['classes']} classes, {size}, "
                  f"{row['train']} training and {row['test']} test images")  # fmt: skip
    return 0


def _data(options: argparse.Namespace) -> int:
    from sparcl import streams

    given = {}
    for key, value in _assignments(options.set):
        if not key.startswith("stream."):
            raise UserError(f"--set {key}: expected an option of the stream, stream.KEY=VALUE")
        given[key.removeprefix("stream.")] = value
    print(streams.load(options.stream, options.data, given).digest)
    return 0


def _plan(options: argparse.Namespace) -> int:
    import torch

    from sparcl import matrix, plan, trainer  # noqa: F401  a trainer that cannot be imported is told before any job

    torch.set_num_threads(1)  # networks that see three images: threads cost more than they give
    try:
        checked = matrix.load(options.config)
    except matrix.MatrixError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    made = plan.make(checked)
    if options.json:
        json.dump(made, sys.stdout, allow_nan=False)
        print()
        return 0
    target = plan.write(made, options.results)
    print("\n".join(plan.summary(made, options.results)))
    print(f"plan: {target}" if target else f"plan: not written, a run is at work in {options.results / made['name']}")
    return 0


def _time(options: argparse.Namespace) -> int:
    import os

    from sparcl import streams
    from sparcl.files import atomic
    from sparcl.running import timing

    try:
        cells = timing.cells_of(typed_json.read(options.plan, "plan", 2**30))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{options.plan}: expected a plan ({one_line(error, 100)})") from error
    check_count("--cores", options.cores)
    if not 0 <= options.seconds < math.inf:
        raise UserError(f"--seconds: expected a number of seconds, got {options.seconds}")
    atomic.check("--out", options.out)
    cores, rows = options.cores or len(os.sched_getaffinity(0)), []
    if cells:
        stream = streams.load(cells[0].stream, options.data, dict(cells[0].stream_options))
        for threads in sorted({1, cores}):
            rows += timing.measure(cells, stream, threads, options.seconds)
    result = {"machine": timing.machine(cores), "rows": rows}
    atomic.write_text(options.out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(options.out)
    return 0


def _new_baseline(options: argparse.Namespace) -> int:
    from sparcl import scaffold

    draft = scaffold.Draft(options.name, options.kind, options.label)
    print(scaffold.create(draft, options.folder, options.package, options.config))
    return 0


def _bench(arguments: list[str]) -> int:
    from sparcl.kernels import bench  # it has a parser of its own

    return bench.main(arguments)


COMMANDS: dict[str, Callable[[Any], int]] = {
    "run": _run,
    "export": _export,
    "flops": _flops,
    "methods": _methods,
    "streams": _streams,
    "data": _data,
    "plan": _plan,
    "time": _time,
    "bench": _bench,
    "new-baseline": _new_baseline,
}

if __name__ == "__main__":
    sys.exit(main())
