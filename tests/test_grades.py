"""Thorough evaluations: each attack of a grade against closed forms, what is recorded of it, and an
evaluation that is killed and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autolora import AutoLoRaError, Run, finetune
from autolora.core.threat import l1, l2, linf, matched
from autolora.data.loading import load_task
from autolora.robust import pgd
from autolora.robust.corruptions import CORRUPTIONS, corrupted
from autolora.robust.evaluation import evaluate
from autolora.robust.grades import GRADES
from autolora.robust.measures import Subject, measure
from autolora.robust.results import Report

pytestmark = pytest.mark.usefixtures("one_thread")
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def linear(classes, count, seed, low=0.4):
    "A linear classifier, 6x6 images in the middle of [0, 1], and its own answers as labels."
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 36, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, classes)).eval()
    model[1].weight.data, model[1].bias.data = weight, -weight.sum(1) / 2
    x = low + (1 - 2 * low) * torch.rand(count, 1, 6, 6, generator=generator)
    return model, x, model(x).argmax(1)


def survivors(model, x, y, threat):
    "Which images no perturbation can turn: margin over each j > eps * dual norm of w_y - w_j."
    w, z = model[1].weight.detach(), model(x).detach()
    size = (w[y][:, None] - w).norm(p=DUAL[threat.norm], dim=2)
    margin = z.gather(1, y[:, None]) - z - threat.eps * size
    return ((margin > 0) | (torch.arange(len(w)) == y[:, None])).all(1)


THREATS = [linf(0.006), l2(0.03), l1(0.12)]


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", ["pgd-20", "pgd-20x5-ce", "pgd-20x5-dlr", "pgd-100x5-dlr"])
def test_pgd_reaches_the_closed_form_in_each_norm(threat, name):
    # with more classes cross-entropy is not the whole story: it looks at all rivals at once
    model, x, y = linear(4 if "dlr" in name else 2, 60, seed=3)
    report = evaluate(model, (x, y), threat, ["none", name])
    exact = survivors(model, x, y, threat).sum().item()
    nearly = survivors(model, x, y, replace(threat, eps=0.97 * threat.eps)).sum().item()
    assert 0 < exact < 60 and exact <= report[name].correct <= nearly
    assert report[name].settings["threat"] == str(threat)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_the_parts_of_autoattack_reach_the_closed_form_in_each_norm(threat):
    for classes, names in ((2, ["apgd-ce"]), (5, ["apgd-dlr", "apgd-ce", "square-5000"])):
        model, x, y = linear(classes, 16, seed=3)
        report = evaluate(model, (x, y), threat, ["none", *names])
        exact = survivors(model, x, y, threat).sum().item()
        nearly = survivors(model, x, y, replace(threat, eps=0.97 * threat.eps)).sum().item()
        assert exact <= report[names[0]].correct <= nearly
        assert all(exact <= report[name].correct <= 16 for name in names)
    assert exact <= report.worst.correct <= min(report[name].correct for name in names)


def test_an_l1_attack_reaches_across_the_border_of_the_pixels():
    """Pixels near white can't move up, so the worst case spends its budget on the others: the
    optimum, a fractional knapsack, is reached, better than by cutting at ball and box in turn."""
    torch.manual_seed(0)
    w = torch.rand(200)
    x = torch.where(torch.rand(1, 200) < 0.5, 0.95, 0.3)
    rise = nn.Sequential(nn.Flatten(), nn.Linear(200, 2)).eval()
    rise[1].weight.data = torch.stack([torch.zeros(200), w])
    threat = l1(6.0)
    left, best = threat.eps, 0.0
    for i in w.argsort(descending=True).tolist():
        moved = min(left, 1 - x[0, i].item())
        best += moved * w[i].item()
        left -= moved
    start, y = x.view(1, 1, 10, 20), torch.tensor([0])
    gain = lambda images: ((images - start).flatten(1) @ w).item()
    x_adv = pgd(rise, start, y, threat, steps=100, random_start=False)
    assert (x_adv - start).abs().sum() <= 6 + 1e-4 and x_adv.max() <= 1
    assert 0.97 * best < gain(x_adv) <= best + 1e-4
    cut = start
    for _ in range(100):
        grad = w.view_as(start)
        cut = (start + threat.clip(threat.step(cut, grad, 0.15) - start)).clamp(0, 1)
    assert gain(cut) <= gain(x_adv)


def test_restarts_are_never_weaker_and_their_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).eval()
    x = torch.rand(40, 1, 6, 6)
    y = net(x).argmax(1)
    for threat in (linf(0.05), l2(0.3), l1(1.5)):
        names = ["pgd-5", "pgd-5x2", "pgd-5x6"]
        report = evaluate(net, (x, y), threat, names)
        bits = [int(report[name].hits, 16) for name in names]
        assert not bits[1] & ~bits[0] and not bits[2] & ~bits[1]
        batches = evaluate(net, (x, y), threat, names, batch_size=7)
        assert [row.hits for row in batches.rows] == [row.hits for row in report.rows]


@pytest.mark.parametrize("grade", GRADES)
@pytest.mark.parametrize("threat", [linf(0.1), l2(0.5), l1(8.0)], ids=str)
@pytest.mark.parametrize("classes", [2, 10])
def test_everything_in_a_grade_is_known(grade, threat, classes):
    x = torch.rand(2, 3, 16, 16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, classes)).eval()
    subject = Subject(net, threat, x, classes, surrogate=net)
    names = GRADES[grade](threat, x[0].numel(), classes)
    found = {name: measure(name, subject) for name in names}
    assert len(found) == len(names)
    for name, this in found.items():
        json.dumps(this.settings)
        if ":" not in name.partition("@")[0]:
            within = name.partition("@")[2] or str(threat)
            assert this.settings["threat"] == within


def test_a_full_evaluation_says_all():
    model, x, y = linear(4, 24, seed=1)
    other = linear(4, 1, seed=2)[0]
    report = evaluate(
        model, (x, y), "linf:0.006", grade="full", n=12, n_autoattack=6, surrogate=other
    )
    assert report.grade == "full" and len(report.rows) == len(GRADES["full"](linf(0.006), 36, 4))
    radius = matched(linf(0.006), "l2", 36)
    assert report.n == 12 and report["autoattack"].n == report[f"certified@{radius}"].n == 6
    for row in report.rows:
        assert row.interval[0] <= row.accuracy <= row.interval[1] and row.settings and row.classes
    natural = report["none"]
    curve = report.curve
    assert [eps for eps, _ in curve][:2] == [0.0, 0.0015] and curve[0][1] == natural
    assert curve[0][1].correct >= curve[-1][1].correct
    for eps, row in curve[1:]:  # the curve is what is true at each eps
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:12]
        exact = survivors(model, x[order], y[order], linf(eps))
        assert exact.sum() <= row.correct <= exact.sum() + 2  # CE may follow another class
    titles = [*report.tables()]
    assert len(titles) == 3 and "mean" in titles[0]
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert all(title in str(report) for title in titles)


def test_transfer_needs_a_model():
    model, x, y = linear(3, 8, seed=0)
    with pytest.raises(AutoLoRaError, match="surrogate="):
        evaluate(model, (x, y), "linf:0.01", ["transfer"])
    itself = evaluate(model, (x, y), "linf:0.01", ["pgd-20", "transfer"], surrogate=model)
    assert itself["transfer"].hits == itself["pgd-20"].hits


def test_corruptions_are_what_they_say():
    x = torch.full((3, 1, 48, 48), 0.5)
    noisy = corrupted(x, "gaussian_noise", 3)
    assert abs((noisy - x).std().item() - 0.08) < 0.004
    assert torch.equal(corrupted(x, "brightness", 2), x + 0.1)
    spots = corrupted(x, "impulse_noise", 5)
    assert abs((spots != x).float().mean().item() - 0.07) < 0.01
    large = torch.full((1, 1, 64, 64), 0.5)
    assert abs((corrupted(large, "gaussian_noise", 1) - large).std().item() - 0.08) < 0.004
    state = torch.get_rng_state()
    for name in CORRUPTIONS:
        assert torch.equal(corrupted(x, name, 4), corrupted(x, name, 4))
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are drawn


ATTACKS = ["none", "pgd-20x3-ce", "pgd-20x3-dlr", "pgd-20@l2:0.5", "pgd-20@l1:5", "contrast:3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graded") / "run"
    settings = dict(epochs=1, limit=220, lr=0.02, steps=1, progress=False)
    return finetune("robust_mini_gray", "digits", out=folder, **settings)


def parts(folder):
    logs = folder.glob("evaluations/*/events.jsonl")
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return [json.loads(line)["key"] for line in lines if line.endswith("}")]


def timeless(report):
    return replace(report, rows=tuple(replace(row, seconds=0.0) for row in report.rows))


def test_a_killed_evaluation_goes_on(run):
    command = [sys.executable, "-m", "autolora", "evaluate", str(run.path), "--n", "120"]
    command += ["--progress", "false", "--attacks", *ATTACKS]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for known in (1, 3):  # killed when so many parts are on the disk
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 100
            while len(parts(run.path)) < known and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert known <= len(parts(run.path)) < len(ATTACKS)
    before = parts(run.path)
    with open(next(run.path.glob("evaluations/*/events.jsonl")), "a") as log:
        log.write('{"event": "part", "key": "to')  # and the last line is torn
    found = run.evaluate(attacks=ATTACKS, n=120, progress=False)
    done = parts(run.path)
    assert done[: len(before)] == before and len({*done}) == len(done) == len(ATTACKS)
    whole = evaluate(run.model, digits_of_the_test(), "linf:0.1", ATTACKS, 120)
    assert timeless(replace(found, split="")) == timeless(whole)
    assert {row["attack"] for row in Run.open(run.path).report["evaluations"]} >= {*ATTACKS}


def digits_of_the_test():
    return load_task("digits").test


def test_other_weights_are_never_mixed_in(run):
    first = run.evaluate(attacks=["none", "contrast:5"], n=60, progress=False)
    bias = run.model.net.head.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[0] += 50
    with pytest.raises(AutoLoRaError, match="aren't those that its report.json is about"):
        run.evaluate(attacks=["none", "contrast:5"], n=60, progress=False)
    with torch.no_grad():
        bias.copy_(before)  # subtracting would round
    again = Run.open(run.path).evaluate(attacks=["none", "contrast:5"], n=60, progress=False)
    assert again == first


def test_the_pages_tell_grade_and_parameters(run):
    run.evaluate(attacks=["pgd-3@linf:0.05", "pgd-3@linf:0.2", "jpeg:1"], n=40, progress=False)
    page, card = ((run.path / name).read_text() for name in ("report.html", "card.md"))
    for text in (page, card):
        assert "Grade of the evaluation: quick" in text and "Accuracy over eps" in text
        assert "random_start False" in text.replace("\\", "") and "kWh" in text
    assert "Corrupted images" in page and "an estimate, not a measurement" in card


# --- other data -----------------------------------------------------------------------------------


def test_other_data_are_told_by_the_names_of_their_classes(run):
    task = load_task("digits")
    x, y = task.test.images(), task.test.y
    own = run.evaluate(attacks=["none"], progress=False)["none"]
    few = y >= 5  # named 5 to 9, and numbered from 0 on
    named = {"train_x": x[few].numpy(), "train_y": y[few].numpy() - 5, "classes": list("56789")}
    named |= {"test_x": named["train_x"], "test_y": named["train_y"]}
    found = run.evaluate(data=named, attacks=["none"], progress=False)["none"]
    assert found.correct == sum(own.classes[k][0] for k in range(5, 10)) and found.n == few.sum()
    whole = run.evaluate(data=(x, y), attacks=["none"], progress=False)["none"]
    assert whole.n == len(y) and whole.correct == own.correct  # none is held out of them
    with pytest.raises(AutoLoRaError, match="the class 'five', which is none of 0, 1"):
        run.evaluate(data=named | {"classes": ["five", *"6789"]}, progress=False)
    with pytest.raises(AutoLoRaError, match="are 3x16x16, the run's 1x16x16"):
        colour = x.expand(-1, 3, -1, -1).numpy() * np.array([1, 0.9, 0.8]).reshape(1, 3, 1, 1)
        run.evaluate(data=(colour.astype("float32"), y), progress=False)


def test_a_model_of_other_classes_lends_no_adversarial_images(run, tmp_path):
    other = shutil.copytree(run.path, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["classes"] = config["classes"][::-1]
    del config["sha256"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(AutoLoRaError, match="trained on other classes"):
        run.evaluate(attacks=["none", "transfer"], transfer=str(other), progress=False)
