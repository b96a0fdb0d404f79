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


@pytest.mark.parametrize("method", ["autolora", "trades"])
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
