"""What a crash costs: a small run is broken off, gone on with, and compared with one that wasn't.

python benchmarks/crashes.py --kills 300 --signals 60 --log trials.jsonl

It is killed (SIGKILL) before each call that changes the disk, and at random moments; from each of
these calls on the disk is full (no file may grow, by a limit of the system), or read-only; each
file that is written is torn, as a disk does that lied about having it; it gets SIGINT, SIGTERM and
SIGHUP at random moments, once and twice. Then the same call goes on with it. Weights, log, report
and card must be those of the uninterrupted run, and no temporary file may be left; a signal must be
obeyed within five seconds (of a core of its own), with the weights and the report of what there is
on the disk; what a torn file doesn't allow any more must be said in a sentence, and be possible
after `autolora check`.

Trials that stand in the --log are not made again, so that a campaign can be made in pieces, of
--minutes each."""

import argparse
import dataclasses
import json
import os
import random
import re
import resource
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
from _faults import clock, markdown, write_section
from safetensors.torch import load_file

from autolora import AutoLoRaError, finetune
from autolora.core.disk import leftovers
from autolora.data.loading import load_task
from autolora.runs.checking import check

SETTINGS = {"epochs": 2, "steps": 1, "batch_size": 32, "progress": False, "resume": True}
CALLS = [(os, name) for name in ("fsync", "replace", "chmod", "unlink", "mkdir")]
CALLS += [(tempfile, "mkstemp")]
IN_TIME = 5.0  # seconds for a run to end when a signal asks for it
TIMES = {"seconds", "estimated_seconds", "angle_seconds", "paused_seconds", "peak_memory"}
TIMES |= {"training_seconds", "evaluation_seconds", "kwh"}


def small_task():
    "220 digits to train on, 32 each to validate and to test."
    task = load_task("digits", limit=220)
    few = {kind: split.take(slice(32)) for kind, split in task.splits.items() if kind != "train"}
    return dataclasses.replace(task, **few)


def hearing():
    "Have signals obeyed, whatever who started this (`nohup`, a shell's `&`) had ignored."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


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


_TEMPORARY = re.compile(r"\.(.+?)\.[a-z0-9_]{8}(\.tmp)?")


def target(name, args):
    "The file that a call of one of `CALLS` is about, by the name that it will have."
    if name == "fsync":
        where = os.readlink(f"/proc/self/fd/{args[0]}")
    elif name == "mkstemp":
        where = args[1].strip(".")
    else:
        where = args[1] if name == "replace" else args[0]
    path = Path(where)
    found = _TEMPORARY.fullmatch(path.name)
    return "its folder" if path.is_dir() or name == "mkdir" else found[1] if found else path.name


def watched(put, before):
    """Have `before(number, name, args)` called ahead of each of `CALLS`, which are replaced by
    `put(module, name, call)`; the list that will hold what was called, and about which file."""
    seen = []

    def counting(name, call):
        def counted_call(*args, **kwargs):
            seen.append(f"{name} {target(name, args)}")
            before(len(seen) - 1, name, args)
            return call(*args, **kwargs)

        return counted_call

    for module, name in CALLS:
        put(module, name, counting(name, getattr(module, name)))
    return seen


def arm(at, end, told=None):
    "Let the `at`-th of `CALLS` (from 0), and those after it, meet `end`; their names go to `told`."

    def before(number, name, args):
        if told:
            told.write_text("\n".join(seen))
        if at is not None and number >= at:
            end(name, args)

    seen = watched(setattr, before)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def full(*_):
    "No file can grow any more, whoever writes it."
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


def read_only(*_):
    raise OSError(30, "Read-only file system")


_REPLACE = os.replace


def torn(name, args):
    "The file gets its name, but only half of what was in it is on the disk; then the end."
    path = args[0] if name == "replace" else os.readlink(f"/proc/self/fd/{args[0]}")
    size = os.path.getsize(path)
    if name == "replace":
        os.truncate(path, size // 2)
        _REPLACE(*args)
    else:
        last = Path(path).read_bytes().splitlines()[-1]
        os.truncate(path, size - len(last) // 2 - 1)
    kill()


def is_written(call):
    "Whether a call, as `watched` names it, is the one by which a file's content comes to stand."
    name, _, file = call.partition(" ")
    return name == "replace" or call == "fsync events.jsonl"


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
        hearing()
        if told or at is not None:
            arm(at, end, told)
        finetune("robust_mini_gray", task, out=out, **SETTINGS | settings)
        status = 0
    except AutoLoRaError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(error, flush=True)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        import traceback

        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid, seconds=900):
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


def _ends_after(pid, start):
    "After how many seconds of its own `clock` the process ends; it gets twice those it should."
    asked = os.WEXITED | os.WNOHANG | os.WNOWAIT  # it stays, so that its clock can be read
    while not os.waitid(os.P_PID, pid, asked) and clock(pid) - start < 2 * IN_TIME:
        time.sleep(0.01)
    return clock(pid) - start


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
    "The card without times, memory, energy and the folder's name."
    text = (folder / "card.md").read_text().replace(folder.name, "RUN")
    return re.sub(r"[\d.]+(e-\d+)? (GB|h|min|s|kWh)\b", "T", text)


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
    Path(f"{broken}.said").unlink(missing_ok=True)
    status = ended(begin(task, broken, **settings))
    if status != 0:
        return [f"it can't be gone on with ({status}): {said(broken)}"]
    return differences(whole, broken)


def said(folder):
    return Path(f"{folder}.said").read_text()[-600:]


# --- the trials ----------------------------------------------------------------------------------


class Crashes:
    """Trials in `folder`. `found`: a dict for each, of its `kind`, the `file` it was about and what
    was `wrong`, in words."""

    def __init__(self, folder, seed=0, **settings):
        self.folder = Path(folder)
        self.seed = seed
        self.settings = settings
        self.task = warm()
        self.found = []
        self.whole = self.folder / "whole"
        told = self.folder / "calls"
        start = time.monotonic()
        assert ended(self.begin(self.whole, told=told)) == 0, said(self.whole)
        self.seconds = time.monotonic() - start
        self.calls = told.read_text().splitlines()
        self.broken = self.folder / "broken"

    @property
    def faults(self):
        return [f"{t['kind']}, {t['file']}: {words}" for t in self.found for words in t["wrong"]]

    def begin(self, out, *how, **more):
        return begin(self.task, out, *how, **more, **self.settings)

    def gone_on(self):
        return gone_on(self.task, self.whole, self.broken, **self.settings)

    def note(self, kind, file, wrong):
        self.found.append({"kind": kind, "file": file, "wrong": wrong})
        shutil.rmtree(self.broken, ignore_errors=True)
        Path(f"{self.broken}.said").unlink(missing_ok=True)
        return self.found[-1]

    def at(self, end, number):
        "One trial: from the call of that number on, `end`."
        status = ended(self.begin(self.broken, number, end))
        wanted = (-signal.SIGKILL,) if end in (kill, torn) else (0, 2)
        wrong = [] if status in wanted else [f"it ended with {status}: {said(self.broken)}"]
        wrong += self._mended() if end is torn else self.gone_on()
        call = self.calls[number]
        file = call.partition(" ")[2]
        return self.note(end.__name__, file, [f"{call} ({number}): {words}" for words in wrong])

    def _mended(self):
        "As `gone_on`; where that is refused, after a check, and the log may tell an epoch twice."
        wrong = self.gone_on()
        if not wrong or "can't be gone on with (2)" not in wrong[0]:
            return wrong
        if "autolora check" not in wrong[0]:
            return ["no word of a check", *wrong]
        try:
            check(self.broken)
        except AutoLoRaError as error:
            return [f"it can't be checked: {error}"]
        return [words for words in self.gone_on() if words != "log"]

    def killed(self, number):
        "One trial: a kill at a random moment."
        pid = self.begin(self.broken)
        time.sleep(random.Random(f"{self.seed} kill {number}").uniform(0, self.seconds))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        return self.note("kill at a random moment", "", self.gone_on())

    def signalled(self, which, times, number):
        "One trial: a signal at a random moment, perhaps a second one soon after it."
        rng = random.Random(f"{self.seed} {which} {times} {number}")
        pid = self.begin(self.broken)
        moment = rng.uniform(0.3, self.seconds)
        time.sleep(moment)
        os.kill(pid, which)
        start = clock(pid)
        if times == 2:
            time.sleep(rng.uniform(0, 0.5))
            os.kill(pid, which)  # not waited for yet, so its number is still its
        took = _ends_after(pid, start)
        status = ended(pid, 1)
        wrong = [f"it took {took:.1f} s to end"] if took > IN_TIME else []
        log = self.broken / "events.jsonl"
        if log.exists() and status != 0:
            epochs = any('"event": "epoch"' in e for e in log.open())
            needed = ["report.html"] + ["model.safetensors"] * epochs
            wrong += [f"no {name}" for name in needed if not (self.broken / name).is_file()]
        wrong += self.gone_on()
        kind = f"{signal.Signals(which).name}{', twice' * (times == 2)}"
        return self.note(kind, "", [f"after {moment:.2f} s ({status}): {words}" for words in wrong])

    def plan(self, kills, signals):
        "All trials, in a random order: how each is called, by a name."
        every = range(len(self.calls))
        written = [i for i in every if is_written(self.calls[i])]
        points = [(end, i) for end in (kill, full, read_only) for i in every]
        points += [(torn, i) for i in written]
        made = {f"{end.__name__} {i}": (self.at, end, i) for end, i in points}
        made |= {f"moment {i}": (self.killed, i) for i in range(kills - len(every))}
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        which = [(numbers[i % 3], 1 + i // 3 % 2, i) for i in range(signals)]
        made |= {f"signal {trial[-1]}": (self.signalled, *trial) for trial in which}
        names = list(made)
        random.Random(self.seed).shuffle(names)
        return {name: made[name] for name in names}


ENDS = ("kill", "full", "read_only", "torn")


def tables(found):
    "The trials as Markdown: by what broke a run off, and by the file that was written then."
    kinds = defaultdict(Counter)
    files = defaultdict(Counter)
    for trial in found:
        kinds[trial["kind"]]["trials"] += 1
        kinds[trial["kind"]]["fine"] += not trial["wrong"]
        if trial["file"]:
            files[trial["file"]][trial["kind"]] += 1
            files[trial["file"]][f"{trial['kind']} fine"] += not trial["wrong"]
    total = sum(kinds.values(), Counter())
    rows = [[kind.replace("_", "-"), c["trials"], c["fine"]] for kind, c in sorted(kinds.items())]
    rows.append(["all", total["trials"], total["fine"]])
    shares = [
        [file, *(f"{c[f'{end} fine']} of {c[end]}" if c[end] else "" for end in ENDS)]
        for file, c in sorted(files.items())
    ]
    by_file = ["written", "killed", "full disk", "read-only disk", "torn"]
    return [
        markdown(["broken off by", "trials", "equal to the uninterrupted run"], rows),
        markdown(by_file, shares),
    ]


def campaign(crashes, plan, log, seconds):
    "All trials found; those of the `plan` that the `log` lacks are made, for so many seconds."
    made = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {trial["name"] for trial in made}
    deadline = time.monotonic() + seconds
    for name, (trial, *how) in plan.items():
        if name in known or time.monotonic() > deadline:
            continue
        made.append({"name": name, **trial(*how)})
        with log.open("a") as file:
            file.write(json.dumps(made[-1]) + "\n")
    return [trial for trial in made if trial["name"] in plan]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--signals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--minutes", type=float, default=1e6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        crashes = Crashes(folder, args.seed)
        plan = crashes.plan(args.kills, args.signals)
        log = args.log or Path(folder) / "trials.jsonl"
        found = campaign(crashes, plan, log, 60 * args.minutes)
    faults = [f"{t['name']}: {words}" for t in found for words in t["wrong"]]
    words = f"`benchmarks/crashes.py`, seed {args.seed}: {len(found)} of {len(plan)} trials on a "
    words += f"run with {len(crashes.calls)} calls that change the disk."
    write_section("Kills, signals and failing disks", "\n\n".join([words, *tables(found)]))
    print(words, *tables(found), *faults[:30], sep="\n\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
