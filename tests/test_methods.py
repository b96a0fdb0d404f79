"""Each method against an oracle or a limit in which it is another method; each once through
`finetune`, interrupted and resumed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autolora.core.errors import AutoLoRaError
from autolora.core.machine import import_torchvision
from autolora.core.threat import linf
from autolora.data.loading import load_task
from autolora.methods.autolora import AutoLoRa, PublishedAutoLoRa
from autolora.methods.base import AT, TRADES
from autolora.methods.contrastive import ACL, AIR
from autolora.methods.registry import METHODS, make_method
from autolora.methods.rivals import robust_criticality
from autolora.models.backbones import load_backbone
from autolora.models.parametrisations import PARAMETRISATIONS
from autolora.models.views import frozen_call
from autolora.robust.attacks import pgd
from autolora.robust.losses import autolora_loss, kl_divergence, trades_loss
from autolora.runs.finetuning import finetune
from autolora.runs.folder import Run, create_run
from autolora.testing import check_method
from autolora.train.callbacks import Control
from autolora.train.learner import Learner, count_correct, set_lr, train_step

THREAT, Y = linf(0.1), torch.arange(12) % 10


def fresh(seed=0):
    torch.manual_seed(seed)
    return load_backbone("robust_mini_gray", 10)


def images(n=12, seed=1):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def make(name, model=None, **settings):
    "The method, ready to train, on a seeded model."
    method = make_method(name, model or fresh(), THREAT, **({"steps": 1} | settings))
    method.train()
    return method


def short_run(out, method="autolora", **given):
    "`finetune` for two epochs on a few digits, in the folder `out`."
    short = dict(epochs=2, limit=220, lr=0.02, steps=1, progress=False, test=False, angles=False)
    return finetune("robust_mini_gray", "digits", method, out=out, **short | given)


def at_progress(share):
    "What a method looks at in a learner before a step."
    return SimpleNamespace(progress=share)


def total(terms):
    return sum(terms.values())


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance, check_dtype=False
    )


def gradients(loss, model):
    """The gradient of `loss` for each of the model's parameters by name, None where it doesn't
    arrive."""
    params = dict(model.named_parameters())
    return dict(
        zip(
            params,
            torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True),
            strict=True,
        )
    )


def same_gradients(a, b):
    assert a.keys() == b.keys()
    for name in a:
        close(a[name], b[name], 1e-4)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def step(method, x, y, lr=0.05):
    "One step of the method's own optimiser; returns its loss."
    optimizer, loss = method.optimizer(lr), total(method.losses(x, y))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# ---- the contract


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The folder of a run of one epoch."
    task = load_task("digits", limit=220)
    run = create_run(tmp_path_factory.mktemp("rift") / "run", {"seed": 0})
    method = make("at")
    Learner(method, task, run, method.schedule(0.02, 1), 1, 40).fit()
    return run.path


@pytest.mark.parametrize("cls", [*METHODS.values(), ACL, AIR], ids=lambda cls: cls.name)
def test_every_method_keeps_the_contract(cls, request):
    own = {"run": str(request.getfixturevalue("finished"))} if cls.name == "rift" else {}
    check_method(cls, steps=1, **own)


@pytest.mark.parametrize(
    "settings",
    [
        *({"route": route} for route in ("branch", "stop", "shared")),
        *({"kl": kl} for kl in ("detached", "none")),
        *({"parametrisation": name} for name in PARAMETRISATIONS),
    ],
    ids=str,
)
def test_autolora_keeps_it_with_all_its_switches(settings):
    check_method(AutoLoRa, steps=1, **settings)


def test_full_lora_keeps_it_on_a_vit():
    net = vit()
    net.conv_proj = nn.Conv2d(1, 16, 4, 4)  # the digits are grey
    check_method(METHODS["full_lora"], net, steps=1)


class Leaky(PublishedAutoLoRa):
    def natural_path(self, x):
        return self.model(x)


class Aimless(PublishedAutoLoRa):
    def natural_path(self, x):
        return self.branch(x).detach().requires_grad_()


class HeadOnly(TRADES):
    def natural_path(self, x):
        return frozen_call(self.model, x)


class Weak(AT):
    def path(self, x):
        return frozen_call(self.model, x)


class Mixed(TRADES):
    def loss(self, nat, adv, y):
        terms = super().loss(nat, adv, y)
        return {"ce_nat": terms["ce_nat"] + 0.1 * adv.mean(), "kl": terms["kl"]}


class Constant(TRADES):
    def loss(self, nat, adv, y):
        return super().loss(nat, adv, y) | {"ce_nat": torch.ones(())}


class Swapped(TRADES):
    natural = ("kl",)
    adversarial = ("ce_nat",)


class Undeclared(TRADES):
    def loss(self, nat, adv, y):
        return super().loss(nat, adv, y) | {"size": 0.01 * adv.square().mean()}


class Twice(TRADES):
    other = ("kl",)


class Never(TRADES):
    other = ("size",)


class Vector(TRADES):
    def loss(self, nat, adv, y):
        return super().loss(nat, adv, y) | {"kl": adv.sum(1)}


class Infinite(TRADES):
    def loss(self, nat, adv, y):
        return super().loss(nat, adv, y) | {"kl": adv.sum() / 0}


class Idle(TRADES):
    def build(self, task):
        self.beside["idle"] = nn.Linear(2, 2)


class Homeless(TRADES):
    def build(self, task):
        self.shift = nn.Parameter(torch.zeros(()))

    def parameters(self):
        return [*super().parameters(), self.shift]

    def path(self, x):
        return super().path(x) + self.shift


class Careless(AT):
    def attack(self, x, y):
        self.model.eval()
        return x


class Forgetful(PublishedAutoLoRa):
    remembers = ()


class Amnesic(AT):
    def load_state_dict(self, state):
        pass


class Nameless(AT):
    label = ""


@pytest.mark.parametrize(
    "cls, words",
    [
        (Leaky, r"'ce_nat' leaks into the feature extractor \(net.stem.0.weight\)"),
        (Aimless, "'ce_nat' reaches neither a branch nor the head"),
        (HeadOnly, "'ce_nat' doesn't reach the feature extractor"),
        (Weak, "'ce_adv' reaches nothing that is trained for it"),
        (Mixed, "'ce_nat' depends on the adversarial logits"),
        (Constant, "'ce_nat' doesn't depend on the natural logits"),
        (Swapped, "'ce_nat' doesn't depend on adversarial logits"),
        (Undeclared, "'size' is declared in none"),
        (Twice, "'kl' is declared more than once"),
        (Never, "'size' is declared, but"),
        (Vector, "'kl' must be a finite scalar"),
        (Infinite, "'kl' must be a finite scalar"),
        (Idle, "idle.weight, which no term reaches"),
        (Homeless, r"a tensor of shape \(\), which is in none of modules"),
        (Careless, "changes modes"),
        (Forgetful, "trains to unequal weights"),
        (Amnesic, "doesn't bring back"),
        (Nameless, "its label must be"),
        (nn.Linear, "derived from Method"),
    ],
)
def test_a_breach_of_the_contract_is_told(cls, words):
    with pytest.raises(AutoLoRaError, match=words):
        check_method(cls, **{"steps": 1} if cls is not nn.Linear else {})


# ---- TRADES, AFF


def test_trades_without_its_kl_term_is_natural_training():
    trades, natural = make("trades", beta=0), fresh().train()
    loss = F.cross_entropy(natural(images()), Y)
    same_gradients(
        gradients(total(trades.losses(images(), Y)), trades.model), gradients(loss, natural)
    )


def test_trades_is_its_formula():
    trades, model = make("trades"), fresh().train()
    x_adv = make("trades").attack(images(), Y)
    close(
        total(trades.losses(images(), Y)), total(trades_loss(model(images()), model(x_adv), Y, 6.0))
    )


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
    """In eval mode nothing tells the two sets apart; then AFF is TRADES with its attack, gradients
    of shared weights included."""
    aff, trades = make("aff"), make("trades", attack_loss="kl")
    aff.model.eval()
    trades.model.eval()
    a, b = total(aff.losses(images(), Y)), total(trades.losses(images(), Y))
    close(a, b)
    found, expected = gradients(a, aff.model), gradients(b, trades.model)
    for name in found:
        if name.endswith("conv1.weight"):
            close(found[name], expected[name], 1e-4)


def test_aff_keeps_two_sets_of_statistics():
    aff, x = make("aff", steps=1), images()
    clean, adv = fresh().train(), fresh().train()
    x_adv = make("aff", steps=1).attack(x, Y)
    clean(x)
    adv(x_adv)
    aff.losses(x, Y)
    close(aff.clean.norms["net/stem/1"].running_mean, clean.net.stem[1].running_mean)
    close(aff.model.net.stem[1].running_mean, adv.net.stem[1].running_mean)


# ---- TWINS


def test_twins_with_equal_statistics_is_twice_trades():
    """An even batch, lam = 1, the adaptive net held in eval mode: CE over both halves is counted
    twice, KL once."""
    twins, trades = make("twins"), make("trades", beta=3)
    twins.model.eval()
    trades.model.eval()
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
    close(path[:5], frozen_answer)
    close(path[5:], adaptive(x[5:]))
    reached = [
        [bool(g.count_nonzero()) for g in gradients(half.square().sum(), twins.frozen).values()]
        for half in (path[:5], path[5:])
    ]
    assert all(reached[0]) and not any(reached[1])
    step(twins, x, Y[:11])
    moved = {
        key for key, tensor in state(twins.frozen).items() if not torch.equal(tensor, before[key])
    }
    assert moved == {key for key in before if key.endswith(("weight", "bias"))}, (
        "affine weights learn, pre-training statistics stay"
    )
    assert not torch.equal(twins.model.net.stem[1].running_mean, fresh().net.stem[1].running_mean)


def test_the_weight_of_the_frozen_half():
    x = images()
    losses = {lam: total(make("twins", lam=lam).losses(x, Y)) for lam in (0, 0.4, 1)}
    close(losses[0.4] - losses[0], 0.4 * (losses[1] - losses[0]))


# ---- SLF, ALF, LoRA-AT, FullLoRA


@pytest.mark.parametrize("name", ["slf", "alf"])
def test_a_frozen_feature_extractor_stays_bit_for_bit(name):
    method = make(name)
    before = state(method.model)
    for _ in range(3):
        step(method, images(), Y)
    moved = {
        key for key, tensor in state(method.model).items() if not torch.equal(tensor, before[key])
    }
    assert moved == {"net.head.weight", "net.head.bias"}


def test_slf_is_logistic_regression_on_the_features():
    method, x = make("slf"), images()
    found = {}
    method.model.net.head.register_forward_hook(
        lambda module, args, out: found.update(z=args[0].detach())
    )
    loss = total(method.losses(x, Y))
    logits = F.linear(found["z"], method.model.net.head.weight, method.model.net.head.bias)
    close(loss, F.cross_entropy(logits, Y))
    residual = (logits.softmax(1) - F.one_hot(Y, 10)) / len(Y)
    close(gradients(loss, method.model)["net.head.weight"], residual.T @ found["z"])


def test_alf_is_at_for_the_head():
    alf, at = make("alf"), make("at")
    at.model.eval()
    a, b = total(alf.losses(images(), Y)), total(at.losses(images(), Y))
    close(a, b)
    for name, gradient in gradients(a, alf.model).items():
        if "head" in name:
            close(gradient, gradients(b, at.model)[name], 1e-4)
        else:
            assert gradient is None


def test_lora_at_keeps_a_plain_model_with_the_factors_merged():
    method = make("lora_at")
    start = state(method.model)
    for _ in range(3):
        step(method, images(), Y)
    method.after_train(None)
    for name, tensor in method.model.state_dict().items():
        key = name.replace(".", "/")
        if name in method.lora.names:
            close(
                tensor,
                start[name] + (method.lora.B[key] @ method.lora.A[key]).view(tensor.shape) / 8,
            )
        elif "head" not in name:
            assert torch.equal(tensor, start[name]), name
    assert not torch.equal(
        method.model.net.blocks[0].conv1.weight, start["net.blocks.0.conv1.weight"]
    )
    assert type(method.model) is type(fresh()) and all(
        p.requires_grad for p in method.model.parameters()
    )


def test_lora_at_before_its_first_step_is_alf():
    lora, alf = make("lora_at"), make("alf")
    a, b = total(lora.losses(images(), Y)), total(alf.losses(images(), Y))
    close(a, b)
    close(
        gradients(a, lora.model)["net.head.weight"],
        gradients(b, alf.model)["net.head.weight"],
        1e-4,
    )
    grads = gradients(a, lora.lora)
    assert all(bool(g.count_nonzero()) == name.startswith("B") for name, g in grads.items())


def vit():
    torch.manual_seed(0)
    model = import_torchvision("models").VisionTransformer(
        16, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


def test_full_lora_trains_only_what_it_adds_and_the_head():
    net, x = vit(), torch.rand(12, 3, 16, 16)
    before = state(net)
    method = make("full_lora", net)
    close(method.model(x), net(x))
    for _ in range(3):
        step(method, x, Y)
    assert {
        key for key, tensor in net.state_dict().items() if not torch.equal(tensor, before[key])
    } == {"heads.head.weight", "heads.head.bias"}
    assert all(factor.count_nonzero() for factor in method.model.adapter.B.values())
    assert any((factor != 1).any() for factor in method.model.adapter.G.values()), (
        "the LayerNorms learn"
    )
    with torch.no_grad():
        assert (method.model(x) - net(x)).abs().max() > 1e-3
    places = {name.split(".")[-2] for name in method.model.adapter.names}
    assert {"conv_proj", "self_attention", "out_proj", "0", "3"} <= places, (
        "patch embedding, attention, feed-forward"
    )


def test_full_lora_on_a_vit_through_finetune(tmp_path):
    torch.manual_seed(0)
    x, y = torch.rand(330, 3, 16, 16), torch.arange(330) % 4
    call = dict(
        method="full_lora",
        epochs=1,
        lr=0.05,
        threat="linf:0.03",
        progress=False,
        steps=1,
        out=tmp_path / "run",
    )
    run = finetune(vit(), (x, y), **call)
    with torch.no_grad():
        close(Run.open(run.path, vit()).model(x[:4]), run.model.cpu()(x[:4]), 1e-4)
    assert any(name.startswith("adapter.B") for name in run.model.state_dict())


# ---- AR-AT


def test_ar_at_without_invariance_is_two_cross_entropies():
    method, nat_net, adv_net = make("ar_at", gamma=0), fresh().train(), fresh().train()
    x, alpha = images(), 0.3
    method.weigh(alpha)
    x_adv = make("ar_at").attack(x, Y)
    expected = alpha * F.cross_entropy(adv_net(x_adv), Y) + (1 - alpha) * F.cross_entropy(
        nat_net(x), Y
    )
    close(total(method.losses(x, Y)), expected)


def test_ar_at_with_alpha_one_and_no_invariance_is_at():
    method, at = make("ar_at", gamma=0), make("at")
    method.weigh(1.0)
    a, b = total(method.losses(images(), Y)), total(at.losses(images(), Y))
    close(a, b)
    same_gradients(gradients(a, method.model), gradients(b, at.model))


def test_the_invariance_term_pulls_the_adversarial_side_only():
    method, x = make("ar_at"), images()
    term = method.losses(x, Y)["invariance"]
    assert 0 <= term <= 2 * method.gamma
    assert all(g is None for g in gradients(term, method.clean).values())
    assert all(g is not None for g in gradients(term, method.predictors).values())
    reached = {name for name, g in gradients(term, method.model).items() if g is not None}
    assert "net.stem.0.weight" in reached and not any("head" in name for name in reached)
    same = torch.rand(3, 4)
    from autolora.robust.losses import invariance

    close(invariance(2 * same, same), 0.0)
    close(invariance(-same, same), 2.0)


# ---- RAMP


def epoch(method, batches):
    method.train()
    optimizer = method.optimizer(0.05)
    for x, y in batches:
        loss = total(method.losses(x, y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.after_train(None)


def test_ramp_with_b_zero_is_at():
    batches = [(images(seed=i), Y) for i in range(3)]
    ramp, at = make("ramp", b=0), make("at")
    epoch(ramp, batches)
    epoch(at, batches)
    for name, tensor in ramp.model.state_dict().items():
        close(tensor, at.model.state_dict()[name])


def test_ramp_projects_the_natural_change_tensor_by_tensor():
    batches = [(images(seed=i), Y) for i in range(3)]
    ramp, at, nat = make("ramp"), make("at"), make("eps_schedule")
    nat.before_step(at_progress(0.0))  # no adversary yet: natural training
    start = state(ramp.model)
    epoch(ramp, batches)
    epoch(at, batches)
    epoch(nat, batches)
    for name, tensor in ramp.model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        g, n = at.model.state_dict()[name] - start[name], nat.model.state_dict()[name] - start[name]
        dot = (g * n).sum() / (g.norm() * n.norm()).clamp_min(1e-12)
        close(tensor, start[name] + 0.5 * g + 0.5 * max(dot, torch.tensor(0.0)) * n, 1e-4)
    assert (ramp.model.net.stem[1].running_var > 0).all()


# ---- epsilon scheduling


def test_a_ramp_of_no_length_is_the_plain_method():
    scheduled, at = make("eps_schedule", ramp_from=0, ramp_to=0), make("at")
    for progress in (0.0, 0.4, 0.99):
        scheduled.before_step(at_progress(progress))
        at.before_step(at_progress(progress))
        close(total(scheduled.losses(images(), Y)), total(at.losses(images(), Y)))
        assert scheduled.settled


def test_without_an_adversary_it_is_natural_training():
    scheduled, natural = make("eps_schedule"), fresh().train()
    scheduled.before_step(at_progress(0.1))
    close(total(scheduled.losses(images(), Y)), F.cross_entropy(natural(images()), Y))
    scheduled.before_step(at_progress(0.5))
    assert (
        scheduled.attack(images(), Y) - images()
    ).abs().max() <= 0.05 + 1e-6 and not scheduled.settled


def test_epochs_below_the_whole_eps_never_steer(tmp_path):
    """AutoLoRa with a ramp: no cut and no way back before the full eps, and the epoch that is kept
    ended there."""
    run = short_run(tmp_path / "run", epochs=6, lr=0.05, ramp_from=0.3, ramp_to=0.7)
    ramped = run.history[run.history.epoch <= 4]
    assert ramped.new_best.all() and ramped.reason.isna().all() and (ramped.lr == 0.05).all()
    assert run.last("end")["best_epoch"] >= 5


# ---- RiFT


def test_rift_ends_between_the_robust_and_the_tuned_weights(tmp_path):
    first = short_run(tmp_path / "first", "at")
    robust = first.model.state_dict()
    second = short_run(tmp_path / "second", "rift", run=first.path, steps=10)
    moved = {
        name
        for name, tensor in second.model.state_dict().items()
        if not torch.equal(tensor, robust[name])
    }
    chosen = second.history.weight.iloc[-1]
    assert moved <= {chosen}, "one weight and no statistics"
    task = load_task("digits", limit=220)

    def found(run):
        return count_correct(
            run.model,
            task.val,
            THREAT
            if str(THREAT) == run.config["threat"]
            else linf(run.config["threat"].split(":")[1]),
            next(run.model.parameters()).device,
        )

    assert found(second)[1] >= found(first)[1] and found(second)[0] >= found(first)[0]
    with pytest.raises(AutoLoRaError, match="doesn't fit"):
        finetune(
            "robust_mini_rgb", "digits", "rift", limit=220, out=tmp_path / "none", run=first.path
        )


def test_criticality_finds_the_weight_that_does_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    ).eval()
    with torch.no_grad():
        net[1].weight.mul_(1e-4)  # all that follows sees the biases
    found = robust_criticality(
        net, ["1.weight", "3.weight", "5.weight"], torch.rand(8, 1, 2, 2), torch.arange(8) % 3
    )
    assert min(found, key=found.get) == "1.weight" and all(rise >= 0 for rise in found.values())


# ---- AutoLoRa and its ablations


def test_shared_route_is_trades_under_autoloras_weights():
    method, model = make("autolora_paper", route="shared"), fresh().train()
    method.lam1, method.lam2 = 1.0, 6.0
    trades = make("trades")
    a, b = total(method.losses(images(), Y)), total(trades.losses(images(), Y))
    close(a, b)
    same_gradients(gradients(a, method.model), gradients(b, trades.model))
    assert model.training


@pytest.mark.parametrize("route", ["branch", "stop", "open", "shared"])
def test_before_the_branch_moves_all_routes_have_one_loss(route):
    method, model = make("autolora_paper", route=route), fresh().train()
    x_adv = make("autolora_paper").attack(images(), Y)
    close(
        total(method.losses(images(), Y)),
        total(autolora_loss(model(images()), model(x_adv), Y, method.lam1, method.lam2)),
    )


def test_stop_and_branch_send_the_same_to_the_feature_extractor():
    a, b = make("autolora_paper"), make("autolora_paper", route="stop")
    same_gradients(
        gradients(total(a.losses(images(), Y)), a.model),
        gradients(total(b.losses(images(), Y)), b.model),
    )


def test_open_route_adds_what_the_branch_keeps_away():
    """Before the branch moves, the open route's gradient on the weights is the shared route's; the
    branch's own is not zero."""
    a, b = make("autolora_paper", route="open"), make("autolora_paper", route="shared")
    loss = total(a.losses(images(), Y))
    same_gradients(gradients(loss, a.model), gradients(total(b.losses(images(), Y)), b.model))
    assert all(
        g.count_nonzero() for name, g in gradients(loss, a.branch).items() if name.startswith("B")
    )


def test_the_kl_switch():
    live, detached, none = (make("autolora_paper", kl=kl) for kl in ("live", "detached", "none"))
    losses = [m.losses(images(), Y) for m in (live, detached, none)]
    close(losses[0]["kl"], losses[1]["kl"])
    assert (
        "kl" not in losses[2]
        and gradients(losses[0]["kl"], live.branch)["B.net/blocks/0/conv1/weight"] is not None
    )
    assert all(g is None for g in gradients(losses[1]["kl"], detached.branch).values())


def test_ours_is_the_published_objective_on_the_feature_extractor_without_its_factor():
    """What reaches the feature extractor is the published gradient divided by SA, and the terms are
    as the docstring says."""
    ours = make("autolora", route="branch", lam1="auto")
    published, model = make("autolora_paper"), fresh().train()
    for method in (ours, published):
        method.weigh(0.3)
    x_adv = make("autolora").attack(images(), Y)
    nat, adv = model(images()), model(x_adv)
    terms = ours.losses(images(), Y)
    close(
        total(terms),
        0.7 * F.cross_entropy(nat, Y) + F.cross_entropy(adv, Y) + 6 * kl_divergence(nat, adv),
    )
    a, b = (
        gradients(total(terms), ours.model),
        gradients(total(published.losses(images(), Y)), published.model),
    )
    extractor = [name for name in a if "head" not in name]
    same_gradients(
        {name: a[name] for name in extractor}, {name: b[name] / 0.3 for name in extractor}
    )


def test_nothing_is_kept_from_the_feature_extractor_by_default():
    """Before the branch moves: the gradient of CE(nat) + CE(adv) + 6 KL on one path, whatever the
    accuracy, and the branch learns from the natural images too."""
    ours, model = make("autolora"), fresh().train()
    ours.weigh(0.3)
    x_adv = make("autolora").attack(images(), Y)
    nat, adv = model(images()), model(x_adv)
    plain = F.cross_entropy(nat, Y) + F.cross_entropy(adv, Y) + 6 * kl_divergence(nat, adv)
    loss = total(ours.losses(images(), Y))
    close(loss, plain)
    same_gradients(gradients(loss, ours.model), gradients(plain, model))
    moved = gradients(loss, ours.branch)
    assert all(g.count_nonzero() for name, g in moved.items() if name.startswith("B"))


def test_the_branch_has_a_rate_of_its_own():
    """One step from the same weights moves the branch's B by 1 / gain of what one common rate does,
    and the model alike."""
    ours, common = make("autolora"), make("autolora", branch_rate="paper")
    for method in (ours, common):
        optimizer = method.optimizer(0.1)
        set_lr(optimizer, 0.1)
        train_step(method, optimizer, images(), Y)
    gain = make("autolora").branch.gain()
    assert gain > 2
    for name, B in ours.branch.B.items():
        close(B, common.branch.B[name] / gain, 1e-6)
    for key, tensor in ours.model.state_dict().items():
        close(tensor.float(), common.model.state_dict()[key].float(), 1e-6)


def test_a_checkpoint_with_another_optimiser_is_said(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "run", control=Interrupt())
    path = tmp_path / "run" / "resume.pt"
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"].pop()
    torch.save(state, path)
    with pytest.raises(AutoLoRaError, match="isn't what was saved"):
        short_run(tmp_path / "run", resume=True)


def test_where_covers_the_released_codes_layers():
    net = import_torchvision("models").resnet18(num_classes=10)
    assert len(make("autolora", net, where="layer?.1.conv?.weight").branch.names) == 8


def test_rosa_learns_its_mask_in_a_run(tmp_path):
    run = short_run(tmp_path / "run", epochs=3, parametrisation="rosa")
    assert all(mask.any() for mask in run.branch.M.values())
    x = load_task("digits").test.images(slice(0, 4))
    with torch.no_grad():
        close(Run.open(run.path).branch(x), run.branch.cpu()(x), 1e-4)


# ---- head first


def test_a_robust_head_first(tmp_path):
    """The probe leaves the feature extractor alone, its head is the one the method starts from, and
    an interrupted run goes on from it."""
    call = dict(method="trades", head="robust_linear", test=True)
    whole = short_run(tmp_path / "whole", **call)
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "broken", **call, control=Interrupt())
    resumed = short_run(tmp_path / "broken", **call, resume=True)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    from safetensors.torch import load_file

    probed, pretrained = (
        load_file(whole.path / "head" / "model.safetensors"),
        load_backbone("robust_mini_gray", 10).state_dict(),
    )
    assert all(
        torch.equal(tensor, pretrained[key]) for key, tensor in probed.items() if "head" not in key
    )
    assert (
        whole.last("end")["seconds"]
        > whole.history.seconds.sum() + 0.9 * whole.last("head")["seconds"] - 0.1
    )


def test_the_rate_is_found_before_the_head(tmp_path):
    fresh, trained = (
        short_run(tmp_path / head, "at", head=head, epochs=1, lr="auto")
        for head in ("random", "robust_linear")
    )
    assert (
        trained.last("range_test")["loss"] == fresh.last("range_test")["loss"]
        and trained.last("start")["lr"] == fresh.last("start")["lr"]
    )


# ---- what can't work says so before training


@pytest.mark.parametrize("name", ["twins", "twins_at", "aff", "ar_at"])
def test_two_sets_of_batchnorm_need_one(tmp_path, name):
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(AutoLoRaError, match="no BatchNorm"):
        finetune(net, "digits", name, limit=220, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "call, words",
    [
        ({"method": "autolora", "kl": "detach"}, "did you mean 'detached'"),
        ({"method": "autolora", "lamb": 1}, "did you mean 'lam1'"),
        ({"method": "autolora", "lam1": 2}, "'auto' or a number from 0 to 1"),
        ({"method": "autolora", "where": "no.such"}, "picks none"),
        ({"method": "autolora", "parametrisation": "lorra"}, "did you mean 'lora'"),
        ({"method": "at", "head": "robust"}, "did you mean 'robust_linear'"),
        ({"method": "rift"}, "finished run"),
        ({"method": "ramp", "b": 3}, "b must be"),
        ({"method": "at", "ramp_to": 2}, "ramp_to must be a number from 0 to 1"),
        ({"method": "at", "ramp_from": 0.5, "ramp_to": 0.2}, "rising order"),
    ],
)
def test_refused_before_training(tmp_path, call, words):
    with pytest.raises(AutoLoRaError, match=words):
        finetune("robust_mini_gray", "digits", limit=220, out=tmp_path / "run", **call)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("full_lora", "rift")]
)  # one asks for a ViT, one doesn't train
def test_recomputed_activations_change_nothing(name):
    ends = []
    for recompute in (False, True):
        method = make(name)
        method.gradient_checkpointing, optimizer = recompute, method.optimizer(0.05)
        for seed in (1, 2):
            train_step(method, optimizer, images(seed=seed), Y)
        ends.append(
            {
                f"{key}.{leaf}": tensor
                for key, module in method.modules().items()
                for leaf, tensor in state(module).items()
            }
        )
    for leaf in ends[0]:
        close(ends[0][leaf], ends[1][leaf])
    assert any(
        (ends[0][leaf] - start).abs().max() > 1e-4
        for leaf, start in ((f"model.{leaf}", start) for leaf, start in state(fresh()).items())
        if start.is_floating_point()
    )


# ---- through `finetune`


class Interrupt(Control):
    "Breaks the run off in its second epoch, as Ctrl-C does."

    def before_step(self, learner):
        if learner.epoch == 1:
            raise KeyboardInterrupt


STATEFUL = ("autolora", "awp", "rift")  # each its own kind; `make long` takes all


@pytest.mark.parametrize(
    "name", [n if n in STATEFUL else pytest.param(n, marks=pytest.mark.long) for n in METHODS]
)
def test_finetune_interrupted_resumed_and_opened_again(tmp_path, name):
    digits = load_task("digits", limit=220)
    call = dict(
        backbone="robust_mini_gray",
        data=replace(digits, val=digits.val.take(slice(40)), test=digits.test.take(slice(40))),
        method=name,
        epochs=2,
        lr=0.02,
        progress=False,
        steps=2,
    )
    if name == "rift":
        call["run"] = finetune(**call | {"method": "at", "epochs": 1}, out=tmp_path / "first").path
    whole = finetune(**call, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        finetune(**call, out=tmp_path / "broken", control=Interrupt())
    resumed = finetune(**call, out=tmp_path / "broken", resume=True)
    assert len(resumed.history) == 2 and {"angle", "ra", "sa", "loss"} <= set(resumed.history)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    x = load_task("digits").test.images(slice(0, 8))
    with torch.no_grad():
        close(Run.open(resumed.path).model(x), whole.model.cpu()(x), 1e-4)
    assert [e["correct"] for e in whole.report["evaluations"]] == [
        e["correct"] for e in resumed.report["evaluations"]
    ]
    assert (resumed.path / "report.html").is_file() and METHODS[name].label in (
        resumed.path / "card.md"
    ).read_text()
