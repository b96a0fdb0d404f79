"Our AutoAttack against the package by which others compare, and against itself in other company."

from functools import cache

import pytest
import torch
from torch import nn

from autolora.core.threat import linf, parse_threat
from autolora.data import load_task
from autolora.models import load_backbone
from autolora.models.parts import head_name
from autolora.robust import evaluate
from autolora.robust.attacks import is_right
from autolora.robust.ensemble import STANDARD, autoattack

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def digits():
    "A robust net with a head for the digits, and 48 images that it gets right."
    split = load_task("digits").train
    x, y = split.images(torch.arange(600)), split.y[:600]
    net = load_backbone("robust_mini_gray", 10, 1).eval().requires_grad_(False)
    head, features = net.get_submodule(head_name(net)), []
    hook = head.register_forward_pre_hook(lambda module, given: features.append(given[0]))
    with torch.no_grad():
        net(x)
        hook.remove()
        centred = features[0] - features[0].mean(0)
        targets = nn.functional.one_hot(y, 10).float() - 0.1
        head.weight.copy_(10 * torch.linalg.lstsq(centred, targets).solution.T)
        head.bias.copy_(-head.weight @ features[0].mean(0))
        right = is_right(net(x), y)
    return net, x[right][:48], y[right][:48]


def test_the_package_finds_the_same_images_standing():
    "In L-infinity; the three norms on six nets are benchmarks/autoattack.py's."
    pytest.importorskip("pyautoattack", reason="it comes with the extra autolora[autoattack]")
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 10)).eval()
    net.requires_grad_(False)
    x = torch.rand(24, 3, 8, 8)
    net[-1].weight.data *= 4
    net[-1].bias.data -= net(x).mean(0)  # every class occurs
    y = net(x).argmax(1)
    report = evaluate(net, (x, y), "linf:0.012", ["none", "autoattack", "pyautoattack"])
    ours, theirs = (int(report[name].hits, 16) for name in ("autoattack", "pyautoattack"))
    assert 2 < report["pyautoattack"].correct < 20
    assert (ours ^ theirs).bit_count() <= 1  # each draws its own random numbers
    assert report["autoattack"].settings["package"] == "autolora"


@pytest.mark.parametrize("part", STANDARD)
@pytest.mark.parametrize("threat", ["linf:0.06", "l2:0.5", "l1:2"])
def test_each_part_stays_within_the_budget_and_moves_only_what_falls(threat, part):
    net, x, y = digits()
    threat = parse_threat(threat)
    x_adv = autoattack(net, x[:12], y[:12], threat, [part])
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    assert (threat.project(x_adv, x[:12]) - x_adv).abs().max() < 1e-5
    moved = (x_adv != x[:12]).flatten(1).any(1)
    with torch.no_grad():
        assert torch.equal(moved, ~is_right(net(x_adv), y[:12]))
    assert moved.any()


def test_company_and_order_make_no_difference():
    net, x, y = digits()
    x, y = x[:9], y[:9]
    threat = linf(0.06)
    parts = ["apgd-ce", "apgd-t"]
    whole = autoattack(net, x, y, threat, parts, batch_size=64)
    order = torch.arange(9).flip(0)
    turned = autoattack(net, x[order], y[order], threat, parts, batch_size=7)[order]
    few = [
        autoattack(net, *pair, threat, parts) for pair in zip(x.split(4), y.split(4), strict=True)
    ]
    with torch.no_grad():
        standing = [is_right(net(images), y) for images in (whole, turned, torch.cat(few))]
    assert torch.equal(standing[0], standing[1]) and torch.equal(standing[0], standing[2])


def test_an_evaluation_that_was_broken_off_goes_on():
    net, x, y = digits()
    kept, seen = {}, []
    attacks = ["apgd-ce", "apgd-dlr"]

    def stop(attack, done, n, left):
        seen.append((attack, done, n))
        if attack == "apgd-ce" and done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(net, (x, y), "linf:0.06", attacks, kept=kept, progress=stop)
    before = len(kept)
    report = evaluate(net, (x, y), "linf:0.06", attacks, kept=kept)
    fresh = evaluate(net, (x, y), "linf:0.06", attacks)
    assert before and len(kept) > before and ("apgd-ce", 32, 48) in seen
    assert [row.hits for row in report.rows] == [row.hits for row in fresh.rows]
