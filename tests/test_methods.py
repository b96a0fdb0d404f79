"""Each method against an oracle or a limit in which it is another method; each once through `finetune`, interrupted and resumed."""

import pytest
import torch
from torch.nn import functional as F

from autolora.attacks import pgd
from autolora.backbones import load_backbone
from autolora.control import Control
from autolora.data import load_task
from autolora.history import Run
from autolora.losses import kl_divergence, trades_loss
from autolora.methods import METHODS, make_method
from autolora.rft import finetune
from autolora.threat import linf

THREAT, Y = linf(0.1), torch.arange(12) % 10


def fresh(seed=0):
    torch.manual_seed(seed)
    return load_backbone("robust_mini_gray", 10)


def images(n=12, seed=1): return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def make(name, model=None, **options):
    "The method, ready to train, on a seeded model."
    method = make_method(name, model or fresh(), THREAT, **({"steps": 1} | options))
    method.train()
    return method


def total(terms): return sum(terms.values())


def close(a, b, tolerance=1e-5): torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance, check_dtype=False)


def gradients(loss, model):
    "The gradient of `loss` for each of the model's parameters by name, None where it doesn't arrive."
    params = dict(model.named_parameters())
    return dict(zip(params, torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True), strict=True))


def same_gradients(a, b):
    assert a.keys() == b.keys()
    for name in a: close(a[name], b[name], 1e-4)


def state(module): return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def step(method, x, y, lr=0.05):
    "One step of the method's own optimiser; returns its loss."
    optimizer, loss = method.optimizer(lr), total(method.losses(x, y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# ---- TRADES, AFF

def test_trades_without_its_kl_term_is_natural_training():
    trades, natural = make("trades", beta=0), fresh().train()
    loss = F.cross_entropy(natural(images()), Y)
    same_gradients(gradients(total(trades.losses(images(), Y)), trades.model), gradients(loss, natural))


def test_trades_is_its_formula():
    trades, model = make("trades"), fresh().train()
    x_adv = make("trades").attack(images(), Y)
    close(total(trades.losses(images(), Y)), total(trades_loss(model(images()), model(x_adv), Y, 6.0)))


def test_the_kl_attack_of_trades_and_aff():
    model, x = fresh(), images()
    x_adv = make("trades", model, attack_loss="kl", steps=10).attack(x, Y)
    expected = pgd(model, x, Y, THREAT, loss="kl", generator=torch.Generator().manual_seed(0))
    close(x_adv, expected)
    assert METHODS["aff"](model, THREAT).attack_loss == "kl"
    by_ce = make("trades", model, steps=10).attack(x, Y)
    model.eval()
    assert kl_divergence(model(x), model(x_adv)) > kl_divergence(model(x), model(by_ce))


def test_aff_with_one_set_of_statistics_is_trades():
    "In eval mode nothing tells the two sets apart; then AFF is TRADES with its attack, gradients of shared weights included."
    aff, trades = make("aff"), make("trades", attack_loss="kl")
    aff.model.eval(); trades.model.eval()
    a, b = total(aff.losses(images(), Y)), total(trades.losses(images(), Y))
    close(a, b)
    found, expected = gradients(a, aff.model), gradients(b, trades.model)
    for name in found:
        if name.endswith("conv1.weight"): close(found[name], expected[name], 1e-4)


def test_aff_keeps_two_sets_of_statistics():
    aff, x = make("aff", steps=0), images()
    clean, adv = fresh().train(), fresh().train()
    x_adv = make("aff", steps=0).attack(x, Y)
    clean(x); adv(x_adv)
    aff.losses(x, Y)
    close(aff.clean.norms["net/stem/1"].running_mean, clean.net.stem[1].running_mean)
    close(aff.model.net.stem[1].running_mean, adv.net.stem[1].running_mean)


# ---- TWINS

def test_twins_with_equal_statistics_is_twice_trades():
    "An even batch, lam = 1, the adaptive net held in eval mode: CE over both halves is counted twice, KL once."
    twins, trades = make("twins"), make("trades", beta=3)
    twins.model.eval(); trades.model.eval()
    close(total(twins.losses(images(), Y)), 2 * total(trades.losses(images(), Y)))


def test_twins_without_the_frozen_half_is_at_on_the_adaptive_one():
    twins, model = make("twins_at", lam=0), fresh().train()
    x_adv = make("twins_at").attack(images(), Y)
    loss = F.cross_entropy(model(x_adv[6:]), Y[6:])
    same_gradients(gradients(total(twins.losses(images(), Y)), twins.model), gradients(loss, model))


@pytest.mark.parametrize("name", ["twins", "twins_at"])
def test_twins_halves_go_where_they_belong(name):
    twins, x = make(name), images(11)  # odd: five and six
    model = fresh()
    model.eval()
    frozen_answer = model(x[:5])
    before = state(twins.frozen)
    adaptive = fresh().train()
    path = twins.path(x)
    close(path[:5], frozen_answer); close(path[5:], adaptive(x[5:]))
    reached = [[bool(g.count_nonzero()) for g in gradients(half.square().sum(), twins.frozen).values()] for half in (path[:5], path[5:])]
    assert all(reached[0]) and not any(reached[1])
    step(twins, x, Y[:11])
    moved = {key for key, tensor in state(twins.frozen).items() if not torch.equal(tensor, before[key])}
    assert moved == {key for key in before if key.endswith(("weight", "bias"))}, "affine weights learn, pre-training statistics stay"
    assert not torch.equal(twins.model.net.stem[1].running_mean, fresh().net.stem[1].running_mean)


def test_the_weight_of_the_frozen_half():
    x = images()
    losses = {lam: total(make("twins", lam=lam).losses(x, Y)) for lam in (0, 0.4, 1)}
    close(losses[0.4] - losses[0], 0.4 * (losses[1] - losses[0]))


# ---- through `finetune`

class Interrupt(Control):
    "Breaks the run off in its second epoch, as Ctrl-C does."
    def before_step(self, learner):
        if learner.epoch == 1: raise KeyboardInterrupt


@pytest.mark.parametrize("name", METHODS)
def test_finetune_interrupted_resumed_and_opened_again(tmp_path, name):
    call = dict(backbone="robust_mini_gray", data="digits", method=name, epochs=2, limit=220, lr=0.02, progress=False)
    whole = finetune(**call, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt): finetune(**call, out=tmp_path / "broken", control=Interrupt())
    resumed = finetune(**call, out=tmp_path / "broken", resume=True)
    assert len(resumed.history) == 2 and {"angle", "ra", "sa", "loss"} <= set(resumed.history)
    for key, tensor in whole.model.state_dict().items(): assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    x = load_task("digits").test.images(slice(0, 8))
    with torch.no_grad(): close(Run.open(resumed.path).model(x), whole.model(x), 1e-4)
    assert [e["correct"] for e in whole.report["evaluations"]] == [e["correct"] for e in resumed.report["evaluations"]]
    assert (resumed.path / "report.html").is_file() and METHODS[name].label in (resumed.path / "card.md").read_text()
