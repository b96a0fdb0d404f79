"""The benchmarks' own honesty: the published step they time is the same step as ours, and what was
not measured is said to be so.

Nothing is timed here."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autolora.core.threat import linf
from autolora.data.loading import load_task
from autolora.methods.registry import make_method
from autolora.models.backbones import load_backbone
from autolora.robust.attacks import pgd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from _harness import ratios, turns  # noqa: E402
from _material import images, photos  # noqa: E402
from _published import LoRAConv, Published, disagreement, same_factors  # noqa: E402
from _report import TARGETS, render, write_results  # noqa: E402


@pytest.fixture()
def pair():
    "Our AutoLoRa and the published one on the same weights, in float64, and a batch."
    torch.manual_seed(0)
    x, y = images(8, size=16)
    model = load_backbone("robust_mini_rgb", 10).double()
    method = make_method("autolora_paper", model, linf("8/255"))
    for B in method.branch.B.values():
        nn.init.normal_(B, std=0.01)
    published = Published(model, method.threat)
    published.model.double()
    same_factors(method.branch, published)
    method.lam1 = published.lam1 = 0.4
    method.lam2 = published.lam2 = 3.6
    return method, published, x.double(), y


def test_the_published_step_is_ours(pair):
    method, published, x, y = pair
    terms, gradients = disagreement(method, published, x, published.attack(x, y), y)
    assert terms < 1e-8 and gradients < 1e-8


def test_a_step_with_other_weights_is_not_ours(pair):
    method, published, x, y = pair
    next(iter(published.convs.values())).scale *= 2
    assert min(disagreement(method, published, x, x, y)) > 1e-4


def test_the_published_attack_is_ours(pair):
    method, published, x, y = pair
    ours = pgd(method.model, x, y, method.threat, steps=10, random_start=False)
    theirs = published.attack(x, y, start=False)
    assert (
        (ours - theirs).abs() < 1e-5
    ).double().mean() > 0.999  # a gradient of almost zero may have either sign
    assert (
        (theirs - x).abs().max() <= method.threat.eps + 1e-9
        and 0 <= theirs.min()
        and theirs.max() <= 1
    )


def test_gradients_reach_what_the_paper_says(pair):
    _, published, x, y = pair
    published.model.train()
    terms = published.terms(x, x, y)
    terms["ce_nat"].backward(retain_graph=True)
    reached = {
        name
        for name, p in published.model.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert (
        reached
        == {name for name, _ in published.model.named_parameters() if name.endswith((".A", ".B"))}
        | published.head
    )


def test_the_published_epoch_takes_lambda_from_the_low_rank_path():
    x, y = photos(400, 16, 2)
    task = load_task((x, y))
    published = Published(load_backbone("robust_mini_rgb", 2), task.threat)
    before = copy.deepcopy(published.model.state_dict())
    published.epoch(task, torch.Generator().manual_seed(0), torch.device("cpu"), batch_size=64)
    assert 0 <= published.lam1 <= 1 and published.lam2 == pytest.approx(6 * (1 - published.lam1))
    assert published.schedule.epoch == 1 and published.best_test is not None
    assert (
        sum(isinstance(m, LoRAConv) for m in published.model.modules()) == len(published.convs) > 0
    )
    assert any(not torch.equal(before[k], v) for k, v in published.model.state_dict().items())


def test_contestants_take_turns():
    order = []
    times = turns({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, warm=0)
    assert "".join(order) == "abcbcacab" and all(len(seconds) == 3 for seconds in times.values())
    assert ratios({"ours": [1.0, 2.0], "peer": [2.0, 6.0]}, "ours", "peer") == [2.0, 3.0]


def section(**more):
    return {
        "title": "T",
        "times": {},
        "work": None,
        "ratios": {},
        "columns": {},
        "table": [],
        "missing": {},
        "notes": [],
        "machine": "M",
        "versions": {"torch": "2"},
        "date": "D",
        "commit": "C",
    } | more


def test_results_say_what_was_measured_and_what_not(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    sections = [
        section(
            times={"slow": [3.0, 4.0, 5.0], "fast": [1.0, 1.0, 2.0]},
            work=10,
            ratios={"pgd_torchattacks": [2.0, 2.5, 3.0], "memory_resnet18": [1.1]},
            missing={"peer": "won't import"},
        )
    ]
    (folder / "attacks.json").write_text(json.dumps(sections))
    write_results(folder)
    text = (tmp_path / "results.md").read_text()
    assert (
        "| at least 2.2 | 2.5 (2 to 3, n=3) | yes |" in text
        and "| at most 1 | 1.1 (once) | no |" in text
    )
    assert (
        text.count("not measured |") == len(TARGETS) - 2
        and "peer: not measured (won't import)" in text
    )
    assert text.index("| fast | 1 (1 to 2, n=3) | 10 |") < text.index("| slow |")
    assert render([]).count("not measured |") == len(TARGETS)


def test_committed_results_are_rendered():
    sections = [
        s
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
        for s in json.loads(path.read_text())
    ]
    assert (ROOT / "benchmarks" / "results.md").read_text() == render(sections), (
        "results.md is not what its JSON files say: run a benchmark"
    )
