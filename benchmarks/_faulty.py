"""Models that look robust and aren't, each with the alarm that has to name it; and the honest net
that most of them are made of."""

import functools
import random

import torch
from torch import nn
from torch.nn import functional as F

from autolora.data.loading import load_task


@functools.cache
def digits():
    "`(net, x, y)`: a small net trained on scikit-learn's digits without any defence, test images."
    task = load_task("digits")
    x, y = task.train.images(), task.train.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(15):
            for part in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(net(x[part]), y[part]).backward()
                optimizer.step()
    return net.eval(), task.test.images(), task.test.y


class Around(nn.Module):
    "`net` with something before it and something behind it."

    def __init__(self, net, before=lambda x: x, behind=lambda z: z):
        super().__init__()
        self.net = net
        self.before = before
        self.behind = behind

    def forward(self, x):
        return self.behind(self.net(self.before(x)))


class Backwards(torch.autograd.Function):
    "The identity, with the gradient turned round."

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Ripple(nn.Module):
    """The margin of class 0 as a function of the mean pixel m: a dip just beside 0.5, a ridge, then
    deep down at 0.6."""

    def forward(self, x):
        t = (x.flatten(1).mean(1) - 0.5) * 10
        ridge = torch.where(t < 0.8, 0.7 + 2 * (t - 0.3), 1.7 - 20 * (t - 0.8))
        margin = torch.where(t < 0.3, 1 - t, ridge)
        return torch.stack([margin, -margin], 1)


class Valleys(nn.Module):
    """The margin of class 0 as a function of the mean pixel m: a shallow valley above 0.5, where
    the model is right, a deep one below, and a ridge between them: the start decides."""

    def forward(self, x):
        t = (x.flatten(1).mean(1) - 0.5) * 10
        margin = torch.where(t > -0.05, 0.3 + (t - 0.5).abs(), 1 + 3 * t)
        return torch.stack([margin, -margin], 1)


class Alternates(nn.Module):
    "`net` that keeps count of its calls, and answers the other way round each second time."

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (1 if self.calls % 2 else -1)


def batch_statistics(net):
    "`net` with BatchNorm that always normalises by the batch at hand."
    import copy

    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return net.eval()


def faulty():
    "Name -> (the alarm that must be raised, the model, images, labels, threat)."
    net, x, y = digits()
    steps = lambda x: (x * 15).round() / 15
    shattered = lambda x: x + 0.02 * torch.sin(2000 * x)
    gamma = lambda x: x ** (1 / 2.2)
    root = lambda z: z - 1e-3 * (z - z.detach()).abs().sqrt()
    noise = lambda x: x + 0.15 * torch.randn_like(x)
    coin = lambda p: lambda x: x.roll(1, 3) if torch.rand(()) < p else x
    dice = random.Random(0)
    pythons_coin = lambda x: x.roll(1, 3) if dice.random() < 0.5 else x
    together = lambda x: (x - x.mean()) / x.std() * 0.35 + 0.3
    grey = torch.full((32, 1, 4, 4), 0.5)
    zeros = torch.zeros(32, dtype=torch.long)
    digit = (x, y)
    found = {
        "rounding to 16 levels": ("zero_gradients", Around(net, steps), *digit, "linf:0.1"),
        "logits x 8": ("tiny_gradients", Around(net, behind=lambda z: 8 * z), *digit, "l2:0.8"),
        "gamma of black": ("no_gradients", Around(net, gamma), *digit, "l2:0.1"),
        "root of zero": ("no_gradients", Around(net, behind=root), *digit, "linf:0.1"),
        "ripple": ("single_step_stronger", Ripple(), grey, zeros, "linf:0.1"),
        "shattered": ("luck_stronger", Around(net, shattered), *digit, "linf:0.1"),
        "backwards": ("black_box_stronger", Around(net, Backwards.apply), *digit, "linf:0.1"),
        "backwards, L2": ("loss_stays", Around(net, Backwards.apply), *digit, "l2:0.8"),
        "rounding to 4 levels": (
            "survives_everything",
            Around(net, lambda x: (x * 3).round() / 3),
            *digit,
            "linf:0.1",
        ),
        "two valleys": ("starts_differ", Valleys(), grey[:, :, :2, :2], zeros, "linf:0.1"),
        "noise": ("answers_differ", Around(net, noise), *digit, "linf:0.1"),
        "a coin for the batch": ("answers_differ", Around(net, coin(0.2)), *digit, "linf:0.1"),
        "a rare coin": ("answers_differ", Around(net, coin(0.08)), *digit, "linf:0.1"),
        "Python's coin": ("answers_differ", Around(net, pythons_coin), *digit, "linf:0.1"),
        "the sign alternates": ("answers_differ", Alternates(net), *digit, "linf:0.1"),
        "standardised together": ("batch_matters", Around(net, together), *digit, "linf:0.1"),
        "statistics of the batch": ("batch_matters", batch_statistics(net), *digit, "linf:0.1"),
        "softmax": (
            "probabilities",
            Around(net, behind=lambda z: z.softmax(1)),
            *digit,
            "linf:0.1",
        ),
        "sigmoid": ("probabilities", Around(net, behind=torch.sigmoid), *digit, "linf:0.1"),
    }
    return {name: (alarm, model.eval(), *rest) for name, (alarm, model, *rest) in found.items()}


@functools.cache
def honest():
    "Name -> (model, images, labels, threat): nets of ours without such a fault."
    from autolora.models.backbones import load_backbone
    from autolora.models.parts import entering_head, head_name

    net, x, y = digits()
    task = load_task("digits")
    found = {
        "plain net on digits": (net, x, y, "linf:0.1"),
        "plain net on digits, L2": (net, x, y, "l2:0.8"),
        "plain net on digits, L1": (net, x, y, "l1:5"),
        "linear classifier": (nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), x, y, "linf:0.02"),
    }
    robust = load_backbone("robust_mini_gray", 10).eval()
    backbones = {"robust_mini_gray": robust, "linear": found["linear classifier"][0]}
    with torch.no_grad():
        for model in backbones.values():  # the head, by least squares
            with entering_head(model) as inputs:
                model(task.train.images())
            features = F.pad(inputs[0].double(), (0, 1), value=1.0)
            targets = 10 * F.one_hot(task.train.y, 10).double() - 5
            ridge = features.T @ features + torch.eye(features.shape[1])
            weight = torch.linalg.solve(ridge, features.T @ targets).T.float()
            head = model.get_submodule(head_name(model))
            head.weight.copy_(weight[:, :-1])
            head.bias.copy_(weight[:, -1])
    for threat in ("linf:0.1", "l2:0.8", "l1:5"):
        found[f"robust_mini_gray, {threat}"] = (robust, x, y, threat)
    return found
