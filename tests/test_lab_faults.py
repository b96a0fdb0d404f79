"""What the lab says and keeps when something goes wrong: pressed without a browser, with real
trainings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from autolora import Lab, Run, finetune
from autolora.data.loading import load_task
from autolora.lab import follower
from autolora.lab.canvas import Canvas
from autolora.lab.follower import Checker
from autolora.methods.registry import METHODS
from autolora.runs.folder import create_run
from autolora.runs.turns import line
from autolora.show import PANELS


def until(condition, seconds, what):
    "Wait until `condition()` is true; a sentence when it takes longer than `seconds`."
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def slow(logits):
    Path(os.environ["MOODY"], "reached").touch()
    time.sleep(0.2)
    return logits


MOODS = {
    "NaN loss": lambda logits: logits * float("nan"),
    "out of memory": lambda logits: torch.empty(2**50) and logits,
    "torch's own error": lambda logits: logits @ torch.ones(3, 3),
    "slow": slow,
    "very slow": lambda logits: [slow(logits) for _ in range(300)][0],
}


class Moody(nn.Module):
    """A small net of one's own whose forward pass can be told to go wrong, in whatever process: a
    file called train, validate or ever in the folder MOODY names the mood."""

    def __init__(self):
        super().__init__()
        self.body, self.head = (
            nn.Sequential(
                nn.Conv2d(1, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten()
            ),
            nn.Linear(4 * 4 * 4, 10),
        )

    def forward(self, x):
        logits = self.head(self.body(x))
        moment = "train" if self.training else None if torch.is_grad_enabled() else "validate"
        for name in (moment, "ever"):
            mood = Path(os.environ["MOODY"], name or "never")
            if mood.is_file():
                return MOODS[mood.read_text()](logits)
        return logits


@pytest.fixture
def moods(tmp_path, monkeypatch):
    "The folder whose files are the net's moods."
    folder = tmp_path / "moods"
    folder.mkdir()
    monkeypatch.setenv("MOODY", str(folder))
    return folder


def opened(root, **more):
    "A lab with the moody net, set to a training that takes long enough to be disturbed."
    torch.manual_seed(0)
    lab = Lab(root, backbones={"moody": Moody()}, **more)
    choose(lab, backbone="moody", data="digits", limit="400", epochs="400", autoattack=0)
    for box in lab.controls.fields["methods"].control.children[1:]:
        box.value = False
    return lab


@pytest.fixture
def lab(tmp_path, moods):
    lab = opened(tmp_path / "runs")
    yield lab
    for mood in moods.iterdir():
        mood.unlink()
    lab.close()
    lab.trainer.stop()
    lab.trainer.wait(30)


def choose(lab, **values):
    for name, value in values.items():
        lab.controls.fields[name].control.value = value


def run_of(lab):
    return Run(lab.trainer.jobs[0].out)


def start(lab, epochs=2):
    "Press Start and wait for some epochs."
    lab.start.click()
    until(lambda: not line(lab.trainer.root), 30, "its turn")
    until(
        lambda: not lab.trainer.busy or lab.trainer.position and len(run_of(lab).history) >= epochs,
        90,
        f"{epochs} epochs",
    )
    assert lab.trainer.busy, lab.trainer.jobs[0].message


def ended(lab, state):
    "Wait for the end of the training and of what the lab does then."
    lab.trainer.wait(60)
    until(lambda: not lab.follower.thread and not lab.trainer.busy, 30, "the end")
    assert lab.trainer.jobs[0].state == state, lab.trainer.jobs[0].message
    assert lab.stop.disabled
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
    "NaN loss": "The loss is no longer a finite number in epoch",
    "out of memory": "The memory ran out: choose a smaller batch_size",
    "torch's own error": "not foreseen (RuntimeError: mat1 and mat2 shapes",
}


ONE, *OTHERS = FAULTS


@pytest.mark.parametrize("fault", [ONE, *(pytest.param(f, marks=pytest.mark.long) for f in OTHERS)])
def test_a_fault_in_training_is_one_sentence_and_resume_works(lab, moods, fault):
    sentence = FAULTS[fault]
    start(lab)
    (moods / "train").write_text(fault)
    said = ended(lab, "failed")
    assert sentence in said and "Traceback" not in said and said.count("<div>") == 1
    assert sentence in run_of(lab).last("failed")["message"]
    (moods / "train").unlink()
    goes_on(lab)


def test_stop_during_validation(lab, moods):
    start(lab)
    (moods / "validate").write_text("slow")
    until((moods / "reached").is_file, 60, "a validation")
    done = len(run_of(lab).history)
    lab.stop.click()
    ended(lab, "stopped")
    assert len(run_of(lab).history) == done and (run_of(lab).path / "model.safetensors").is_file()
    (moods / "validate").unlink()
    goes_on(lab)


def test_start_pressed_again_waits_in_line_and_can_be_taken_out(lab):
    start(lab, epochs=1)
    first = run_of(lab).path
    shown = lab.runs.value
    choose(lab, epochs="399")
    lab.start.click()
    lab.start.click()
    assert not lab.follower.complaint and lab.runs.value == shown
    rows = lambda: [row.children[0].value for row in lab.queue.children]
    until(lambda: len(rows()) == 2, 10, "two that wait")
    assert "next: AutoLoRa on digits with moody, 399 epochs" in rows()[0] and "1 ahead" in rows()[1]
    lab.queue.children[0].children[1].click()
    assert len(rows()) == 1 and "next" in rows()[0]
    lab.stop.click()
    until(lambda: lab.trainer.job and run_of(lab).path != first, 90, "the next one")
    until(
        lambda: "before" in lab.state.value and "stopped" in lab.state.value, 10, "the first's end"
    )
    until(lambda: str(first) in lab.follower.left, 10, "that the first can be gone on with")
    assert not rows() and not lab.resume.disabled
    lab.resume.click()
    until(lambda: len(rows()) == 1, 10, "it waits, too")
    lab.queue.children[0].children[1].click()
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
        assert "Correct what is marked" in lab.state.value
        assert "✕" in lab.controls.fields["data"].note.value, "Start took the mark away"
    assert not list(tmp_path.glob("runs/*/"))
    choose(lab, data="digits")
    start(lab, epochs=1)  # the next choice is not harmed
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


def test_the_aide_dies_with_the_kernel_and_is_deaf_to_interrupts():
    script = (
        "import os, signal, sys; from autolora.lab.aide import Aide; "
        "print(Aide('builtins', 'dict').process.pid, flush=True); sys.stdin.read(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(kernel.stdout.readline())
    time.sleep(1)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert alive(pid)
    kernel.communicate()
    assert kernel.returncode == -9
    until(lambda: not alive(pid), 30, "the aide's end")


def test_a_kernel_that_dies_leaves_its_training_to_the_next(lab, tmp_path):
    script = (
        "import os, signal; from test_lab_faults import *; "
        f"lab = opened({str(lab.root)!r}); lab.start.click(); "
        "until(lambda: lab.trainer.position, 90, 'the training'); os.kill(os.getpid(), 9)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=env).returncode == -9
    assert lab.trainer.busy and lab.trainer.jobs[0].state == "running"
    done = len(run_of(lab).history)
    until(lambda: len(run_of(lab).history) > done, 60, "going on without its kernel")
    lab.resume.click()  # nothing is paused: nothing changes, but this lab follows from now on
    until(lambda: list(lab.shown()) == ["autolora"] and lab.follower.stand, 30, "its pictures here")
    start = time.monotonic()
    lab.pause.click()
    until(lambda: lab.trainer.paused, 5, "the pause")
    assert time.monotonic() - start < 2, "0.3 s, and what a busy machine adds"
    lab.resume.click()
    until(lambda: not lab.trainer.paused, 5, "the resume")
    lab.stop.click()
    ended(lab, "stopped")
    goes_on(lab)


def test_a_training_that_was_killed_says_so_and_goes_on(lab):
    start(lab)
    pid = int(json.loads((lab.root / ".lock").read_text())["pid"])
    os.kill(pid, signal.SIGKILL)
    said = ended(lab, "stopped")
    assert "was ended from outside" in said and "Resume" in said
    goes_on(lab)


def test_an_unfinished_run_goes_on_from_its_folder_alone(lab, tmp_path, moods):
    start(lab)
    lab.stop.click()
    ended(lab, "stopped")
    path = run_of(lab).path
    done = len(run_of(lab).history)
    bare = Lab(tmp_path / "elsewhere", runs=[path])
    assert "unfinished" in bare.runs.options[0][0] and not bare.resume.disabled
    bare.resume.click()  # the net was an object of somebody's
    assert "trained with a backbone of your own, Moody" in bare.state.value
    bare.close()
    again = opened(tmp_path / "elsewhere", runs=[path])
    again.resume.click()
    until(lambda: len(Run(path).history) > done, 90, "going on in another lab")
    again.stop.click()
    ended(again, "stopped")
    again.close()


def words_of(lab):
    return lab.facts.value + "".join(f.note.value for f in lab.controls.fields.values())


def test_a_trial_that_is_no_longer_wanted_is_ended_and_says_nothing(lab, moods, monkeypatch):
    monkeypatch.setattr(Checker, "patience", 0.2)
    (moods / "ever").write_text("very slow")
    choose(lab, limit="390")
    until((moods / "reached").is_file, 60, "a trial that takes a minute")
    pid = Checker._aide.process.pid
    choose(lab, backbone="robust_mini_gray")
    until(lambda: not alive(pid), 20, "the end of the unwanted trial")
    until(lambda: "attack steps" in lab.facts.value, 60, "the trial of the new choice")
    assert "✕" not in words_of(lab).replace("✕ This machine is busy", "")
    for name in ("autolora", "trades"):
        lab.controls.boxes[name].value = name == "trades"
    until(lambda: "(naive RFT (TRADES) " in lab.facts.value, 60, "one that has no rank")


def test_a_closed_lab_checks_nothing_any_more(lab, moods):
    (moods / "ever").write_text("very slow")
    choose(lab, limit="390")
    until((moods / "reached").is_file, 60, "a trial that takes a minute")
    lab.close()
    assert not lab.checker.timer.is_alive() and Checker._aide is None
    lab.checker.changed()  # as the end of a training does
    assert not lab.checker.timer.is_alive() and Checker._aide is None


def test_a_choice_that_needs_too_much_memory_is_refused_at_its_field(lab, monkeypatch):
    monkeypatch.setattr(follower, "free_memory", lambda: 3 * 10**9)
    choose(lab, backbone="robust_mini_gray", size="1000", limit="")
    until(lambda: "✕" in lab.controls.fields["size"].note.value, 90, "the refusal")
    assert "more than the 1.5 GB" in lab.controls.fields["size"].note.value
    lab.start.click()
    assert "Correct what is marked" in lab.state.value and not lab.trainer.busy
    choose(lab, size="", data="  ")
    lab.checker.timer.join()
    assert "Choose a data set" in lab.controls.fields["data"].note.value


def made(folder, i, layers):
    "The folder of a made-up run, of a backbone whose layers nobody else has."
    config = {"method": ["autolora", "trades", "at", "awp"][i % 4], "task": "digits", "seed": i}
    names = [f"a class with a long name {k}" for k in range(10)]
    run = create_run(folder / f"run{i:02d}", config | {"epochs": 4, "classes": names})
    for e in range(1, 5):
        angles = {f"net{i}.block{k}.conv": 80.0 + e + k for k in range(layers)}
        given = dict(angle=90.0 + i, angle_natural=95.0 + i, angle_layers=angles)
        given |= dict(length_nat=1.0 + i, length_adv=2.0, lr=0.1, sa=0.9, ra=0.4 + i / 100)
        run.log("epoch", epoch=e, seconds=1.0, n_val=100, loss=1.0, ce_nat=0.5, **given)
    run.log("scales", scale=[0.0, 1.0], sa=[0.8, 0.9], ra=[0.5, 0.4], n=100)
    x = np.random.default_rng(i).random((8, 1, 16, 16))
    p = np.eye(10)[np.arange(8)]
    arrays = dict(nat=x, adv=x, y=np.arange(8), fe_nat=p, fe_adv=np.roll(p, i % 2, 1))
    np.savez(run.path / "examples.npz", **arrays)
    return run.path


def test_twelve_runs_of_other_layers_each(lab, tmp_path):
    paths = [made(tmp_path / "many", i, 3 + i) for i in range(12)]
    for n in (2, 4, 5, 12):
        lab.runs.value = ()
        lab.open(*paths[:n])
        figures = {name: json.loads(figure) for name, figure, _ in lab.canvas.panels}
        assert len(figures) == 8
        for name, figure in figures.items():
            assert figure["data"] and figure["layout"]["title"]["text"] != "Not drawn", (name, n)
            assert figure["layout"]["height"] < 1400, (name, n)
        assert (lab.front.layout.display == "none") == (n <= 4)
    lab.front.value = str(paths[7])
    arrows = json.loads({name: figure for name, figure, _ in lab.canvas.panels}["gradients"])
    assert arrows["layout"]["title"]["subtitle"]["text"].startswith("Awp · digits, seed 7:")
    lab.canvas.opened = [panel[0] for panel in lab.canvas.panels]
    tables = {name: table for name, _, table in lab.canvas.panels if name != "example"}
    assert all("<table" in table for table in tables.values())


def small(width, depth):
    "A net of `depth` convolutions."
    layers = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    layers += [nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()) for _ in range(depth - 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@pytest.mark.long
def test_twelve_real_runs_of_five_backbones(lab, tmp_path):
    task = load_task("digits", limit=220)
    colour = lambda split: (split.images().expand(-1, 3, -1, -1).contiguous(), split.y)
    data = {"train": colour(task.train), "test": colour(task.test)}
    nets = ["robust_mini_rgb", small(8, 1), small(8, 3), small(12, 5), small(16, 9)]
    short = dict(epochs=2, lr=0.02, steps=1, test=False, progress=False)
    ways = [(net, method) for net in nets for method in ("autolora", "trades", "at")][:12]
    paths = []
    for i, (net, method) in enumerate(ways):
        paths.append(finetune(net, data, method, out=tmp_path / f"run{i:02d}", **short).path)
    lab.open(*paths)
    figures = {name: json.loads(figure) for name, figure, _ in lab.canvas.panels}
    assert len(figures) == 8
    told = {name: str(figure["layout"]["title"]) for name, figure in figures.items()}
    empty = {name for name, figure in figures.items() if not figure["data"]}
    assert all("can't be drawn" not in words for words in told.values())
    assert all("text" in figures[name]["layout"]["title"]["subtitle"] for name in empty), told
    for path in paths:
        lab.front.value = str(path)
        shown = json.loads({name: figure for name, figure, _ in lab.canvas.panels}["gradients"])
        assert shown["layout"]["title"]["text"] != "Not drawn", path


def test_one_pictures_failure_is_its_own(lab, tmp_path, monkeypatch):
    monkeypatch.setitem(PANELS, "losses", lambda histories: 1 / 0)
    lab.open(made(tmp_path / "many", 0, 3))
    figures = {name: json.loads(figure) for name, figure, _ in lab.canvas.panels}
    assert "ZeroDivisionError" in figures["losses"]["layout"]["title"]["subtitle"]["text"]
    assert all(figures[name]["data"] for name in figures if name != "losses")
    assert "✕" not in lab.state.value


def test_what_is_new_has_controls_and_words(lab):
    assert not lab.controls.read()["skip_broken"]
    choose(lab, skip_broken=True)
    assert lab.controls.read()["skip_broken"]
    marks = dict((name, label) for label, name in lab.controls.fields["backbone"].control.options)
    assert marks["robust_mini_gray"].endswith("· robust")
    assert marks["resnet18"].endswith("· not robust") and marks["moody"] == "moody"
    choose(lab, backbone="resnet18")
    lab.controls.read()
    assert "ImageNet" in lab.controls.fields["backbone"].note.value
    told = lab.controls.children[-1].value
    assert all(cls.label in told for cls in map(METHODS.get, lab.controls.boxes))
    assert "Zhang et al. 2019" in told and "standard and robust accuracy" in told


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
            said = page.locator(".autolora-trouble")
            expect(said).to_contain_text("plotly.js didn't load (Error: out of memory). Run this")
        expect(page.locator(".main-svg").first).to_be_visible(visible=not fault, timeout=20_000)
        page.evaluate("window.close_view()")
        browser.close()
    assert complaints == []


def test_the_canvas_comes_up_on_a_busy_machine(chromium):
    "A front end gives a widget's module two seconds; here the page has a quarter of the time."
    from playwright.sync_api import expect, sync_playwright

    canvas = Canvas()
    canvas.show([["one", go.Figure(go.Scatter(y=[3, 1, 2])).to_json(), ""]])
    state = {name: getattr(canvas, name) for name in ("panels", "opened", "sliders", "values")}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        session = page.context.new_cdp_session(page)
        session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        took = page.evaluate(
            f"async given => {{ const start = performance.now(); await ({HOST})(given); "
            "return performance.now() - start; }",
            {"esm": canvas._esm, "state": state | {"plotly": canvas.plotly}},
        )
        assert took < 2000
        session.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        expect(page.locator(".main-svg").first).to_be_visible(timeout=30_000)
        browser.close()


def test_a_picture_that_the_page_cannot_draw_leaves_the_others(chromium):
    from playwright.sync_api import expect, sync_playwright

    canvas = Canvas()
    good = go.Figure(go.Scatter(y=[3, 1, 2])).to_json()
    canvas.show([["bad", "{}", ""], ["worse", "no JSON", ""], ["good", good, ""]])
    state = {name: getattr(canvas, name) for name in ("panels", "opened", "sliders", "values")}
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.evaluate(HOST, {"esm": canvas._esm, "state": state | {"plotly": canvas.plotly}})
        good = page.locator("[data-panel=good] .main-svg").first
        expect(good).to_be_visible(timeout=20_000)
        for name in ("bad", "worse"):
            said = page.locator(f"[data-panel={name}] p")
            expect(said).to_contain_text("This picture can't be drawn")
        browser.close()
