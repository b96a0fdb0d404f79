"What a refusal names as its cause is the cause, and its advice helps."

import errno
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autolora import AutoLoRaError, evaluate, finetune
from autolora.core.disk import alone, cannot_write
from autolora.core.machine import explain
from autolora.core.threat import parse_threat
from autolora.data.loading import load_task
from autolora.lab.page import serve
from autolora.methods.base import Method
from autolora.models.backbones import load_backbone
from autolora.models.kept import read_weights, rebuilt, save_weights
from autolora.robust.measures import register_attack
from autolora.robust.results import Report
from autolora.runs.grading import EVALUATION, _merged
from autolora.runs.processes import _how_it_ended
from autolora.runs.protocol import design
from autolora.train.callbacks import Callback


def small(width):
    torch.manual_seed(0)
    body = nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(width, 3)).eval()


def refusal(call):
    with pytest.raises(AutoLoRaError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("other", [small(5), nn.Sequential(small(4), nn.Identity())])
def test_a_module_that_isnt_the_trained_one_is_no_damage(tmp_path, other):
    path = tmp_path / "model.safetensors"
    save_weights(path, small(4).state_dict(), "run")
    config = {"backbone": "small", "num_classes": 3, "shape": [1, 8, 8], "head": "keep"}
    tensors = read_weights(path, "run", True)
    same = rebuilt(config, tensors, path, small(4))
    assert torch.equal(same[0].weight, small(4)[0].weight)
    told = refusal(lambda: rebuilt(config, tensors, path, other))
    assert "that was given doesn't take the weights" in told and "damaged" not in told


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    blocking = tmp_path / "runs"
    blocking.touch()
    for out in (blocking, blocking / "a", blocking / "a" / "b"):
        with pytest.raises(AutoLoRaError) as caught, alone(out):
            pass
        told = str(caught.value)
        assert f"{blocking} is a file" in told and "free some space" not in told


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO, errno.EISDIR])
def test_only_a_full_disk_is_told_to_be_full(code):
    told = str(cannot_write("runs/a", OSError(code, os.strerror(code))))
    assert os.strerror(code) in told and "space" not in told
    for full in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert "free some space" in str(cannot_write("runs/a", OSError(full, os.strerror(full))))


def test_no_epoch_is_claimed_that_isnt_there(tmp_path):
    told = [explain(ValueError("x")), explain(MemoryError()), _how_it_ended(-11, tmp_path / "log")]
    assert all("every finished epoch is kept" in sentence for sentence in told)


@pytest.mark.parametrize("name", ["notes.md", "README", "labels.json", "photo.png"])
def test_a_file_of_another_kind_is_no_broken_pack(tmp_path, name):
    (tmp_path / name).write_text("Some words.\n")
    told = refusal(lambda: load_task(tmp_path / name))
    assert "no file that images are read from" in told and "a pack (.npz)" in told


@pytest.mark.parametrize("given", [0.1, 8, "0.1", "8/255", None, "linf", ("linf", 0.1)])
def test_a_threat_without_norm_or_eps(given):
    told = refusal(lambda: parse_threat(given))
    assert "lacks" in told and "linf:8/255" in told
    assert "Unknown norm 'l3'" in refusal(lambda: parse_threat("l3:0.1"))


X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_one_attack_by_its_name():
    model = small(4)
    data = (X, model(X).argmax(1))
    for name in ("pgd-10", "none"):
        found = evaluate(model, data, "linf:0.01", attacks=name)
        assert [row.attack for row in found.rows] == [name]
        assert EVALUATION["attacks"].check(name) == [name]
    assert "attacks must be" in refusal(lambda: EVALUATION["attacks"].check(5))


@pytest.mark.filterwarnings("ignore")
def test_transfer_without_another_model_is_told(monkeypatch):
    from autolora.robust import grades

    few = lambda threat, values, classes: ["none", "transfer"]
    monkeypatch.setitem(grades.GRADES._things, "full", few)
    model = small(4)
    data = (X, model(X).argmax(1))
    found = evaluate(model, data, "linf:0.01", grade="full")
    assert [row.attack for row in found.rows] == ["none"]
    assert "transfer" in found.left_out
    assert "Not measured: transfer, there is no other model" in str(found)
    assert "Not measured: transfer" in found._repr_markdown_()
    again = Report.from_dict(found.to_dict())
    assert again.left_out == found.left_out
    whole = evaluate(model, data, "linf:0.01", grade="full", surrogate=model)
    assert not whole.left_out and not _merged(again, whole).left_out


def own_attack(name):
    gives = {"one": lambda x: x[:1], "none": lambda x: None, "lost": lambda x: x[..., :8]}[name]
    return lambda model, x, y, threat: gives(x)


@pytest.mark.parametrize("name", ["one", "none", "lost"])
def test_an_attack_that_gives_other_images_is_refused(name):
    net = load_backbone("robust_mini_gray", 10).eval()
    x = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    register_attack(f"gives {name}", own_attack(name))
    with pytest.raises(AutoLoRaError, match="gave images of shape|no tensor of images"):
        evaluate(net, (x, y), "linf:0.1", (f"gives {name}",))


@pytest.mark.parametrize("attacks", [("none", None), 5, ("pgd-0",)])
def test_what_is_no_attack_is_said(attacks):
    net, x, y = load_backbone("robust_mini_gray", 10), torch.zeros(2, 1, 16, 16), torch.zeros(2)
    with pytest.raises(AutoLoRaError, match="attacks takes names|Unknown attack 'pgd-0'"):
        evaluate(net, (x, y.long()), "linf:0.1", attacks)


class Declared(Method):
    "CE on natural images, and a term that never comes."

    name = "declared"
    natural = ("ce",)
    adversarial = ("kl",)
    given = staticmethod(lambda nat, y: {"ce": F.cross_entropy(nat, y)})

    def loss(self, nat, adv, y):
        return self.given(nat, y)


LOSSES = {
    "none of the adversarial": lambda nat, y: {"ce": F.cross_entropy(nat, y)},
    "take the mean over": lambda nat, y: {"ce": F.cross_entropy(nat, y, reduction="none")},
    "a dict of names": lambda nat, y: nat.sum(),
}
SHORT = dict(epochs=1, limit=220, lr=0.02, progress=False, test=False)


@pytest.mark.parametrize("words", LOSSES)
def test_a_loss_that_is_none_is_refused_at_the_first_step(tmp_path, words):
    method = type("Declared", (Declared,), {"given": staticmethod(LOSSES[words])})
    with pytest.raises(AutoLoRaError, match=words):
        finetune("robust_mini_gray", "digits", method, out=tmp_path / "run", **SHORT)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"augment": lambda x: x}, "can't be called with two arguments"),
        ({"augment": lambda x, g: None}, "it makes NoneType"),
        ({"augment": lambda x, g: x[..., :8]}, "of the same shape"),
        ({"augment": lambda x, g: x * float("nan")}, "or makes NaN"),
        ({"augment": lambda x, g: 255 * x}, "leaves that range"),
        ({"callbacks": Callback()}, "takes a list of Callback objects"),
        ({"steps": 0}, "of 1 or more, not 0"),
        ({"beta": True}, "beta must be a number"),
    ],
)
def test_settings_that_are_none_are_refused_before_anything_is_written(tmp_path, settings, words):
    with pytest.raises(AutoLoRaError, match=words):
        finetune("robust_mini_gray", "digits", "trades", out=tmp_path / "r", **SHORT | settings)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "methods, settings, words",
    [
        ([Declared], {}, "a class is registered first"),
        ([{"beta": 3}], {}, "a name under 'method'"),
        (["trades"], {"callbacks": [1]}, "for one run, not for a study"),
    ],
)
def test_what_is_no_study_is_refused_at_once(methods, settings, words):
    with pytest.raises(AutoLoRaError, match=words):
        design(methods, ["digits"], None, 1, None, settings)


def test_a_port_that_there_is_not(tmp_path):
    with pytest.raises(AutoLoRaError, match="no port 99999999"):
        serve(tmp_path, 99999999, browser=False)


@pytest.mark.parametrize("threat", ["l2:128", "l1:100000"])
def test_a_budget_beyond_the_image_is_refused(threat, tmp_path):
    with pytest.raises(AutoLoRaError, match="any image of 256 values can become any other"):
        finetune("robust_mini_gray", "digits", threat=threat, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
