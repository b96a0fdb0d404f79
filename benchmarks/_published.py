"""The published AutoLoRa step and epoch, plainly: written from the paper and from what its authors'
released code does.

Convolutions wrapped with A, B and a mode flag; requires_grad switched before each of the two
forwards; fp32, contiguous; PGD-10 in eval mode while every weight requires its gradient; lambda
from one more pass over the training data; PGD-10 on validation and test every epoch. Where the two
released programs differ, this follows the one for high resolution (behind the paper's tables),
except that every convolution but the stem has its branch, as in the paper. Two choices favour it:
the attack asks for the input's gradient only (`autograd.grad`), and images come from the same
loader as ours."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from autolora.models.parts import eval_mode, split_parameters
from autolora.train.learner import training_batches
from autolora.train.schedule import AutoLR


class LoRAConv(nn.Module):
    "A convolution with its low-rank change, used where `natural` is set."

    def __init__(self, conv, rank=8):
        super().__init__()
        self.conv, self.scale, self.natural, kernel = conv, 1 / rank, False, conv.kernel_size[0]
        self.A = nn.Parameter(torch.randn(rank * kernel, conv.in_channels * kernel))
        self.B = nn.Parameter(torch.zeros(conv.out_channels * kernel, rank * kernel))

    def forward(self, x):
        conv, weight = self.conv, self.conv.weight
        if self.natural:
            weight = weight + self.scale * (self.B @ self.A).view(weight.shape)
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def wrapped(model, rank):
    """A contiguous copy of `model` whose convolutions, but the first, are `LoRAConv`s, by dotted
    name."""
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][1:]
    found = {}
    for name in convs:
        path, _, last = name.rpartition(".")
        found[name] = LoRAConv(model.get_submodule(name), rank).to(next(model.parameters()).device)
        setattr(model.get_submodule(path), last, found[name])
    return model, found


class Published:
    "AutoLoRa as published, on a copy of `model`; `lam1`, `lam2` as at the start for ten classes."

    def __init__(self, model, threat, rank=8, lr=0.01, seed=0):
        self.head = set(split_parameters(model)[1])
        (self.model, self.convs), self.threat, self.lam1, self.lam2 = (
            wrapped(model, rank),
            threat,
            0.9,
            0.6,
        )
        self.rng = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4
        )
        self.schedule, self.best, self.best_test, self.ra_test = (
            AutoLR(lr, timing="released"),
            None,
            None,
            -1.0,
        )

    def require(self, natural=None):
        """Which parameters require a gradient: A, B and head on the natural path, all but A and B
        on the adversarial one, all (None) otherwise."""
        for name, parameter in self.model.named_parameters():
            low_rank = name.endswith((".A", ".B"))
            parameter.requires_grad_(natural is None or name in self.head or low_rank == natural)

    def path(self, x, natural):
        "Logits of one of the two paths."
        for conv in self.convs.values():
            conv.natural = natural
        return self.model(x)

    def attack(self, x, y, start=True):
        """PGD-10 on the adversarial path's cross-entropy, step size 2.5 eps / steps (2/255 of
        8/255)."""
        eps, x_adv = self.threat.eps, x.detach()
        if start:
            x_adv = (
                x
                + eps
                * (2 * torch.rand(x.shape, generator=self.rng, device=x.device, dtype=x.dtype) - 1)
            ).clamp(0, 1)
        with eval_mode(self.model), torch.enable_grad():
            for _ in range(10):
                x_adv = x_adv.detach().requires_grad_()
                (grad,) = torch.autograd.grad(F.cross_entropy(self.path(x_adv, False), y), x_adv)
                x_adv = torch.min(
                    torch.max(x_adv.detach() + eps / 4 * grad.sign(), x - eps), x + eps
                ).clamp(0, 1)
        return x_adv.detach()

    def terms(self, x, x_adv, y):
        "The three weighted terms of the paper's eq. 5."
        self.require(natural=True)
        nat = self.path(x, True)
        self.require(natural=False)
        adv = self.path(x_adv, False)
        self.require()
        kl = nn.KLDivLoss(reduction="sum")(F.log_softmax(adv, 1), F.softmax(nat, 1)) / len(x)
        return {
            "ce_nat": self.lam1 * F.cross_entropy(nat, y),
            "ce_adv": (1 - self.lam1) * F.cross_entropy(adv, y),
            "kl": self.lam2 * kl,
        }

    def step(self, x, y):
        "One training step."
        self.model.train()
        terms = self.terms(x, self.attack(x, y), y)
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def natural_accuracy(self, batches):
        "The share of `batches` that the low-rank path classifies correctly, in eval mode."
        with eval_mode(self.model):
            hits = torch.cat([self.path(x, True).argmax(1) == y for x, y in batches])
        return hits.float().mean().item()

    @torch.no_grad()
    def robust_accuracy(self, split, device):
        "Standard accuracy and accuracy under PGD-10 without a random start, on the whole `split`."
        right, robust = [], []
        with eval_mode(self.model):
            for x, y in split.batches(128):
                x, y = x.to(device), y.to(device)
                right.append(self.path(x, False).argmax(1) == y)
                robust.append(self.path(self.attack(x, y, start=False), False).argmax(1) == y)
        return torch.cat(right).float().mean().item(), torch.cat(robust).float().mean().item()

    def epoch(self, task, order, device, batch_size=128):
        "One epoch: training, lambda, validation, the schedule's decision, test."
        for x, y in plain_batches(task, batch_size, order, device):
            self.step(x, y)
        sa = self.natural_accuracy(plain_batches(task, batch_size, order, device))
        self.lam1, self.lam2 = 1 - sa, 6 * sa
        decision = self.schedule.step(self.robust_accuracy(task.val, device)[1])
        if decision.new_best:
            self.best = copy.deepcopy(self.model.state_dict())
        if decision.restore:
            self.model.load_state_dict(self.best)
        for group in self.optimizer.param_groups:
            group["lr"] = decision.lr
        ra = self.robust_accuracy(task.test, device)[1]
        if ra > self.ra_test:
            self.ra_test, self.best_test = ra, copy.deepcopy(self.model.state_dict())


def plain_batches(task, batch_size, order, device):
    "The training batches that ours gets, contiguous."
    for x, y in training_batches(task, batch_size, order, device):
        yield x.contiguous(), y


@torch.no_grad()
def same_factors(branch, published):
    "Give the published copy the factors of our `branch`."
    for name, conv in published.convs.items():
        key = f"{name}.weight".replace(".", "/")
        conv.A.copy_(branch.A[key])
        conv.B.copy_(branch.B[key])


def named_gradients(method, published):
    "Pairs (our gradient, the published copy's), for every parameter."
    plain = dict(published.model.named_parameters())
    for name, parameter in method.model.named_parameters():
        yield (
            parameter.grad,
            plain[name if name in plain else name.replace(".weight", ".conv.weight")].grad,
        )
    for name, conv in published.convs.items():
        key = f"{name}.weight".replace(".", "/")
        yield method.branch.A[key].grad, conv.A.grad
        yield method.branch.B[key].grad, conv.B.grad


def disagreement(method, published, x, x_adv, y):
    """The largest relative differences `(of the loss terms, of the gradients)` between our `method`
    and the `published` step.

    Both on the same images, with the same weights; a gradient's difference is its largest entry
    over the largest entry of ours."""
    method.train()
    published.model.train()
    ours, theirs = (
        method.loss(method.natural_path(x), method.path(x_adv), y),
        published.terms(x, x_adv, y),
    )
    terms = max((abs(ours[k] - theirs[k]) / abs(ours[k]).clamp_min(1e-12)).item() for k in ours)
    for p in [*method.parameters(), *published.model.parameters()]:
        p.grad = None
    (sum(ours.values()) + sum(theirs.values())).backward()
    return terms, max(
        ((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item()
        for a, b in named_gradients(method, published)
    )
