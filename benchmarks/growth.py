"""How time and memory of an AutoLoRa epoch grow: with images, classes, resolution, parameters,
attack steps (each varied alone), processes.

python benchmarks/growth.py all columns python benchmarks/growth.py --vary resolution processes some
of them

The base: robust_mini_rgb's net, 640 photographs (100 more for validation) of 10 classes at 32x32,
batch 128, PGD-10. Each cell is a fresh process: one epoch to warm up, then the median of --rounds.
Processes: the command of the README on mnist5k, one thread each, seconds from the run's own
history, the counts of processes in turns."""

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from _harness import HERE, clock, forget_peak, memory, options, save
from _material import learner, photos

from autolora.data.images import Split
from autolora.data.loading import load_task
from autolora.methods.registry import make_method
from autolora.models.backbones import BACKBONES, MiniResNet
from autolora.models.collections import Normalise
from autolora.runs.folder import Run

BASE = {"images": 640, "classes": 10, "resolution": 32, "parameters": 1.0, "steps": 10}
VALUES = {
    "images": [640, 1280, 2560, 5120],
    "classes": [2, 10, 100, 320],
    "resolution": [16, 32, 64],
    "parameters": [0.5, 1.0, 2.0],
    "steps": [2, 5, 10, 20],
}
UNITS = {
    "images": "training images",
    "classes": "classes",
    "resolution": "pixels a side",
    "parameters": "times the width",
    "steps": "attack steps",
}


def net(width, classes):
    "robust_mini_rgb's net with `width` times as many channels in its blocks."
    known = BACKBONES["robust_mini_rgb"]
    return torch.nn.Sequential(
        Normalise(known.mean, known.std),
        MiniResNet(3, classes, [round(width * w) for w in (64, 128, 128)], (2, 2, 1)),
    )


def task_of(n, classes, size):
    "`n` training, 100 validation and 100 test photographs."
    x, y = photos(n + 200, size, classes)
    parts = [Split(x[a:b], y[a:b]) for a, b in ((0, n), (n, n + 100), (n + 100, n + 200))]
    return replace(
        load_task((x[: max(640, 2 * classes)], y[: max(640, 2 * classes)])),
        train=parts[0],
        val=parts[1],
        test=parts[2],
    )


def one(case, rounds):
    """The child: prints seconds of each epoch, bytes that training added at most, and the number of
    parameters."""
    task = task_of(case["images"], case["classes"], case["resolution"])
    method = make_method(
        "autolora",
        net(case["parameters"], case["classes"]).to(memory_format=torch.channels_last),
        task.threat,
    )
    method.steps = case["steps"]
    made = learner(method, task)
    before = memory("VmRSS")
    forget_peak()
    seconds = [clock(made.fit_epoch) for _ in range(rounds + 1)][1:]
    print(
        json.dumps(
            {
                "seconds": seconds,
                "bytes": memory("VmHWM") - before,
                "parameters": sum(p.numel() for p in method.model.parameters()),
            }
        )
    )


def exponent(rows):
    "How cost grows with size between the smallest and the largest case: the exponent of size."
    (small, cheap), (large, dear) = rows[0], rows[-1]
    return math.log(dear / cheap) / math.log(large / small)


def vary(args, what):
    "One column: its cases, and the exponents."
    rows, times, space = [], [], []
    for value in VALUES[what]:
        command = [
            sys.executable,
            HERE / "growth.py",
            "--one",
            json.dumps(BASE | {what: value}),
            "--rounds",
            str(args.rounds),
        ]
        found = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[
                -1
            ]
        )
        size = found["parameters"] if what == "parameters" else value
        times.append((size, statistics.median(found["seconds"])))
        space.append((size, found["bytes"]))
        label = (
            f"{value} ({found['parameters'] / 1e3:.0f} k parameters)"
            if what == "parameters"
            else value
        )
        rows.append(
            [
                label,
                f"{times[-1][1]:.2f} ({min(found['seconds']):.2f} to {max(found['seconds']):.2f})",
                f"{found['bytes'] / 1e6:.0f}",
            ]
        )
    note = (
        f"From the first row to the last, seconds grow like size^{exponent(times):.2f}, memory "
        f"like size^{exponent(space):.2f}."
    )
    extra = {
        "steps": " The validation attack keeps its ten steps.",
        "parameters": " Size: the number of parameters.",
    }.get(what, "")
    save(
        args.results,
        "growth",
        f"Growth: {UNITS[what]}",
        table=[[UNITS[what], "seconds an epoch", "MB added at most"], *rows],
        notes=[note + extra],
    )


def launch(count, args):
    """Images a second of `count` processes, from the epochs after the first; raises with the
    command's last words."""
    out = Path(tempfile.mkdtemp()) / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        "-m",
        "autolora",
        "finetune",
        "robust_mini_gray",
        args.data,
        "--epochs",
        str(args.epochs),
        "--lr",
        "0.05",
        "--batch-size",
        "128",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr + done.stdout).splitlines()
        raise RuntimeError(
            f"{count} processes: "
            + next((line for line in said if line.startswith("autolora")), said[-1])
        )
    run = Run.open(out)
    return run.config["n_train"] / run.history.seconds[1:].median()


def apart(count, args):
    """Images a second of `count` runs of one process each that know nothing of one another,
    together: what the machine allows."""
    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(lambda _: launch(1, args), range(count)))


def processes(args):
    """The column of processes, with as many runs apart beside the most of them, or why there is
    none."""
    calls = {count: (lambda count=count: launch(count, args)) for count in args.processes}
    calls[f"{max(args.processes)} runs apart"] = lambda: apart(max(args.processes), args)
    rates, missing = {name: [] for name in calls}, {}
    if importlib.util.find_spec("accelerate") is None:
        missing["all"] = "accelerate is not installed"
    for i in range(args.rounds if not missing else 0):
        names = list(calls)
        try:
            found = {
                name: calls[name]() for name in names[i % len(names) :] + names[: i % len(names)]
            }
        except RuntimeError as error:
            missing["all"] = str(error)
            break
        for name, rate in found.items():
            rates[name].append(rate)
    measured = [name for name in calls if rates[name]]
    rows = [
        [
            count,
            f"{statistics.median(rates[count]):.0f} ({min(rates[count]):.0f} to "
            f"{max(rates[count]):.0f}, n={len(rates[count])})",
        ]
        for count in measured
    ]
    first = measured[0] if measured else None
    save(
        args.results,
        "growth",
        f"Growth: processes, robust_mini_gray on {args.data}",
        table=[["processes of 1 thread", "images/s"], *rows] if rows else [],
        missing=missing,
        ratios={
            f"processes_{name}_{args.data}" if isinstance(name, int) else f"{name} over 1": [
                b / a for a, b in zip(rates[first], rates[name], strict=True)
            ]
            for name in measured[1:]
        }
        if first == 1
        else {},
    )


def main():
    args = options(
        __doc__, vary=[*VALUES, "processes"], processes=[1, 2], data="mnist5k", epochs=3, one=""
    )
    if args.one:
        return one(json.loads(args.one), args.rounds)
    for what in args.vary:
        processes(args) if what == "processes" else vary(args, what)


if __name__ == "__main__":
    main()
