"""What a crash costs: a small run is broken off, gone on with, and compared with one that wasn't.

python benchmarks/crashes.py --kills 300 --signals 60 --seed 0

It is killed (SIGKILL) before each call that changes the disk, and at random moments; each of these
calls fails once as on a full and on a read-only disk; it gets SIGINT, SIGTERM and SIGHUP at random
moments, once and twice. Then the same call goes on with it. Weights, log, report and card must be
those of the uninterrupted run, and no temporary file may be left; a signal must be obeyed within
five seconds, with the weights and the report of what there is on the disk."""

import argparse
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file

from autolora import AutoLoRaError, finetune
from autolora.core.disk import leftovers
from autolora.data.loading import load_task

SETTINGS = {"epochs": 2, "steps": 1, "batch_size": 32, "progress": False, "resume": True}
CALLS = [(os, name) for name in ("fsync", "replace", "chmod", "unlink", "mkdir")]
CALLS += [(tempfile, "mkstemp")]
IN_TIME = 5.0  # seconds for a run to end when a signal asks for it
TIMES = {"seconds", "estimated_seconds", "angle_seconds", "paused_seconds", "peak_memory"}


def small_task():
    "220 digits to train on, 32 each to validate and to test."
    task = load_task("digits", limit=220)
    few = {kind: split.take(slice(32)) for kind, split in task.splits.items() if kind != "train"}
    return dataclasses.replace(task, **few)


def warm():
    """Import here, once, what every trial would import; without a training, whose threads can't be
    forked."""
    import_module("torch._dynamo")
    from autolora.show.curves import PANELS
    from autolora.show.pages import html_page
    from autolora.testing import sample_history

    figures = [plot(sample_history()) for plot in PANELS.values()]
    html_page("warm", {"figures": figures})
    return small_task()


def arm(at, end, told=None):
    "Let the `at`-th of `CALLS` (from 0) `end` the process, or fail; their names go to `told`."
    counted = []

    def counting(name, call):
        def counted_call(*args, **kwargs):
            counted.append(name)
            if told:
                told.write_text("\n".join(counted))
            if len(counted) == (at or 0) + 1 and at is not None:
                end()
            return call(*args, **kwargs)

        return counted_call

    for module, name in CALLS:
        setattr(module, name, counting(name, getattr(module, name)))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def full():
    raise OSError(28, "No space left on device")


def read_only():
    raise OSError(30, "Read-only file system")


def begin(task, out, at=None, end=None, told=None, **settings):
    "A process of its own that runs, or goes on with, the run in `out`; its number."
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        said = open(f"{out}.said", "a")
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        if told or at is not None:
            arm(at, end, told)
        finetune("robust_mini_gray", task, out=out, **SETTINGS | settings)
        status = 0
    except AutoLoRaError as error:
        print(error, flush=True)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid, seconds=120):
    "The exit status of a process of ours, which gets so long; negative: the signal that ended it."
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "late"


# --- comparing -----------------------------------------------------------------------------------


def timeless(value):
    "A JSON value without what a clock says."
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def log_of(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    apart = ("stopped", "failed", "changed")  # that it was broken off may be told
    return [timeless(e) for e in events if e["event"] not in apart]


def card_of(folder):
    "The card without times, memory and the folder's name."
    text = (folder / "card.md").read_text().replace(folder.name, "RUN")
    return re.sub(r"[\d.]+ (GB|h|min|s)\b", "T", text)


def differences(whole, broken):
    "In what the run in `broken` isn't that in `whole`, as words."
    found = []
    for name in ("model.safetensors", "branch.safetensors"):
        a, b = (load_file(folder / name) for folder in (whole, broken))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            found.append(name)
    if log_of(whole) != log_of(broken):
        found.append("log")
    report = lambda folder: timeless(json.loads((folder / "report.json").read_text()))
    if report(whole) != report(broken):
        found.append("report")
    if not (broken / "report.html").is_file() or card_of(whole) != card_of(broken):
        found.append("pages")
    if leftovers(broken) or (broken / ".lock").exists():
        found.append("temporary files")
    return found


def gone_on(task, whole, broken, **settings):
    "Go on with a broken run; what is wrong with it then, as words."
    status = ended(begin(task, broken, **settings))
    if status != 0:
        return [f"it can't be gone on with ({status}): {said(broken)}"]
    return differences(whole, broken)


def said(folder):
    return Path(f"{folder}.said").read_text()[-600:]


# --- the table -----------------------------------------------------------------------------------


class Crashes:
    "Trials in `folder`, counted by kind; `faults`: what went wrong, in words."

    def __init__(self, folder, seed=0, **settings):
        self.folder = Path(folder)
        self.rng = random.Random(seed)
        self.settings = settings
        self.task = warm()
        self.counts = defaultdict(Counter)
        self.faults = []
        self.whole = self.folder / "whole"
        told = self.folder / "calls"
        start = time.monotonic()
        assert ended(self.begin(self.whole, told=told)) == 0, said(self.whole)
        self.seconds = time.monotonic() - start
        self.calls = told.read_text().splitlines()

    def begin(self, out, *how, **more):
        return begin(self.task, out, *how, **more, **self.settings)

    def gone_on(self, broken):
        return gone_on(self.task, self.whole, broken, **self.settings)

    def note(self, kind, broken, wrong):
        self.counts[kind]["trials"] += 1
        self.counts[kind]["equal"] += not wrong
        if wrong:
            self.faults.append(f"{kind}: {', '.join(wrong)}")
        shutil.rmtree(broken, ignore_errors=True)

    def at(self, number, end):
        "One trial: the call of that number ends the process, or fails."
        broken = self.folder / "broken"
        Path(f"{broken}.said").unlink(missing_ok=True)
        status = ended(self.begin(broken, number, end))
        wanted = (-signal.SIGKILL,) if end is kill else (0, 2)
        wrong = [] if status in wanted else [f"it ended with {status}: {said(broken)}"]
        wrong += self.gone_on(broken)
        kind = f"{end.__name__} at {self.calls[number]}"
        self.note(kind, broken, [f"call {number}: {words}" for words in wrong])

    def killed(self):
        "One trial: a kill at a random moment."
        broken = self.folder / "broken"
        pid = self.begin(broken)
        time.sleep(self.rng.uniform(0, self.seconds))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        self.note("kill at a random moment", broken, self.gone_on(broken))

    def signalled(self, number, times):
        "One trial: a signal at a random moment, perhaps a second one soon after it."
        broken = self.folder / "broken"
        pid = self.begin(broken)
        moment = self.rng.uniform(0.3, self.seconds)
        time.sleep(moment)
        os.kill(pid, number)
        start = time.monotonic()
        if times == 2:
            time.sleep(self.rng.uniform(0, 0.5))
            os.kill(pid, number)  # not waited for yet, so its number is still its
        status = ended(pid, 2 * IN_TIME)
        wrong = []
        if time.monotonic() - start > IN_TIME:
            wrong.append(f"it took {time.monotonic() - start:.1f} s to end")
        if (broken / "events.jsonl").exists() and status != 0:
            epochs = any('"event": "epoch"' in e for e in (broken / "events.jsonl").open())
            needed = ["report.html"] + ["model.safetensors"] * epochs
            wrong += [f"no {name}" for name in needed if not (broken / name).is_file()]
        wrong += self.gone_on(broken)
        kind = f"{signal.Signals(number).name}{', twice' * (times == 2)}"
        self.note(kind, broken, [f"after {moment:.2f} s ({status}): {words}" for words in wrong])


def table(counts):
    "The counts as Markdown."
    rows = [[kind, str(c["trials"]), str(c["equal"])] for kind, c in sorted(counts.items())]
    total = sum(counts.values(), Counter())
    rows.append(["all", str(total["trials"]), str(total["equal"])])
    header = ["broken off by", "trials", "equal to the uninterrupted run"]
    return "\n".join("| " + " | ".join(r) + " |" for r in [header, ["---"] * 3, *rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--signals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        crashes = Crashes(folder, args.seed)
        points = [(i, end) for end in (kill, full, read_only) for i in range(len(crashes.calls))]
        crashes.rng.shuffle(points)
        for number, end in points[: args.kills]:
            crashes.at(number, end)
        for _ in range(args.kills - len(points)):
            crashes.killed()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for i in range(args.signals):
            crashes.signalled(numbers[i % 3], 1 + i // 3 % 2)
    print(table(crashes.counts))
    print(f"\nseed {args.seed}, {len(crashes.calls)} calls that change the disk in a run", end=" ")
    print(f"of {crashes.seconds:.1f} s")
    for fault in crashes.faults[:30]:
        print(f"\n{fault}")
    return int(bool(crashes.faults))


if __name__ == "__main__":
    sys.exit(main())
