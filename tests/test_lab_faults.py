"""What the lab says and keeps when something goes wrong: pressed without a browser, with real
trainings."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from autolora import Run
from autolora.lab.canvas import Canvas
from autolora.lab.painter import Painter
from autolora.lab.panel import Lab
from autolora.runs.jobs import Trainer


def until(condition, seconds, what):
    "Wait until `condition()` is true; a sentence when it takes longer than `seconds`."
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


# what happens to the logits: "train", "validate" -> function of them; a copied net has the same
MOOD = {}


class Moody(nn.Module):
    "A small net of one's own whose forward pass can be told to go wrong."

    def __init__(self):
        super().__init__()
        self.body, self.head = (
            nn.Sequential(
                nn.Conv2d(1, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten()
            ),
            nn.Linear(4 * 4 * 4, 10),
        )

    def forward(self, x):
        moment = "train" if self.training else None if torch.is_grad_enabled() else "validate"
        return MOOD.get(moment, lambda logits: logits)(self.head(self.body(x)))


@pytest.fixture
def lab(tmp_path):
    "A lab set to a training of the moody net that takes long enough to be disturbed."
    MOOD.clear()
    torch.manual_seed(0)
    lab = Lab(tmp_path / "runs", backbones={"moody": Moody()}, trainer=Trainer())
    choose(lab, backbone="moody", data="digits", limit="400", epochs="400", autoattack=0)
    for box in lab.controls.fields["methods"].control.children[1:]:
        box.value = False
    yield lab
    MOOD.clear()
    lab.close()
    lab.trainer.close()


def choose(lab, **values):
    for name, value in values.items():
        lab.controls.fields[name].control.value = value


def run_of(lab):
    return Run(lab.trainer.jobs[0].out)


def start(lab, epochs=2):
    "Press Start and wait for some epochs."
    lab.start.click()
    until(
        lambda: lab.trainer.jobs and (len(run_of(lab).history) >= epochs or not lab.trainer.busy),
        90,
        f"{epochs} epochs",
    )
    assert lab.trainer.busy, lab.trainer.jobs[0].message


def ended(lab, state):
    "Wait for the end of the training and of what the lab does then."
    lab.trainer.wait(60)
    until(lambda: not lab.follower.thread and not lab.trainer.busy, 30, "the end")
    assert lab.trainer.jobs[0].state == state, lab.trainer.jobs[0].message
    assert not lab.start.disabled and lab.stop.disabled
    return lab.state.value


def goes_on(lab):
    "Resume continues from the checkpoint, with the epochs that were done."
    done = len(run_of(lab).history)
    assert (run_of(lab).path / "resume.pt").is_file() and not lab.resume.disabled
    lab.resume.click()
    until(lambda: len(run_of(lab).history) > done, 90, "going on")
    assert run_of(lab).history.epoch.tolist() == list(range(1, len(run_of(lab).history) + 1))
    lab.stop.click()
    ended(lab, "stopped")
    assert (run_of(lab).path / "model.safetensors").is_file()


FAULTS = {
    "NaN loss": (
        lambda logits: logits * float("nan"),
        "The loss is no longer a finite number in epoch",
    ),
    "out of memory": (
        lambda logits: torch.empty(2**50) and logits,
        "The memory ran out: choose a smaller batch_size",
    ),
    "torch's own error": (
        lambda logits: logits @ torch.ones(3, 3),
        "not foreseen (RuntimeError: mat1 and mat2 shapes",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_training_is_one_sentence_and_resume_works(lab, fault):
    what, sentence = FAULTS[fault]
    start(lab)
    MOOD["train"] = what
    said = ended(lab, "failed")
    assert sentence in said and "Traceback" not in said and said.count("<div>") == 1
    assert sentence in run_of(lab).last("failed")["message"]
    MOOD.clear()
    goes_on(lab)


def test_stop_during_validation(lab):
    reached = threading.Event()
    start(lab)
    MOOD["validate"] = lambda logits: (reached.set(), time.sleep(0.2), logits)[-1]
    assert reached.wait(60)
    done = len(run_of(lab).history)
    lab.stop.click()
    ended(lab, "stopped")
    assert len(run_of(lab).history) == done and (run_of(lab).path / "model.safetensors").is_file()
    MOOD.clear()
    goes_on(lab)


def test_start_pressed_twice(lab):
    start(lab, epochs=1)
    lab.start.click()
    assert "A training is at work in this kernel already" in lab.state.value
    assert len(lab.trainer.jobs) == 1 and len(list(lab.root.iterdir())) == 1
    lab.stop.click()
    ended(lab, "stopped")


def test_damaged_data(lab, tmp_path):
    images, labels = np.full((60, 1, 16, 16), np.nan, "float32"), np.arange(60) % 10
    np.savez(tmp_path / "whole.npz", x=np.zeros((60, 16, 16), "uint8"), y=labels)
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:3000])
    lab.controls.own_data["nan images"] = (images, labels)
    for data in (str(tmp_path / "half.npz"), str(tmp_path / "nowhere"), "nan images"):
        choose(lab, data=data)
        until(
            lambda: "✕" in lab.controls.fields["data"].note.value,
            30,
            f"the refusal of {data} at the control",
        )
        lab.start.click()
        said = ended(lab, "failed")
        assert (
            "✕" not in said
            and said.count("<div>") == 1
            and "not foreseen" not in said
            and not list(tmp_path.glob("runs/*/config.json"))
        ), said
    choose(lab, data="digits")
    start(lab, epochs=1)  # the next choice is not harmed
    lab.stop.click()
    ended(lab, "stopped")


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_the_painter_is_lost(lab, how):
    start(lab)
    follower = lab.follower
    until(lambda: follower.workshop.painter and follower.stand, 30, "a painter that answers")
    painter, process = follower.workshop.painter, follower.workshop.painter.process
    os.kill(process.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    if how == "hanging":
        painter.patience = 0.5
    until(lambda: "are drawn in the kernel now" in lab.state.value, 30, "the sentence")
    assert (
        "exit status -9" if how == "killed" else "not answered"
    ) in lab.state.value and process.poll() is not None
    shown, done = lab.canvas.panels, len(run_of(lab).history)
    until(
        lambda: lab.canvas.panels != shown and len(run_of(lab).history) > done,
        60,
        "pictures drawn in the kernel, and the training going on",
    )
    lab.stop.click()
    ended(lab, "stopped")


def alive(pid):
    "Whether the process is at work; one that ended and that nobody has asked about isn't."
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_painter_dies_with_the_kernel():
    script = (
        "import os, signal, sys; from autolora.lab.painter import Painter; "
        "print(Painter().process.pid, flush=True); sys.stdin.read(); os.kill(os.getpid(), "
        "signal.SIGKILL)"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(kernel.stdout.readline())
    assert alive(pid)
    kernel.communicate()
    assert kernel.returncode == -9
    until(lambda: not alive(pid), 30, "the painter's end")


def test_the_painter_is_of_low_priority_and_deaf_to_interrupts():
    painter, order = (
        Painter(),
        dict(folders=[], opened=[], image=0, scale=0.0, work=None, anew=False),
    )
    painter.ask(order)
    answers = []
    until(lambda: answers.append(painter.answer()) or answers[-1], 60, "an answer")
    os.kill(painter.process.pid, signal.SIGINT)
    painter.ask(order | {"scale": 1.0})
    until(
        lambda: answers.append(painter.answer()) or answers[-1], 60, "an answer after an interrupt"
    )
    assert [panel[0] for panel in answers[-1]["panels"]] == ["example", "scales"]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, painter.process.pid) == min(19, own + 10)
    painter.close()


# a host for the canvas's module, as a front end is one: it imports the text and asks for a view
HOST = """async ({ esm, state }) => {
  const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  const { render } = (await import(url)).default;
  const model = { get: name => state[name], set() {}, save_changes() {}, on() {}, off() {} };
  window.close_view = render({ model, el: document.body });
}"""


def test_the_canvas_module_is_small_enough_for_a_slow_machine():
    assert len(Canvas()._esm.encode()) < 50_000


@pytest.mark.parametrize("fault", ["", "throw new Error('out of memory');"])
def test_a_canvas_without_plotly_says_so_and_keeps_its_words(chromium, fault):
    from playwright.sync_api import expect, sync_playwright

    canvas = Canvas(sliders={"one": {"label": "s", "min": 0, "max": 1, "step": 0.5}})
    canvas.values = {"one": 0.5}
    figure = go.Figure(go.Scatter(y=[3, 1, 2]), layout_title_text="A title<br>that wraps")
    canvas.show([["one", figure.update_layout(margin_l=20, height=200).to_json(), ""]])
    state = {name: getattr(canvas, name) for name in ("panels", "opened", "sliders", "values")}
    complaints = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.evaluate(
            HOST, {"esm": canvas._esm, "state": state | {"plotly": fault or canvas.plotly}}
        )
        expect(page.locator("h3")).to_have_text("A title that wraps")
        expect(page.get_by_role("slider", name="s")).to_have_value("0.5")
        if fault:
            said = page.locator(".autolora-files")
            expect(said).to_contain_text("plotly.js didn't load (Error: out of memory). Run this")
        expect(page.locator(".main-svg").first).to_be_visible(visible=not fault, timeout=20_000)
        page.evaluate("window.close_view()")
        browser.close()
    assert complaints == []
