"What a refusal names as its cause is the cause, and its advice helps."

import errno
import os

import pytest
import torch
from torch import nn

from autolora import AutoLoRaError, evaluate
from autolora.core.disk import alone, cannot_write
from autolora.core.machine import explain
from autolora.core.threat import parse_threat
from autolora.data.loading import load_task
from autolora.models.kept import read_weights, rebuilt, save_weights
from autolora.robust.results import Report
from autolora.runs.grading import EVALUATION, _merged
from autolora.runs.processes import _how_it_ended


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
