"""Numbers that can be trusted: what has made other tools report a robustness that wasn't there, or
count what is no answer."""

import copy
import importlib.util
import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import _small_nets
import numpy as np
import pytest
import torch
from _faulty import Around, digits, faulty, honest
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from autolora import AutoLoRaError, Run, evaluate, finetune
from autolora.core.seeds import OwnRandom, isolated_rng
from autolora.core.threat import l2, linf, parse_threat
from autolora.data.images import Split
from autolora.data.loading import load_task
from autolora.models.backbones import load_backbone
from autolora.models.views import FrozenBN, SplitBN
from autolora.robust.alarms import ALARMS, Look, looks_like_probabilities
from autolora.robust.attacks import fgsm, is_right, n_fgsm, own_random, pgd
from autolora.robust.fusion import FusedCopy, explain_speed, fused_copy
from autolora.train.learner import count_correct
from autolora.train.overfitting import OverfittingAlarm

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def evaluated(model, x, y, threat, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(model, (x, y), threat, **settings)


def linear(classes=4, count=60, scale=1.0, dtype=torch.float32):
    "A linear classifier, 6x6 images around mid-grey, and its own labels with every tenth changed."
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 36, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
    model[1].weight.data = weight
    model[1].bias.data = -weight.sum(1) / 2
    x = 0.4 + 0.2 * torch.rand(count, 1, 6, 6, generator=generator)
    y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % classes
    return Around(model, behind=lambda z: scale * z).to(dtype), x.to(dtype), y


def survivors(model, x, y, eps, dual):
    "How many images no perturbation can turn: margin over class j > eps * dual norm of w_y - w_j."
    w = model.net[1].weight.detach().double()
    z = (x.flatten(1).double() @ w.T + model.net[1].bias.detach().double()).detach()
    margin = z.gather(1, y[:, None]) - z - eps * (w[y][:, None] - w).norm(p=dual, dim=2)
    return ((margin > 0) | (torch.arange(len(w)) == y[:, None])).all(1).sum().item()


# --- gradients of any size


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-6, 1.0, 1e4, 1e20, 1e36])
@pytest.mark.parametrize(("threat", "dual"), [(l2(0.05), 2), (linf(0.01), 1)], ids=str)
def test_pgd_reaches_the_closed_form_at_any_scale(scale, threat, dual):
    "Two classes: with more, cross-entropy of small logits aims at all wrong classes at once."
    model, x, y = linear(2, scale=scale)
    exact = survivors(model, x, y, threat.eps, dual)
    least = survivors(model, x, y, 0.99 * threat.eps, dual)
    with torch.no_grad():
        natural = is_right(model(x), y)
    x_adv = pgd(model, x, y, threat, steps=20, random_start=False)
    found = (is_right(model(x_adv).detach(), y) & natural).sum().item()
    assert 0 < exact < natural.sum()
    assert exact <= found <= max(least, exact + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_an_l2_step_has_its_length_in_any_type(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 8, 8, generator=generator).to(dtype)
    grad = (scale * torch.randn(x.shape, generator=generator)).to(dtype)
    moved = l2(1).step(torch.zeros_like(x), grad, 0.5)
    assert moved.dtype == dtype
    assert torch.allclose(moved.float().flatten(1).norm(dim=1), torch.tensor(0.5), atol=5e-3)
    clipped = l2(0.25).clip(moved)
    assert clipped.dtype == dtype
    assert clipped.float().flatten(1).norm(dim=1).max() <= 0.25 * 1.01
    far = l2(0.25).clip((1e4 * moved.double()).to(dtype))
    assert far.isfinite().all() and far.float().flatten(1).norm(dim=1).max() <= 0.25 * 1.01


@pytest.mark.parametrize("factor", [1, 6, 30, 1000])
def test_a_confident_net_is_no_more_robust(factor):
    net, x, y = digits()
    plain = evaluated(net, x, y, "l2:0.8")
    sharp = evaluated(Around(net, behind=lambda z: factor * z).eval(), x, y, "l2:0.8")
    assert abs(plain["pgd-10"].correct - sharp["pgd-10"].correct) <= 18  # of 360
    assert sharp["pgd-10"].correct < 30
    val = Split(x, y)
    counted = count_correct(Around(net, behind=lambda z: factor * z), val, l2(0.8), "cpu")
    assert counted == (sharp["none"].correct, sharp["pgd-10"].correct)


class Gamma(nn.Module):
    "A net behind a gamma curve, whose derivative at a black pixel is infinite for low = 0."

    def __init__(self, net, low):
        super().__init__()
        self.net = net
        self.low = low

    def forward(self, x):
        return self.net(x.clamp_min(self.low) ** (1 / 2.2))


@pytest.mark.parametrize("threat", ["l2:0.05", "l2:0.2", "linf:0.05"])
def test_infinite_gradients_leave_images_and_counts(threat):
    net, x, y = digits()
    broken = Gamma(net, 0.0).eval()
    twin = evaluated(Gamma(net, 1e-6).eval(), x, y, threat)
    report = evaluated(broken, x, y, threat)
    x_adv = pgd(broken, x, y, parse_threat(threat), random_start=False)
    assert x_adv.isfinite().all() and n_fgsm(broken, x, y, parse_threat(threat)).isfinite().all()
    with torch.no_grad():  # what counts as broken was broken, by an image
        assert broken(x_adv).isfinite().all()
        standing = is_right(broken(x_adv), y) & is_right(broken(x), y)
    assert report["pgd-10"].correct == standing.sum()
    assert report["pgd-10"].correct <= twin["pgd-10"].correct + 4
    found = count_correct(broken, Split(x, y), parse_threat(threat), "cpu")
    assert found == (report["none"].correct, report["pgd-10"].correct)
    assert any("NaN or infinity in their input gradient" in alarm for alarm in report.alarms)


@pytest.mark.parametrize("lr", ["auto", 0.01])
def test_a_backbone_with_nan_is_refused_before_training(tmp_path, lr):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10))
    net[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(AutoLoRaError, match="0.weight, check its weights"):
        finetune(net, "digits", limit=256, epochs=1, lr=lr, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lr", ["auto", 0.01])
def test_a_gradient_that_is_no_number_is_named(tmp_path, lr):
    class Root(nn.Module):
        def forward(self, x):
            return (x * 0).abs().sqrt() + x  # of zero: no derivative, and 0 * inf on the way back

    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), Root(), nn.Flatten(), nn.Linear(4 * 49, 10))
    with pytest.raises(AutoLoRaError, match=r"gradient of model\.0\.weight is NaN"):
        finetune(
            net,
            "digits",
            "trades",
            limit=256,
            epochs=1,
            lr=lr,
            out=tmp_path / "run",
            progress=False,
        )


# --- what is no image, no label, no logit


@pytest.mark.parametrize("attack", [pgd, fgsm, n_fgsm])
def test_attacks_refuse_other_ranges(attack):
    model, x, y = linear()
    for images in (2 * x - 1, 255 * x, x + float("nan"), (255 * x).byte(), x.numpy()):
        with pytest.raises(AutoLoRaError, match=r"in \[0, 1\]"):
            attack(model, images, y, linf(0.1))


@pytest.mark.parametrize("attack", [pgd, fgsm, n_fgsm])
def test_attacks_refuse_labels_that_are_none(attack):
    model, x, y = linear()
    for labels in (y - 1, y - 100, y + 0.5, F.one_hot(y), y[:, None], y[:5], y > 0):
        with pytest.raises(AutoLoRaError, match="[Ll]abel"):
            attack(model, x, labels, linf(0.1))
    with pytest.raises(AutoLoRaError, match="give it a head"):
        attack(model, x, y + 4, linf(0.1))
    assert torch.equal(attack(model, x, y.int(), linf(0.1)), attack(model, x, y, linf(0.1)))


def test_pgd_refuses_steps_that_are_none():
    model, x, y = linear()
    for size in (float("nan"), float("inf"), 0.0, -0.1):
        with pytest.raises(AutoLoRaError, match="step_size"):
            pgd(model, x, y, linf(0.1), step_size=size)
    for steps in (-1, 2.5):
        with pytest.raises(AutoLoRaError, match="steps"):
            pgd(model, x, y, linf(0.1), steps=steps)
    pgd(model, x, y, linf(0.1), steps=np.int64(2))


def test_evaluate_refuses_labels_that_are_none():
    model, x, y = linear()
    unlabelled = torch.where(torch.arange(60) % 4 == 0, -100, y)
    for labels in (unlabelled, y - 1, y + 0.7):
        with pytest.raises(AutoLoRaError, match="label"):
            evaluate(model, (x, labels), "linf:0.001")
        with pytest.raises(AutoLoRaError, match="label"):
            evaluate(model, Split(x, labels), "linf:0.001")
    with pytest.raises(AutoLoRaError, match="give it a head"):
        evaluate(model, (x, torch.cat([y[:-1], torch.tensor([4])])), "linf:0.001")
    for labels in (F.one_hot(y), y[:, None]):  # which say the same as y
        found = evaluated(model, x, labels, "linf:0.001")["none"]
        assert found.correct == evaluated(model, x, y, "linf:0.001")["none"].correct
    found = evaluated(model, x.numpy(), y.numpy(), "linf:0.001")
    assert found["none"] == evaluated(model, x, y, "linf:0.001")["none"].__class__(
        **vars(found["none"])
    )


def test_images_on_another_scale_are_refused():
    model, x, y = linear()
    masks = (x > 0.5).byte()
    for images, words in (
        (255 * x, "divide by 255"),
        (masks, "nearly black"),
        (x / 255, "nearly black"),
    ):
        with pytest.raises(AutoLoRaError, match=words):
            evaluate(model, (images, y), "linf:0.001")
    bytes_, floats = (evaluated(model, images, y, "linf:0.01") for images in ((255 * x).byte(), x))
    assert abs(bytes_["pgd-10"].correct - floats["pgd-10"].correct) <= 6
    many = np.random.default_rng(0).integers(0, 2, (400, 8, 8))
    with pytest.raises(AutoLoRaError, match="nearly black"):
        load_task((many.astype(np.uint8), np.arange(400) % 4))


def test_a_masked_class_is_no_broken_answer():
    model, x, y = linear()

    def masked(z):
        return F.pad(z, (0, 1), value=-torch.inf)

    plain = evaluated(model, x, y, "linf:0.01")
    found = evaluated(Around(model, behind=masked), x, y, "linf:0.01")
    assert [row.correct for row in found.rows] == [row.correct for row in plain.rows]
    assert not any("NaN" in alarm for alarm in found.alarms)


def test_nan_logits_are_errors_and_said():
    model, x, y = linear()
    y = model(x).argmax(1)

    def broken(z):
        return torch.where((z[:, :1] > 0).expand_as(z), float("nan"), z)

    net = Around(model, behind=broken)
    report = evaluated(net, x, y, "linf:0.001")
    count = int((model(x)[:, 0] > 0).sum())
    assert report["none"].correct == 60 - count
    assert any(f"For {count} of 60 natural images" in alarm for alarm in report.alarms)
    assert count_correct(net, Split(x, y), linf(0.001), "cpu")[0] == 60 - count


def test_an_attack_that_gives_nan_is_refused(monkeypatch):
    from autolora.robust.measures import ATTACKS, register_attack

    monkeypatch.setattr(ATTACKS, "_things", dict(ATTACKS))
    register_attack("broken", lambda model, x, y, threat: x * float("nan"))
    model, x, y = linear()
    with pytest.raises(AutoLoRaError, match="'broken' gave images with NaN"):
        evaluate(model, (x, y), "linf:0.1", ("broken",))


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_probabilities_are_refused_for_training(tmp_path, last):
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10), last)
    with pytest.raises(AutoLoRaError, match="probabilities"):
        finetune(net, "digits", "at", limit=256, epochs=1, out=tmp_path / "run", progress=False)


def test_logits_are_no_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(32, 10, generator=generator)
    assert looks_like_probabilities(logits.softmax(1)) and looks_like_probabilities(
        logits.sigmoid()
    )
    for honest_one in (logits, logits.log_softmax(1), torch.zeros(32, 10), 0.01 * logits):
        assert not looks_like_probabilities(honest_one)


# --- counts class by class


def test_every_row_counts_its_classes():
    net, x, y = digits()
    report = evaluated(net, x, y, "linf:0.05")
    for row in report.rows:
        correct, n = (sum(column) for column in zip(*row.classes, strict=True))
        assert (correct, n) == (row.correct, row.n)
        assert abs(row.balanced - sum(c / k for c, k in row.classes) / 10) < 1e-12
    assert report.table()[0][2] == "balanced %"
    assert report.class_table(list("abcdefghij"))[1][0] == "a"


def test_a_constant_answer_is_no_robustness():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 8, 8, generator=generator)
    y = (torch.arange(200) % 33 == 0).long()  # 97 % of class 0
    report = evaluated(
        Around(nn.Flatten(), behind=lambda z: z[:, :3] * 0 - torch.arange(3)), x, y, "linf:0.1"
    )
    assert report["pgd-10"].accuracy > 0.95 and report["pgd-10"].balanced == 0.5
    assert any("answers with class 0" in alarm for alarm in report.alarms)
    assert any("1 of 3 classes have no image" in alarm for alarm in report.alarms)


def test_one_class_that_stands_alone_is_said():
    "Class 0 is right whatever happens, the others fall."
    net, x, y = digits()

    class Lopsided(nn.Module):
        def forward(self, x):
            z = net(x)
            return torch.where((z.argmax(1) == 0)[:, None], z + 0 * z, z)

    counts = evaluated(Lopsided().eval(), x, y, "linf:0.4")
    assert all(row.attack == "none" or row.correct < 20 for row in counts.rows)
    from autolora.robust.alarms import answer_alarms
    from autolora.robust.results import Row

    row = Row("pgd-10", 30, 360, classes=((30, 36), *[(0, 36)] * 9))
    assert any("are of class 0" in alarm for alarm in answer_alarms(y, y, [row], y))


# --- alarms


@pytest.mark.parametrize("name", faulty())
def test_each_fault_is_named(name):
    alarm, model, x, y, threat = faulty()[name]
    report = evaluated(model, x, y, threat, n=120)
    with isolated_rng(0), torch.no_grad():
        right = is_right(model(x), y) | is_right(model(x), y)  # one of them answers in turns
    look = Look(model, x[right][:32], y[right][:32], parse_threat(threat))
    with own_random(model, x):
        sentence = ALARMS[alarm](look)
    assert sentence
    said = " ".join(report.alarms)
    assert sentence.split(":")[0][-30:] in said or alarm in (
        "luck_stronger",
        "answers_differ",
        "single_step_stronger",
    )
    assert report.alarms


COINS = ["a coin for the batch", "a rare coin", "Python's coin", "the sign alternates"]


@pytest.mark.parametrize("name", COINS)
def test_what_changes_from_pass_to_pass_is_said_in_the_report(name):
    _, model, x, y, threat = faulty()[name]
    assert any("Two passes" in said for said in evaluated(model, x, y, threat, n=120).alarms)
    if name == "the sign alternates":  # even where it gets no image right
        model.calls = 0
        wrong = (model(x).argmax(1) + 1) % 10
        assert any("Two passes" in said for said in evaluated(model, x, wrong, threat, n=40).alarms)


@pytest.mark.parametrize("name", honest())
def test_honest_nets_raise_no_alarm(name):
    model, x, y, threat = honest()[name]
    assert evaluated(model, x, y, threat, n=120).alarms == ()


@pytest.mark.skipif(not _small_nets.FOUND, reason="the small robust nets are not at hand")
@pytest.mark.parametrize("name", ["cifar_cnn_a_adv", "mnist_small_0_3_kw", "mnist_fast_pgd"])
def test_published_nets_raise_no_alarm(name):
    "Three of those that benchmarks/alarms.py asks all of."
    found = _small_nets.images(name, n=80)
    if found is None:
        pytest.skip("the MNIST digits come with the extra autolora[mnist5k]")
    eps = _small_nets.described()[name]["eps_linf"]
    assert evaluated(_small_nets.net(name), *found, linf(eps)).alarms == ()


def test_alarms_are_said_and_stand_in_report_page_and_card(tmp_path):
    net, x, y = digits()
    model = Around(net, behind=lambda z: 30 * z).eval()
    with pytest.warns(UserWarning, match="below 1e-12"):
        report = evaluate(model, (x, y), "l2:0.8", n=100)
    run = finetune(
        "robust_mini_gray", "digits", "at", limit=256, epochs=1, lr=0.01, steps=1,
        out=tmp_path / "run", progress=False, angles=False,
    )  # fmt: skip
    saved = json.loads((run.path / "report.json").read_text())
    saved["alarms"] = list(report.alarms)
    (run.path / "report.json").write_text(json.dumps(saved))
    from autolora.show.card import write_card
    from autolora.show.report import write_report

    for page in (write_report(run), write_card(run)):
        text = page.read_text()
        assert "below 1e-12" in text and "balanced" in text
    assert "below 1e-12" in Run(run.path)._repr_markdown_()


def test_catastrophic_overfitting_is_said_while_it_happens(tmp_path):
    "A training whose single step is fooled by the net it trains."
    from types import SimpleNamespace

    from autolora.runs.folder import create_run

    net, x, y = digits()
    run = create_run(tmp_path / "run", {"seed": 0})
    task = SimpleNamespace(val=Split(x, y))
    # rounding hides the gradient from a single step; several steps are told by `ra`
    masked = Around(net, lambda x: (x * 3).round() / 3).eval()
    method = SimpleNamespace(model=masked, threat=linf(0.1), steps=1, settled=True)
    learner = SimpleNamespace(method=method, task=task, run=run, device="cpu", epoch=0, record={})
    for ra in (0.2, 0.5):
        learner.epoch += 1
        learner.record = {"epoch": learner.epoch, "ra": ra}
        OverfittingAlarm().after_epoch(learner)
        run.log("epoch", **learner.record)
    assert not run.last("alarm")
    learner.epoch += 1
    learner.record = {"epoch": 3, "ra": 0.01}
    with pytest.warns(UserWarning, match="Catastrophic overfitting in epoch 3"):
        OverfittingAlarm().after_epoch(learner)
    assert learner.record["single_ra"] > 0.9 and run.last("alarm")["epoch"] == 3
    from autolora.show.report import measurement

    assert "Catastrophic" in str(measurement(run))


# --- copies and conversions that keep the function


class Super(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Functional(nn.BatchNorm2d):
    "As timm's: what BatchNorm does is written out, an activation and a dropout behind it."

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.PReLU()
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training, self.momentum, self.eps,
        )  # fmt: skip
        return self.act(self.drop(x))


class Named(nn.BatchNorm2d):
    def forward(self, x):
        return nn.BatchNorm2d.forward(self, x).clamp(-1, 1)


KINDS = [Super, Functional, Named]


def with_norm(kind):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, 2, 1), kind(4), nn.Conv2d(4, 8, 3, 2, 1), kind(8)
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(16, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _ in range(3):
            net(x)
    return net, x


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_batchnorm_adds_survives_fusion_and_views(kind):
    net, x = with_norm(kind)
    net.eval()
    with fused_copy(net, x) as copied:
        assert torch.allclose(copied(3 * x), net(3 * x), atol=1e-5)
    assert "itself" in explain_speed(net) or " 0 BatchNorms" in explain_speed(net)
    for view in (SplitBN, FrozenBN):
        assert torch.allclose(view(net).eval()(x), net(x))
    trained = copy.deepcopy(net).train()(x)
    assert torch.allclose(SplitBN(copy.deepcopy(net)).train()(x), trained, atol=1e-6)
    frozen = FrozenBN(net).train()(x)
    assert torch.allclose(frozen, copy.deepcopy(net).eval()(x), atol=1e-6)


def test_a_copy_is_refused_where_only_rare_values_or_gradients_differ():
    class Rare(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).clamp(max=50)

    class Rounded(torch.autograd.Function):
        "Rounds, with the gradient of the identity."

        @staticmethod
        def forward(ctx, x):
            return (x * 15).round() / 15

        @staticmethod
        def backward(ctx, grad):
            return grad

    net, x = with_norm(Rare)
    net.eval()
    with fused_copy(net, x) as copied:
        large = 1e3 * x
        assert torch.allclose(copied(large), net(large), rtol=1e-4)
    plain, x = with_norm(nn.BatchNorm2d)
    straight = Around(plain, Rounded.apply).eval()
    y = torch.zeros(16, dtype=torch.long)
    pgd(straight, x, y, linf(0.1))
    assert "another gradient" in explain_speed(straight)
    pgd(plain.eval(), x, y, linf(0.1))
    assert isinstance(FusedCopy(plain), FusedCopy) and "2 BatchNorms" in explain_speed(plain)


SYNCED = """
import copy, sys
import torch
from torch import nn
from torch.nn import functional as F
sys.path[:0] = {folders!r}
from test_trust import KINDS, with_norm
from autolora.core.distributed import average_buffers, convert_sync_batchnorm, own_part
from autolora.core.machine import process_index
from functools import partial

for kind in [*KINDS, nn.SyncBatchNorm, partial(nn.BatchNorm2d, track_running_stats=False)]:
    net, x = with_norm(nn.BatchNorm2d if kind is nn.SyncBatchNorm else kind)
    net.train()
    split = copy.deepcopy(net)
    if kind is nn.SyncBatchNorm:
        split = nn.SyncBatchNorm.convert_sync_batchnorm(split)
    mine = convert_sync_batchnorm(split)
    whole = net(x)
    part = own_part()
    assert torch.allclose(mine(x[part]), whole[part], atol=1e-5), kind
    average_buffers([mine])
    for a, b in zip(net.buffers(), mine.buffers(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), kind
    net.eval()
    mine.eval()
    if kind in KINDS:
        assert torch.allclose(mine(x), net(x), atol=1e-5), kind
    if process_index() == 0:
        print(kind, "agrees", flush=True)
"""


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="needs autolora[parallel]")
def test_what_a_batchnorm_adds_survives_several_processes(tmp_path):
    program = tmp_path / "program.py"
    here = Path(__file__).parent
    program.write_text(SYNCED.format(folders=[str(here), str(here.parent / "benchmarks")]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run([*launch, program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("agrees") == 5


# --- nobody else's random numbers


def dropping():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def draws_meanwhile(work):
    "Seeded draws of this thread while `work` runs in another: all of them."
    thread = threading.Thread(target=work)
    torch.manual_seed(5)
    found = [torch.rand(1)]
    thread.start()
    while thread.is_alive():
        found += [torch.rand(1), torch.randn(2).sum()[None], F.dropout(torch.ones(4))]
    thread.join()
    return found


def expected(count):
    torch.manual_seed(5)
    found = [torch.rand(1)]
    while len(found) < count:
        found += [torch.rand(1), torch.randn(2).sum()[None], F.dropout(torch.ones(4))]
    return found


def test_a_training_and_the_cell_beside_it_do_not_meet(tmp_path):
    net = dropping()
    call = dict(
        backbone=net, data="digits", method="at", epochs=2, limit=300, lr=0.05, steps=1,
    )  # fmt: skip

    def trained(name):
        assert finetune(**call, out=tmp_path / name, progress=False).finished
        return load_file(tmp_path / name / "model.safetensors")

    torch.manual_seed(11)
    before = torch.get_rng_state()
    alone = trained("alone")
    assert torch.equal(torch.get_rng_state(), before), "a training moved the global generator"
    found = draws_meanwhile(lambda: trained("beside"))
    assert len(found) > 20
    assert all(map(torch.equal, found, expected(len(found)))), "a training moved another's stream"
    beside = load_file(tmp_path / "beside" / "model.safetensors")
    assert all(torch.equal(alone[key], beside[key]) for key in alone)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    opened = Run(tmp_path / "alone", net).model
    assert not opened.training
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_an_evaluation_and_the_cell_beside_it_do_not_meet():
    net, x, y = digits()
    attacks = ["none", "pgd-3", "autoattack"]
    noisy = Around(net, lambda x: x + 0.05 * torch.randn_like(x)).eval()
    for model in (net, noisy):
        rows = []

        def work(model=model, rows=rows):
            report = evaluated(model, x[:20], y[:20], "linf:0.3", attacks=attacks)
            rows.append([row.correct for row in report.rows])

        work()
        found = draws_meanwhile(work)
        assert all(map(torch.equal, found, expected(len(found))))
        assert rows[0] == rows[1]


def test_an_augmentation_that_draws_from_the_global_generator_is_repeated(tmp_path):
    def flipped(x, generator):
        return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = finetune(
            "robust_mini_gray", "digits", "at", augment=flipped, limit=220, epochs=1, lr=0.05,
            steps=1, test=False, progress=False, angles=False, out=tmp_path / str(seed),
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), before)
        found.append(run.history.loss.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.3), nn.Dropout2d(0.3), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3),
        nn.RReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_each_layer_draws_what_the_global_generator_would_give(layer):
    x = torch.ones(4, 3, 5, 5)
    torch.manual_seed(3)
    outside = layer(x)
    before = torch.get_rng_state()
    own = OwnRandom(3)
    with own.around(first=True):
        inside = layer(x)
    assert torch.equal(inside, outside) and own.drawn
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_and_recurrent_dropout_come_from_the_own_stream():
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    recurrent = nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True)
    x = torch.rand(2, 5, 8)
    for layer in (attention, lambda x: recurrent(x)[0]):
        before = torch.get_rng_state()
        answers = []
        for seed in (1, 1, 2):
            with isolated_rng(seed):
                answers.append(layer(x))
        assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
        assert torch.equal(torch.get_rng_state(), before)


# --- threads


def test_the_number_of_threads_is_recorded_and_said(tmp_path):
    call = dict(
        backbone="robust_mini_gray", data="digits", method="at", limit=220, lr=0.05, steps=1,
        test=False, progress=False, angles=False, out=tmp_path / "run",
    )  # fmt: skip
    run = finetune(epochs=1, **call)
    assert run.config["threads"] == 1
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="began with 1 CPU threads and goes on with 2"):
        finetune(epochs=1, resume=True, **call)


def test_the_embedded_net_is_attacked_as_before():
    "The stable form of cross-entropy points where cross-entropy points."
    net = load_backbone("robust_mini_gray", 10).eval()
    task = load_task("digits")
    x, y = task.test.images()[:64], task.test.y[:64]

    def cross_entropy(logits):
        return F.cross_entropy(logits, y, reduction="sum")

    for threat in (l2(0.5), linf(0.1)):
        ours = pgd(net, x, y, threat, steps=3)
        theirs = pgd(net, x, y, threat, steps=3, loss=cross_entropy)
        share = ((ours - theirs).abs() > 1e-3).float().mean()
        assert share < 0.01


def test_a_run_that_was_never_robust_says_so(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))
    given = dict(threat="linf:0.5", epochs=2, lr=0.05, limit=300, steps=2, angles=False)
    run = finetune(net, "digits", "trades", out=tmp_path / "run", progress=False, **given)
    assert not run.history.ra.any()
    assert any("After no epoch" in alarm for alarm in run.report["alarms"])
    text = (run.path / "report.html").read_text()
    assert "After no epoch did one validation image stand the attack" in text
