"""Training side by side: our AutoLoRa step and epoch, the published ones written plainly, TRADES in
the same loop, ART's trainer.

python benchmarks/steps.py all parts (--parts step epoch trainers memory takes some of them) python
benchmarks/steps.py --device cuda --parts step memory --nets resnet18 resnet50

Before a step is timed, both are shown to be the same step: equal loss terms and gradients on the
same adversarial images. Epochs: mnist5k, and photographs in CIFAR-10's proportions (47,500 / 2,500
/ 10,000) at --share of its size."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace

import torch
from _harness import HERE, forget_peak, memory, options, peer, ratios, save, turns
from _material import learner, photos, probed, small_stem_resnet
from _published import Published, disagreement, same_factors
from torch import nn

from autolora.core.threat import linf
from autolora.data.images import Split
from autolora.data.loading import load_task
from autolora.methods.registry import make_method
from autolora.models.backbones import load_backbone
from autolora.train.learner import train_step

EPS = 8 / 255
SIZE = {"resnet50": 224}  # of the images; 32 for the others
BATCH = {
    "cpu": {"resnet18": 64, "resnet50": 4, "robust_mini_rgb": 128},
    "cuda": {"resnet18": 256, "resnet50": 64, "robust_mini_rgb": 128},
}


def model_and_batch(net, batch, size, device):
    "The net `net` (a ResNet of torchvision, or one of our backbones) and a batch of photographs."
    x, y = photos(batch, size)
    model = (
        small_stem_resnet(net)
        if size <= 64 and net.startswith("resnet")
        else load_backbone(net, 10, 3, None if net.startswith("resnet") else "pretrained")
    )
    return model.to(device), x.float().div(255).to(device), y.to(device)


def case(args, what, net):
    """`(size, batch, key)` of a measurement: as the targets have it, unless the command line says
    otherwise, which changes the key."""
    size, batch = args.size or SIZE.get(net, 32), args.batch or BATCH[args.device][net]
    key = f"{what}_{net}" + "_cuda" * (args.device == "cuda")
    return (
        size,
        batch,
        key if not (args.size or args.batch) else f"{key}, {size}x{size}, batch {batch}",
    )


class Ours:
    "One step of ours on a fixed batch, laid out as `finetune` lays it out."

    def __init__(self, model, x, y, name="autolora_paper", recompute=False, **settings):
        own = copy.deepcopy(model).to(memory_format=torch.channels_last)
        self.method = make_method(name, own, linf(EPS), **settings)
        self.method.gradient_checkpointing = recompute
        self.optimizer, self.x, self.y = (
            self.method.optimizer(1e-3),
            x.contiguous(memory_format=torch.channels_last),
            y,
        )

    def __call__(self):
        self.method.train()
        train_step(self.method, self.optimizer, self.x, self.y)


class Plain:
    "One published step on a fixed batch."

    def __init__(self, model, x, y):
        self.published, self.x, self.y = Published(model, linf(EPS), lr=1e-3), x, y

    def __call__(self):
        self.published.step(self.x, self.y)


def check_equal(model, x, y):
    """The relative differences of loss terms and gradients in float64, on a few images; ends the
    benchmark where the two are not the same step."""
    x, y, model = x[:8].double().cpu(), y[:8].cpu(), copy.deepcopy(model).double().cpu()
    method = make_method("autolora_paper", model, linf(EPS))
    method.lam1, method.lam2 = 0.4, 3.6
    for B in method.branch.B.values():
        nn.init.normal_(B, std=0.01)
    published = Published(model, method.threat)
    published.model.double()
    published.lam1, published.lam2 = method.lam1, method.lam2
    same_factors(method.branch, published)
    terms, grads = disagreement(method, published, x, published.attack(x, y), y)
    if not max(terms, grads) < 1e-8:
        sys.exit(
            f"The published step is not ours: loss terms differ by {terms:.1e}, gradients by "
            f"{grads:.1e}."
        )
    return (
        f"On the same adversarial images, in float64, loss terms differ by {terms:.0e} and "
        f"gradients by {grads:.0e} (relative)."
    )


def step(args, net):
    "Seconds of a step, ours and the published."
    size, batch, key = case(args, "step", net)
    model, x, y = model_and_batch(net, batch, size, args.device)
    note = check_equal(model, x, y)
    times = turns(
        {"autolora": Ours(model, x, y), "published, plainly": Plain(model, x, y)}, args.rounds
    )
    save(
        args.results,
        "steps",
        f"One AutoLoRa step: {net}, {size}x{size}, batch {batch}, {args.device}",
        times,
        batch,
        {key: ratios(times, "autolora", "published, plainly")},
        notes=[note],
    )


def peak_memory(args, net):
    "Peak memory that a step adds, each in a fresh process: after building everything, two steps."
    (size, batch, key), found = (
        case(args, "memory", net),
        {"ours": [], "ours, recomputed": [], "plain": []},
    )
    for _ in range(args.rounds if args.device == "cpu" else 1):
        for who in found:
            command = [
                sys.executable,
                HERE / "steps.py",
                "--one",
                who,
                "--nets",
                net,
                "--batch",
                str(batch),
                "--size",
                str(size),
                "--device",
                args.device,
            ]
            found[who].append(
                json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout
                )
            )
    rows = [["", "MB added by a step, median"]] + [
        [who, f"{sorted(values)[len(values) // 2] / 1e6:.0f}"] for who, values in found.items()
    ]
    save(
        args.results,
        "steps",
        f"Peak memory of a step: {net}, {size}x{size}, batch {batch}, {args.device}",
        table=rows,
        ratios={
            key: [mine / theirs for mine, theirs in zip(found["ours"], found["plain"], strict=True)]
        },
    )


def one(args):
    "The child of `peak_memory`: prints the bytes that two steps add to what was held before them."
    model, x, y = model_and_batch(args.nets[0], args.batch, args.size, args.device)
    call = (
        Plain(model, x, y)
        if args.one == "plain"
        else Ours(model, x, y, recompute="recomputed" in args.one)
    )
    del model
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = memory("VmRSS")
        forget_peak()
    for _ in range(2):
        call()
    print(
        (torch.cuda.max_memory_allocated() if args.device == "cuda" else memory("VmHWM")) - before
    )


def tasks(share):
    "name -> (task, backbone): mnist5k, and photographs in CIFAR-10's proportions."
    x, y = photos(math.ceil(60_000 * share))
    n = len(x)
    cut = [round(n * part) for part in (47.5 / 60, 50 / 60)]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    train, val, test = (Split(x[idx], y[idx]) for idx in order.tensor_split(cut))
    cifar = replace(load_task((x, y)), train=train, val=val, test=test, name="photographs")
    return {
        "cifar": (cifar, "robust_mini_rgb"),
        "mnist5k": (load_task("mnist5k"), "robust_mini_gray"),
    }


class PlainEpoch:
    "One epoch of the published protocol."

    def __init__(self, model, task):
        self.published, self.task, self.order = (
            Published(model, task.threat),
            task,
            torch.Generator().manual_seed(0),
        )

    def __call__(self):
        self.published.epoch(self.task, self.order, next(self.published.model.parameters()).device)


def our_epoch(name, model, task):
    "One epoch of ours: training, loss weights, validation, schedule, log and checkpoint."
    return learner(
        make_method(name, copy.deepcopy(model).to(memory_format=torch.channels_last), task.threat),
        task,
    ).fit_epoch


def epoch(args):
    "Seconds of a whole epoch: ours, the published protocol, TRADES in our loop."
    for key, (task, backbone) in tasks(args.share).items():
        model = probed(backbone, task.train.images(), task.train.y).to(args.device)
        times = turns(
            {
                "autolora": our_epoch("autolora_paper", model, task),
                "trades, same loop": our_epoch("trades", model, task),
                "published, plainly": PlainEpoch(model, task),
            },
            args.rounds,
        )
        sizes = f"{len(task.train):,} + {len(task.val):,} + {len(task.test):,} images"
        save(
            args.results,
            "steps",
            f"A whole epoch: {backbone} on {task.name}, {sizes}, {args.device}",
            times,
            len(task.train) // 128 * 128,
            {
                f"epoch_{key}": ratios(times, "autolora", "published, plainly"),
                f"trades_{key}": [1 / r for r in ratios(times, "autolora", "trades, same loop")],
            },
            notes=[
                "Ours: training, loss weights, validation attack, schedule, log, checkpoint. "
                "Published: training, a full pass for lambda, PGD-10 on validation and on test, "
                "schedule, checkpoints; images from our loader."
            ],
        )


def art_epoch(model, task):
    "One epoch of ART's adversarial trainer (Madry), PGD-10, or the reason there is none."
    trainers, reason = peer("art.defences.trainer")
    estimators, reason = peer("art.estimators.classification") if not reason else (None, reason)
    if reason:
        return None, reason
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    net = estimators.PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        task.shape,
        task.num_classes,
        optimizer,
        clip_values=(0, 1),
        device_type="gpu" if next(model.parameters()).is_cuda else "cpu",
    )
    eps = task.threat.eps
    trainer = trainers.AdversarialTrainerMadryPGD(
        net, nb_epochs=1, batch_size=128, eps=eps, eps_step=eps / 4, max_iter=10, num_random_init=1
    )
    whole = len(task.train) // 128 * 128
    x, y = (
        task.train.images(torch.arange(whole)).numpy(),
        torch.nn.functional.one_hot(task.train.y[:whole], task.num_classes).numpy(),
    )
    return lambda: trainer.fit(x, y), None


def trainers(args):
    """Seconds of an epoch of adversarial training: ours (with its validation) and the peers'
    (without)."""
    task, backbone = tasks(args.share)["cifar"]
    model = probed(backbone, task.train.images(), task.train.y).to(args.device)
    contestants, missing = (
        {"autolora, at": our_epoch("at", model, task)},
        {"MAIR": "it is not on the package index, only in a repository"},
    )
    contestants["ART, AdversarialTrainerMadryPGD"], missing["ART"] = art_epoch(model, task)
    if missing["ART"] is None:
        del missing["ART"]
    else:
        del contestants["ART, AdversarialTrainerMadryPGD"]
    missing["robustness"] = (
        "its attack and its trainer call .cuda() unconditionally and it needs thirteen packages "
        "more"
    )
    times = turns(contestants, args.rounds)
    save(
        args.results,
        "steps",
        f"An epoch of adversarial training: {backbone}, {len(task.train):,} images, {args.device}",
        times,
        len(task.train) // 128 * 128,
        {
            "AT epoch of ART over ours": ratios(
                times, "autolora, at", "ART, AdversarialTrainerMadryPGD"
            )
        }
        if len(times) > 1
        else {},
        missing=missing,
        notes=[
            "The same PGD-10, batch, optimiser and images. Ours also augments, and attacks "
            f"{len(task.val):,} validation images; ART's does neither."
        ],
    )


def main():
    args = options(
        __doc__,
        parts=["step", "epoch", "trainers", "memory"],
        nets=["resnet18", "robust_mini_rgb"],
        batch=0,
        size=0,
        share=0.05,
        device="cpu",
        one="",
    )
    if args.one:
        return one(args)
    for part in args.parts:
        if part in ("step", "memory"):
            for net in args.nets:
                {"step": step, "memory": peak_memory}[part](args, net)
        else:
            {"epoch": epoch, "trainers": trainers}[part](args)


if __name__ == "__main__":
    main()
