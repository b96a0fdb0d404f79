"""A folder in which one trains and others wait: started at once, killed, taken out, stopped, and
told lies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autolora import Run
from autolora.core.disk import who_is_in
from autolora.runs.background import Trainer
from autolora.runs.turns import leave, line, put, told_in

pytest.importorskip("fcntl", reason="where files have no locks nothing waits")

ROOT = Path(__file__).parent.parent
CALL = dict(backbone="robust_mini_gray", data="digits", method="at", limit=220, steps=1, lr=0.02)
CALL |= dict(angles=False, test=False)
LONG = CALL | {"epochs": 2000}
SHORT = CALL | {"epochs": 2}
PRESS = """
import sys, time
from autolora.runs.background import Trainer
trainer = Trainer(sys.argv[1])
print(flush=True)
sys.stdin.readline()
trainer.start([dict({call})])
"""


def until(condition, what, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture
def root(tmp_path, one_thread):
    yield tmp_path
    for ticket in line(tmp_path):
        leave(tmp_path, ticket.name)
    Trainer(tmp_path).stop()
    Trainer(tmp_path).wait(60)


def at_work(root):
    "The calls of those that train in a folder of their own under `root` now."
    return [path.parent for path in root.glob("*/.lock") if who_is_in(path.parent)]


def started(root, call):
    "Begin a `call`, which nobody is in the way of."
    trainer = Trainer(root)
    trainer.start([call])
    until(lambda: trainer.position, "the first step")
    return trainer


def test_two_presses_at_the_same_time_are_two_trainings_one_after_the_other(root):
    "By processes that end at once, with the same choice: nobody is left but those who wait."
    command = [sys.executable, "-c", PRESS.format(call=SHORT), root]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    pressing = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in pressing:
        process.stdout.readline()
    for process in pressing:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in pressing:
        process.communicate()
    trainer, most = Trainer(root), 0
    assert trainer.busy
    while trainer.busy:
        most = max(most, len(at_work(root)))
        time.sleep(0.01)
    assert most == 1
    runs = [Run(path.parent) for path in root.glob("*/config.json")]
    assert [len(run.history) for run in runs] == [2, 2]
    assert [job.state for job in [*trainer.before, *trainer.jobs]] == ["finished"] * 2


def test_who_was_killed_is_passed_over_and_who_was_taken_out_is_gone(root):
    first = started(root, LONG)
    waiting = [Trainer(root) for _ in range(3)]
    for epochs, trainer in enumerate(waiting, 1):
        trainer.start([CALL | {"epochs": epochs}])
    tickets = line(root)
    assert [told_in(t)["jobs"][0]["call"]["epochs"] for t in tickets] == [1, 2, 3]
    (killed,) = waiting[0]._processes
    killed.kill()
    until(lambda: line(root) == tickets[1:], "passing over the killed one", 5)
    leave(root, tickets[1].name)
    until(lambda: waiting[1]._processes[0].poll() == 0, "the end of the one taken out", 5)
    os.kill(int(json.loads((root / ".lock").read_text())["pid"]), signal.SIGKILL)
    until(lambda: not first.busy, "the end of them all")
    assert [job.state for job in first.jobs] == ["finished"]
    assert first.jobs[0].call["epochs"] == 3
    (before,) = first.before
    assert before.state == "stopped" and "was ended from outside" in before.message
    assert len(list(root.glob("*/config.json"))) == 2


def test_stop_ends_the_one_at_work_and_no_other(root):
    first = started(root, LONG)
    ticket = told_in(root / ".training.json")["ticket"]
    other = Trainer(root)
    other.start([LONG])
    first.stop()
    until(lambda: first.before and first.position, "the next one")
    assert first.before[0].state == "stopped" and first.job.call["epochs"] == 2000
    put(root / ".wish", f"stop {ticket}")  # comes too late, and was meant for the first
    until(lambda: not (root / ".wish").exists(), "being read", 5)
    time.sleep(1)
    assert first.job, "the second was stopped instead"
    first.pause()
    until(lambda: other.paused, "the pause", 5)


def test_stop_right_after_start_is_heard(root):
    trainer = Trainer(root)
    trainer.start([LONG])
    trainer.stop()  # before its process is there
    trainer.wait(60)
    assert not trainer.busy and [job.state for job in trainer.jobs] == ["stopped"]


def test_what_others_write_into_a_ticket_is_never_run(root):
    first = started(root, LONG)
    other = Trainer(root)
    other.start([SHORT])
    (ticket,) = line(root)
    lie = {"call": SHORT | {"out": str(root / "lie"), "epochs": 1}, "state": "waiting"}
    with ticket.open("r+") as file:
        json.dump({"jobs": [lie | {"message": ""}]}, file)
        file.truncate()
    forged = ticket.with_name(f"{0:020d}-forged")  # the first in line, of nobody
    forged.write_text("this is no JSON")
    first.stop()
    other.wait(90)
    assert [job.state for job in other.jobs] == ["finished"] and not (root / "lie").exists()
    assert len(other.jobs[0].run.history) == 2
