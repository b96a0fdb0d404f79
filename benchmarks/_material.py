"""What is attacked and trained: real images that need no download, and nets that know them."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from autolora.core.machine import import_torchvision
from autolora.data.loading import load_task
from autolora.models.backbones import load_backbone
from autolora.models.collections import IMAGENET, Normalise
from autolora.models.parts import head_name
from autolora.runs.folder import create_run
from autolora.train.learner import Learner


def photos(n, size=32, classes=10, seed=0):
    """`n` crops of the two photographs that come with scikit-learn, uint8 (n, 3, size, size), and
    their labels.

    The photographs side by side are cut into as many vertical strips as there are `classes`; the
    label is the strip of a crop's centre."""
    from sklearn.datasets import load_sample_images

    pictures, rng = load_sample_images().images, np.random.default_rng(seed)
    y = np.arange(n) % classes
    place = (y + rng.random(n)) / classes * 2  # 0 to 1: the first photograph, 1 to 2: the second
    left = ((place % 1) * (640 - 64)).astype(int)
    top = rng.integers(0, 427 - 64, n)
    crops = np.stack(
        [pictures[int(p)][t : t + 64, x : x + 64] for p, t, x in zip(place, top, left, strict=True)]
    )
    x = F.interpolate(
        torch.from_numpy(crops).permute(0, 3, 1, 2).float(),
        size=(size, size),
        mode="bilinear",
        antialias=True,
    )
    return x.round().clamp(0, 255).byte().contiguous(), torch.from_numpy(y)


def images(n, data=None, size=32):
    """`n` float images in [0, 1] and labels: of `data` (a name or a path of a task), else
    photographs."""
    if data is None:
        x, y = photos(n, size)
        return x.float() / 255, y
    split = load_task(data, size=size if data not in ("digits", "mnist5k") else None).train
    chosen = torch.arange(min(n, len(split)))
    return split.images(chosen).contiguous(), split.y[chosen]


def probe(model, x, y):
    """Fit `model`'s head to `x`, `y` by logistic regression on its own features, in place: a net
    that is right on many images, and robust on some."""
    from sklearn.linear_model import LogisticRegression

    features, head = [], model.get_submodule(head_name(model))
    hook = head.register_forward_pre_hook(lambda module, given: features.append(given[0]))
    with torch.no_grad():
        for part in x.split(256):
            model.eval()(part)
    hook.remove()
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(torch.cat(features).numpy(), y.numpy())
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.coef_))
        head.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model


def probed(name, x, y):
    "The backbone `name`, contiguous, in eval mode, with a head fitted to the images."
    return probe(load_backbone(name, int(y.max()) + 1, x.shape[1]), x, y)


def small_stem_resnet(name="resnet18", classes=10):
    """torchvision's ResNet for 32x32 images: a 3x3 stem of stride 1, no max pooling; random
    weights, normalisation inside."""
    net = import_torchvision("models").get_model(name, num_classes=classes)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return nn.Sequential(Normalise(*IMAGENET), net)


def learner(method, task, epochs=100, lr=0.01, batch_size=128):
    "A `Learner` in a run folder of its own, ready for `fit_epoch`."
    run = create_run(Path(tempfile.mkdtemp()) / "run", {"seed": 0})
    made = Learner(method, task, run, method.schedule(lr, epochs), epochs, batch_size)
    made.call("before_fit")
    return made
