"""What a training survives by itself: numbers that run away, memory that runs out, torch's contexts
around it, a clock that goes back, each write that fails."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import crashes
import numpy as np
import pandas as pd
import pytest
import soak
import torch
from safetensors.torch import load_file
from torch import nn

from autolora import AutoLoRaError, Run, evaluate, finetune
from autolora.core.contexts import outside_contexts
from autolora.core.disk import leftovers
from autolora.core.machine import memory_told
from autolora.core.threat import linf
from autolora.data.loading import load_task
from autolora.models.backbones import load_backbone
from autolora.models.kept import save_weights
from autolora.robust.angles import gradient_similarity
from autolora.robust.attacks import pgd
from autolora.runs.preparation import estimate
from autolora.runs.protocol import design
from autolora.runs.study import create_study
from autolora.train.callbacks import Callback
from autolora.train.state import TRIES

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SHORT = dict(limit=220, steps=1, progress=False, angles=False, test=False)


def trained(out, method="at", **given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return finetune("robust_mini_gray", "digits", method, out=out, **SHORT | given)


def diverged(run):
    return [event for event in run.events if event["event"] == "diverged"]


def equal(a, b):
    a, b = (load_file(run.path / "model.safetensors") for run in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- a loss that is no number


class Deep(nn.Module):
    "A net of cubes, whose loss runs away at a rate that is too large."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.Flatten(), nn.Linear(8 * 49, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x) ** 3)


@pytest.mark.parametrize("method", ["at", "autolora"])
def test_a_training_that_diverges_goes_on_at_half_the_rate(tmp_path, method):
    "A real divergence: a rate that is too large for the net, and not for a 32nd of it."
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="at half the rate"):
        run = finetune(Deep(), "digits", method, out=tmp_path, epochs=3, lr=DIVERGES, **SHORT)
    told = diverged(run)
    assert 1 <= len(told) <= TRIES
    assert [event["number"] for event in told] == list(range(1, len(told) + 1))
    cuts = pd.Series([sum(e["epoch"] <= epoch for e in told) for epoch in run.history.epoch])
    halved = run.history.reason.notna().cumsum().shift(fill_value=0)  # by the schedule, before
    for n, lr in (run.history.lr * 2.0**halved).groupby(cuts):
        assert lr.max() == pytest.approx(DIVERGES / 2**n, rel=1e-6)
    assert all(v.isfinite().all() for v in run.model.state_dict().values())
    assert run.last("end")["attack_steps"] > int(run.history.attack_steps.sum())
    page = (run.path / "report.html") if (run.path / "report.html").exists() else None
    assert page is None or "at half the rate" in page.read_text()


DIVERGES = 3.0


def test_it_goes_back_to_the_last_epoch_to_the_bit(tmp_path):
    "Spoiled once, a run is one whose rate was halved there; and broken off then, it is the same."
    whole = trained(tmp_path / "whole", epochs=3, lr=0.02, callbacks=[Spoil("weight")])
    assert [event["epoch"] for event in diverged(whole)] == [2]
    assert whole.history.lr.tolist() == [0.02, 0.01, 0.0001]
    broken = [Spoil("weight"), Broken()]
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", epochs=3, lr=0.02, callbacks=broken)
    again = trained(tmp_path / "broken", epochs=3, lr=0.02, resume=True)
    assert equal(whole, again)
    assert diverged(again)[0]["message"] == diverged(whole)[0]["message"]
    columns = ["epoch", "lr", "loss", "sa", "ra"]
    assert whole.history[columns].equals(again.history[columns])


class Spoil(Callback):
    "In the second epoch, once or `times`, something is no number."

    def __init__(self, what, times=1, epoch=1):
        self.what = what
        self.times = times
        self.epoch = epoch

    def before_step(self, learner):
        if learner.epoch != self.epoch or not self.times or learner.step != self.step(learner):
            return
        self.times -= 1
        model = learner.method.model
        if self.what == "statistics":
            next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_var.fill_(
                torch.inf
            )
        else:
            next(model.parameters()).data.fill_(torch.nan)

    def step(self, learner):
        return learner.steps - 1 if self.what == "statistics" else 1


class Broken(Callback):
    "Ctrl-C in the epoch that is trained again."

    def before_step(self, learner):
        if learner.cuts and learner.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("what", "epoch", "deliver"), [("weight", 0, "best"), ("statistics", 1, "average")]
)
def test_what_is_spoiled_never_reaches_a_file(tmp_path, what, epoch, deliver):
    spoil = Spoil(what, epoch=epoch)
    run = trained(tmp_path, epochs=2, lr=0.02, callbacks=[spoil], deliver=deliver)
    assert [event["epoch"] for event in diverged(run)] == [epoch + 1]
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    for weights in (state["weights"]["model"], Run.open(tmp_path).model.state_dict()):
        assert all(v.isfinite().all() for v in weights.values())


def test_what_diverges_at_every_rate_ends_in_a_sentence_and_keeps_the_best(tmp_path):
    with pytest.raises(
        AutoLoRaError, match="halved 5 times: start again with a smaller lr"
    ) as told:
        trained(tmp_path, epochs=3, lr=0.02, callbacks=[Spoil("weight", times=99)])
    assert "\n" not in str(told.value)
    run = Run.open(tmp_path)
    assert len(run.history) == 1 and len(diverged(run)) == TRIES
    assert run.events[-1]["event"] == "failed" and "smaller lr" in run.events[-1]["message"]
    page = (tmp_path / "report.html").read_text()
    assert "It ended with an error" in page and "at half the rate" in page
    assert all(v.isfinite().all() for v in run.model.state_dict().values())


# --- memory


LOW = """
import resource, sys
import torch
from autolora import finetune
from autolora.train.callbacks import Callback

class Low(Callback):
    "From the second epoch on, hardly any more memory can be had, and a block of some size none."
    def before_epoch(self, learner):
        if learner.epoch == 1:
            pages = int(open("/proc/self/statm").read().split()[0])
            limit = pages * resource.getpagesize() + 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    def before_step(self, learner):
        if learner.epoch == 1:
            torch.empty(2**26)
    def after_fit(self, learner):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

finetune("robust_mini_gray", "digits", "at", out=sys.argv[1], epochs=3, limit=1000, steps=1,
         lr=0.02, progress=False, angles=False, callbacks=[Low()], batch_size=512)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_memory_that_runs_out_is_one_sentence_and_keeps_the_best(tmp_path):
    command = [sys.executable, "-c", LOW, str(tmp_path / "run")]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "OutOfMemory: The memory ran out: choose a smaller batch_size" in last, done.stderr
    run = Run.open(tmp_path / "run")
    assert len(run.history) == 1 and "memory ran out" in run.last("failed")["message"]
    assert run.model is not None


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "[Errno 12] Cannot allocate memory",
        "Unable to allocate 8.00 TiB for an array",
        "could not create a primitive",
    ],
)
def test_every_way_to_say_it_is_understood(words):
    with pytest.raises(AutoLoRaError, match="The memory ran out"), memory_told():
        raise RuntimeError(words)


class Greedy(nn.Module):
    "Asks for more memory than any computer has."

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

    def forward(self, x):
        return self.net(x) + torch.empty(2**52)[0]


def test_memory_is_named_whoever_meets_its_end_first(tmp_path):
    with pytest.raises(AutoLoRaError, match="The memory ran out"):
        finetune(Greedy(), "digits", out=tmp_path / "run", epochs=1, **SHORT)
    assert not (tmp_path / "run").exists()


# --- contexts


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "What finetune and evaluate give outside of all contexts."
    return measured(tmp_path_factory.mktemp("plain"))


def measured(folder):
    run = trained(folder / "run", "autolora", epochs=1, test=True)
    task = load_task("digits", limit=220)
    found = evaluate(run.model, task.test, "linf:0.1", n=60)
    return run, [(row.correct, row.n) for row in found.rows]


@pytest.mark.parametrize("name", ["inference_mode", "autocast"])
def test_finetune_and_evaluate_are_right_in_every_context(name, plain, tmp_path):
    with CONTEXTS[name]():
        run, counts = measured(tmp_path)
        again = Run.open(run.path).model
    assert equal(run, plain[0])
    assert name == "autocast" or counts == plain[1]  # in half precision it is another model
    pgd(again, torch.rand(2, 1, 16, 16), torch.arange(2), linf(0.1))
    hits = [[row["correct"] for row in r.report["evaluations"]] for r in (run, plain[0])]
    assert hits[0] == hits[1]


@pytest.mark.parametrize("name", CONTEXTS)
def test_one_own_module_and_arrays_made_in_a_context(name, tmp_path):
    with CONTEXTS[name]():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10))
        x, y = torch.rand(300, 1, 16, 16), torch.arange(300) % 10
        short = SHORT | {"limit": None, "epochs": 1, "lr": 0.01, "threat": "linf:0.1"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = finetune(net, (x, y), "trades", out=tmp_path / "run", **short)
    assert run.model[0].weight.requires_grad and len(run.history) == 1


def test_a_model_made_in_inference_mode_is_refused_where_gradients_must_pass():
    with torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    for call in (
        lambda: pgd(net, x, y, linf(0.1)),
        lambda: evaluate(net, (x, y), "linf:0.1"),
        lambda: gradient_similarity(net, x, y, linf(0.1)),
    ):
        with pytest.raises(AutoLoRaError, match="make or load it outside"):
            call()
    outside = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    with torch.inference_mode():
        made = load_backbone("robust_mini_gray", 10)
        adv = pgd(outside, x, y, linf(0.1))
        pgd(made, x, y, linf(0.1))
        gradient_similarity(made, x, y, linf(0.1))
    assert torch.equal(adv, pgd(outside, x.clone(), y.clone(), linf(0.1)))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_another_default_type_of_numbers_is_refused_by_name(kind, plain, tmp_path):
    model = load_backbone("robust_mini_gray", 10).eval()
    pair = torch.rand(8, 1, 16, 16), torch.arange(8)
    own = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    torch.set_default_dtype(kind)
    try:
        for call in (
            lambda: trained(tmp_path / "run", "autolora", epochs=1),
            lambda: finetune(own, "digits", out=tmp_path / "run", epochs=1, **SHORT),
            lambda: load_backbone("robust_mini_gray", 10),
            lambda: Run.open(plain[0].path).model,
            lambda: evaluate(model, pair, "linf:0.1"),
        ):
            with pytest.raises(AutoLoRaError, match="set_default_dtype"):
                call()
        assert pgd(model, *pair, linf(0.1)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert not (tmp_path / "run").exists()


def test_another_default_device_is_stepped_out_of(plain, tmp_path):
    torch.set_default_device("meta")
    try:
        run, counts = measured(tmp_path)
    finally:
        torch.set_default_device(None)
    assert equal(run, plain[0]) and counts == plain[1]


def test_under_autocast_the_rounded_model_is_measured():
    net = load_backbone("robust_mini_gray", 10).eval()
    task = load_task("digits")

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = evaluate(Rounded().eval(), task.test, "linf:0.1", n=100)
        with torch.autocast("cpu", torch.bfloat16):
            around = evaluate(net, task.test, "linf:0.1", n=100)
    for a, b in zip(inside.rows, around.rows, strict=True):
        assert abs(a.correct - b.correct) <= 3


@pytest.mark.parametrize("kind", [np.int64])
def test_numbers_of_numpy_are_numbers(kind, tmp_path):
    given = SHORT | {"limit": kind(220), "steps": kind(1), "test": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = [
            finetune(
                "robust_mini_gray", "digits", "at", kind(1), kind(3), out=tmp_path / "a", **given
            )
        ]
        runs.append(finetune("robust_mini_gray", "digits", "at", 1, 3, out=tmp_path / "b", **SHORT))
        resumed = finetune(
            "robust_mini_gray", "digits", "at", 1, 3, out=tmp_path / "a", resume=True,
            **SHORT | {"test": True},
        )  # fmt: skip
    assert equal(*runs) and resumed.report == runs[0].report
    assert type(runs[0].config["seed"]) is int
    config, _ = estimate("robust_mini_gray", "digits", "at", epochs=kind(1), seed=kind(3), **SHORT)
    assert json.loads(json.dumps(config))["seed"] == 3
    seeds = [design("at", "digits", None, s, None, {"epochs": kind(1)})["seeds"] for s in
             (kind(3), np.arange(3), [kind(0), kind(1), 2])]  # fmt: skip
    assert seeds == [[0, 1, 2]] * 3
    study = create_study(tmp_path / "study", design("at", "digits", None, kind(2), None,
                         {"epochs": kind(1), "lr": np.float32(0.5)}))  # fmt: skip
    assert [cell["seed"] for cell in study.cells] == [0, 1]
    task = load_task("digits", limit=kind(220), seed=kind(3))
    assert torch.equal(task.val.y, load_task("digits", limit=220, seed=3).val.y)
    net = load_backbone("robust_mini_gray", kind(10)).eval()
    assert evaluate(net, task.test, "linf:0.1", n=kind(20)).rows[0].n == 20


class Versioned(nn.Module):
    "A net with a state that is no tensor."

    def __init__(self, state=None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 49, 10)
        self.state = state

    def forward(self, x):
        return self.head(self.body(x))

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@pytest.mark.parametrize(
    ("method", "deliver"), [("autolora", "average"), ("adr", "best"), ("ramp", "last")]
)
def test_a_state_that_is_no_tensor_comes_through_a_run(method, deliver, tmp_path):
    state = {"calls": 3, "names": ["a", "b"], "none": None}
    call = dict(epochs=2, lr=0.02, deliver=deliver, out=tmp_path, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyboardInterrupt):
            finetune(Versioned(state), "digits", method, callbacks=[Stop()], **call)
        run = finetune(Versioned(state), "digits", method, resume=True, **call)
    assert run.model.get_extra_state() == state
    assert Run.open(tmp_path, Versioned()).model.get_extra_state() == state


class Stop(Callback):
    def before_step(self, learner):
        if learner.epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "state", [{1: "a"}, (1, 2), {"a": {1, 2}}, b"bytes", np.arange(3)], ids=str
)
def test_a_state_that_files_cant_keep_is_refused(state, tmp_path):
    with pytest.raises(AutoLoRaError, match="can't be saved and read again"):
        finetune(Versioned(state), "digits", "at", out=tmp_path / "run", epochs=1, **SHORT)


# --- clocks


def test_a_clock_that_goes_back_changes_no_duration(tmp_path, monkeypatch):
    import time

    moments = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments) * 10**9)
    run = trained(tmp_path, epochs=2, lr=0.02)
    assert (run.history.seconds > 0).all() and (run.history.seconds < 60).all()
    assert run.last("start")["estimated_seconds"] > 0 and run.last("end")["seconds"] > 0
    for path in tmp_path.iterdir():  # as if they had been written in another year
        os.utime(path, (10**9, 10**9))
    again = trained(tmp_path, epochs=2, lr=0.02, resume=True)
    assert again.history.equals(run.history)


# --- each write


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


WRITES = {
    "a study": lambda folder: create_study(
        folder / "study", design("at", "digits", None, 1, None, {"epochs": 1})
    ).write(),
    "weights": lambda folder: save_weights(folder / "model.safetensors", {"w": torch.ones(9)}, "x"),
}


@pytest.mark.parametrize("name", WRITES)
def test_each_write_of_these_may_fail(name, tmp_path, monkeypatch):
    "The k-th call that changes the disk fails, for every k."
    first = tmp_path / "first"
    first.mkdir()
    with monkeypatch.context() as patched:
        calls = crashes.watched(patched.setattr, lambda *_: None)
        WRITES[name](first)
    whole = files_of(first)
    for k, call in enumerate(calls):
        folder = tmp_path / str(k)
        folder.mkdir()

        def before(number, name, args, k=k):
            if number == k:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            crashes.watched(patched.setattr, before)
            try:
                WRITES[name](folder)
            except AutoLoRaError as error:
                assert "can't be written" in str(error) and "\n" not in str(error)
        assert not [path for path in folder.rglob("*") if leftovers(path.parent)], call
        for file, content in files_of(folder).items():
            assert not file.endswith((".json", ".csv")) or whole[file] == content
        WRITES[name](folder)
        assert files_of(folder).keys() == whole.keys()
    assert len(calls) > 3


def test_outside_contexts_is_a_decorator():
    with torch.no_grad():
        assert outside_contexts()(torch.is_grad_enabled)() and not torch.is_grad_enabled()


def test_a_stop_leaves_no_reader_and_no_batches_behind(tmp_path):
    "A short form of benchmarks/soak.py."
    data = soak.photographs(tmp_path / "photographs", 32, 64)
    site = soak.Trained(tmp_path / "runs", data, 16)
    found = soak.soak(site, lambda found: len(found) == 6)
    first, last = found[1], found[-1]
    assert last["threads"] <= first["threads"] and last["open files"] <= first["open files"]
    assert last["memory (MB)"] < first["memory (MB)"] + 40
