"""The catalogue of robust checkpoints that others have published, and what is told of a file that
is called like one of them."""

import re
from collections import OrderedDict

import pytest
import torch

from autolora.core.threat import parse_threat
from autolora.models.backbones import BACKBONES
from autolora.models.inspection import inspect_file
from autolora.models.published import PUBLISHED, own_normalisation
from autolora.runs.catalogue import known

MADRYLAB = "module.model."


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_says_what_it_knows_and_no_more(name):
    about = PUBLISHED[name]
    assert about.source.startswith("https://") and about.paper.startswith("https://")
    assert about.trained_on and about.file.endswith((".pt", ".ckpt"))
    assert bool(about.ra) == bool(about.attack)
    assert not about.ra or float(about.ra) < float(about.sa) < 100
    assert not about.threat or parse_threat(about.threat).eps > 0
    assert about.normalise in ("none", "in the file") or len(own_normalisation(about)[0]) == 3
    if about.backbone and not about.backbone.startswith("timm:"):
        assert about.backbone in BACKBONES


def test_it_is_listed():
    listed = known()["robust checkpoints elsewhere"]
    assert (
        "SA 52.92 %, RA 25.32 % (AutoAttack)"
        in listed["robustbench-Salman2020Do_R18-imagenet-linf"]
    )
    assert not [line for line in listed.values() if re.search(r"None|nan|; ;", line)]


def as_madrylab(name, path):
    "A file of the net `name` with random weights, laid out as MadryLab's are."
    state = BACKBONES[name].build(1000).state_dict()
    tensors = {MADRYLAB + key: value for key, value in state.items()}
    tensors["module.normalizer.new_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    tensors["module.normalizer.new_std"] = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.save({"model": OrderedDict(tensors), "epoch": 89}, path)


def test_a_file_of_that_name_and_net_is_recognised(tmp_path):
    path = tmp_path / "resnet18_linf_eps4.0.ckpt"
    as_madrylab("resnet18", path)
    told = inspect_file(path)
    words = told["by its name salman-resnet18_linf_eps4.0"]
    assert "linf:4/255" in words and "SA 52.49 %" in words and "licence MIT" in words
    assert words.endswith("autolora finetune resnet18 DATA --weights resnet18_linf_eps4.0.ckpt")


def test_a_name_alone_says_nothing(tmp_path):
    path = tmp_path / "resnet50_linf_eps4.0.ckpt"
    as_madrylab("resnet18", path)
    assert not [topic for topic in inspect_file(path) if topic.startswith("by its name")]


def test_a_normalisation_that_is_in_its_code_alone_is_said(tmp_path):
    path = tmp_path / "Rice2020Overfitting.pt"
    torch.save(BACKBONES["preact_resnet18"].build(10).state_dict(), path)
    told = inspect_file(path)
    words = told["by its name robustbench-Rice2020Overfitting-cifar10-l2"]
    assert "neither the file nor preact_resnet18 does" in words and "0.4914" in words
    assert "autolora finetune" not in words
