"""The fast copy that attacks run on: the same logits, the same adversarial images, the same
training as without it."""

import json
import sys

import numpy as np
import pytest
import torch
from parallel_case import case
from safetensors.numpy import load_file
from sklearn.datasets import load_sample_images
from torch import nn

from autolora.core.machine import import_torchvision
from autolora.core.threat import l2, linf
from autolora.models.backbones import load_backbone
from autolora.robust.attacks import pgd
from autolora.robust.fusion import FusedCopy, explain_speed, fused_copy, plain_attacks


def photographs(n, size):
    "`n` crops of two photographs, (n, 3, size, size) in [0, 1]."
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        image = load_sample_images().images[i % 2]
        top, left = rng.integers(0, image.shape[0] - size), rng.integers(0, image.shape[1] - size)
        found.append(image[top : top + size, left : left + size])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def warmed(net, x):
    "`net` in eval mode, its BatchNorms with statistics, weights and offsets of their own."
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        net.train()
        for _ in range(5):
            net(x)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "folds"),
    [
        ("resnet18", True),
        ("resnet50", True),
        ("mobilenet_v2", True),
        ("densenet121", True),
        ("convnext_tiny", False),
        ("vit_b_16", False),
    ],
)
def test_nets_of_others_answer_alike(name, folds):
    torch.manual_seed(0)
    size = 224 if name == "vit_b_16" else 64
    x = photographs(2, size)
    net = warmed(import_torchvision("models").get_model(name, num_classes=5), x)
    with torch.no_grad(), fused_copy(net, x) as copied:
        assert isinstance(copied, FusedCopy) == folds, explain_speed(net)
        assert torch.allclose(copied(x), net(x), atol=1e-4 * net(x).abs().max().item())
    assert not any(new.weight.numel() for new, _, _ in copied.pairs) if folds else copied is net


@pytest.mark.parametrize("threat", [linf("8/255"), l2(0.5)], ids=str)
def test_the_adversarial_images_are_the_same(threat):
    torch.manual_seed(0)
    x, y = photographs(24, 32), torch.arange(24) % 10
    net = load_backbone("robust_mini_rgb", 10).eval()
    found = {}
    for dtype in (torch.float32, torch.float64):
        made = net.to(dtype)
        ours = pgd(made, x.to(dtype), y, threat)
        assert "9 BatchNorms" in explain_speed(made)
        with plain_attacks():
            theirs = pgd(made, x.to(dtype), y, threat)
        found[dtype] = ((ours - theirs).abs().flatten(1).amax(1) <= 1e-5).double().mean().item()
        assert (made(ours).argmax(1) == made(theirs).argmax(1)).all()
    assert found[torch.float64] == 1
    assert found[torch.float32] >= 0.9, (
        "the sign of a gradient that is zero but for rounding may differ"
    )


@pytest.mark.parametrize("method", ["autolora", pytest.param("trades", marks=pytest.mark.long)])
def test_the_training_is_the_same(tmp_path, method, monkeypatch):
    monkeypatch.setattr(sys, "argv", [""])
    case(method, tmp_path / "fast")
    with plain_attacks():
        case(method, tmp_path / "plain")
    a, b = (json.loads((tmp_path / kind / "counts.json").read_text()) for kind in ("fast", "plain"))
    assert a["rows"] == b["rows"] and all(
        np.allclose(a["history"][k], b["history"][k], rtol=1e-6) for k in a["history"]
    )
    a, b = (load_file(tmp_path / kind / "model.safetensors") for kind in ("fast", "plain"))
    assert all(np.allclose(a[key], b[key], rtol=1e-6, atol=1e-8) for key in a)


class Carrying(nn.BatchNorm2d):
    "Its activation is a part of it, and it asks for the function itself, as timm's does."

    def __init__(self, channels):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        x = nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.1)
        return self.act(self.drop(x))


class LaterActivation(nn.SyncBatchNorm):
    "A synchronised one to which its activation was given later."

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


for kind in (Carrying, LaterActivation):  # a library's class, where a user's would be left alone
    kind.forward.__module__ = "timm.layers.norm_act"


class Halved(nn.BatchNorm2d):
    "What it adds is in none of its parts."

    def forward(self, x):
        return super().forward(x) / 2


class OwnStatistics(nn.BatchNorm2d):
    "Its statistics are the batch's, always."

    def forward(self, x):
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True)


def frozen(channels):
    return import_torchvision("ops").FrozenBatchNorm2d(channels)


def small(norm):
    "A net of three convolutions with `norm`s that have statistics of their own, in eval mode."
    torch.manual_seed(0)
    parts = []
    for c_in, c_out, stride in ((3, 8, 2), (8, 12, 1), (12, 16, 2)):
        parts += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), norm(c_out), nn.Tanh()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        for module in net.modules():
            if hasattr(module, "running_mean"):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2)
                module.weight.uniform_(0.3, 2)
                module.bias.normal_(0, 0.3)
    return net.double().eval()


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, nn.SyncBatchNorm, Carrying, LaterActivation, frozen]
)
def test_every_batchnorm_is_folded_exactly(norm):
    x, y = photographs(6, 32).double(), torch.arange(6) % 5
    net = small(norm)
    with torch.no_grad(), fused_copy(net, x) as copied:
        assert "3 BatchNorms" in explain_speed(net)
        assert torch.allclose(copied(x), net(x), rtol=1e-10, atol=1e-12)
    ours = pgd(net, x, y, linf("8/255"))
    with plain_attacks():
        assert torch.equal(ours, pgd(net, x, y, linf("8/255")))
    with torch.no_grad():
        for p in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
            p.mul_(1.1)
    with torch.no_grad(), fused_copy(net, x) as again:
        assert again is copied and torch.allclose(again(x), net(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [Halved, OwnStatistics])
def test_what_is_more_than_a_batchnorm_is_left_alone(norm):
    x = photographs(6, 32).double()
    net = small(norm)
    with torch.no_grad(), fused_copy(net, x) as copied:
        assert torch.allclose(copied(x), net(x), rtol=1e-10)
    assert "BatchNorms" not in explain_speed(net) or "0 BatchNorms" in explain_speed(net)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "resnext26ts", "vovnet39a"])
@pytest.mark.parametrize("frozen", [False, True])
def test_timms_own_layers(name, frozen):
    import_torchvision()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    x = photographs(2, 64).double()
    net = warmed(timm.create_model(name, num_classes=5).double(), x)
    net = timm.layers.freeze_batch_norm_2d(net) if frozen else net
    with torch.no_grad(), fused_copy(net, x) as copied:
        assert int(explain_speed(net).split(" BatchNorms")[0].split()[-1]) >= 8
        assert torch.allclose(copied(x), net(x), rtol=1e-9, atol=1e-10)
