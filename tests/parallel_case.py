"""What tests/test_parallel.py starts in one process and in several: a training without any random
draw but the common order, in double precision.

python parallel_case.py METHOD FOLDER [FAULT] FAULT, in the second process: hang, or in the second
epoch nan or memory; or resume: none, go on"""

import dataclasses
import sys
import time
from pathlib import Path

import torch
from torch import nn

from autolora.core.distributed import convert_sync_batchnorm
from autolora.core.machine import process_index, world_size
from autolora.core.threat import l2
from autolora.data.loading import load_task
from autolora.methods.registry import METHODS
from autolora.models.backbones import load_backbone
from autolora.robust.attacks import pgd
from autolora.robust.evaluation import evaluate
from autolora.runs.finetuning import joined_run
from autolora.train.learner import Learner
from autolora.train.schedule import StepDecay


def spoil(method, fault, first):
    "Have `method` meet `fault` after its `first` steps, in the second epoch."
    losses, steps = method.losses, []

    def spoiled(x, y):
        steps.append(len(x))
        if len(steps) <= first:
            return losses(x, y)
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return {name: term * float("nan") for name, term in losses(x, y).items()}

    method.losses = spoiled


class Double(nn.Module):
    def forward(self, x):
        return x.double()


def case(name, folder):
    torch.manual_seed(0)
    task = dataclasses.replace(load_task("digits", limit=220), augment=None)
    model = convert_sync_batchnorm(
        nn.Sequential(Double(), load_backbone("robust_mini_gray", 10).double())
    )
    method = METHODS[name](model, l2(0.5))
    method.attack = lambda x, y: pgd(model, x, y, method.threat, steps=3, random_start=False)
    fault = "".join(sys.argv[3:])
    with joined_run(folder, {"seed": 0}, fault == "resume") as run:
        learner = Learner(method, task, run, StepDecay(0.02, 2), epochs=2, batch_size=25)
        if fault == "hang" and process_index() == 1:
            time.sleep(600)
        if fault in ("nan", "memory") and process_index() == 1:
            spoil(method, fault, learner.steps)
        learner.fit(fault == "resume")
        attacks = ("none", "pgd-10", "pgd-3x3-dlr", "gaussian_noise:5")
        report = evaluate(model, task.test, "l2:0.5", attacks, n=101)
        run.write_json(
            "counts.json",
            {
                "rows": [[row.attack, row.correct, row.n, row.hits] for row in report.rows],
                "history": run.history[["sa", "ra", "loss", "train_sa"]].to_dict("list"),
                "world": world_size(),
            },
        )


if __name__ == "__main__":
    case(sys.argv[1], Path(sys.argv[2]))
