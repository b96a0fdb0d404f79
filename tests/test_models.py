"""Any model at the door: what comes out is a plain classifier with the right head, or a refusal
that names the true cause."""

import copy
import subprocess
import sys
import warnings
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from autolora import AutoLoRaError, Run, evaluate, finetune
from autolora.core.machine import import_torchvision
from autolora.models.adoption import adopt, as_logits
from autolora.models.backbones import BACKBONES, load_backbone
from autolora.models.collections import IMAGENET, Normalise
from autolora.models.inspection import check_frozen, inspect_model
from autolora.models.kept import check_saving, read_weights, rebuilt, save_weights
from autolora.models.parts import call_with, head_name, split_parameters
from autolora.models.programs import captured
from autolora.models.views import LowRankBranch, SplitBN, adaptable, frozen_call
from autolora.robust.attacks import pgd
from autolora.runs.preparation import prepare

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4) % 3
PIXELS = np.random.default_rng(0).integers(0, 256, (320, 3, 16, 16)).astype("u1")
DATA = (PIXELS, np.arange(320) % 3)
POOL = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


def body():
    stem = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*stem, nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), *POOL)


class Net(nn.Module):
    "A small classifier of 7 classes; `how(net, images, features, logits)` is what it returns."

    def __init__(self, how=lambda net, x, h, z: z):
        super().__init__()
        self.body = body()
        self.fc = nn.Linear(12, 7)
        self.how = how

    def forward(self, x):
        h = self.body(x)
        return self.how(self, x, h, self.fc(h))


def short(model, **settings):
    "A run of one epoch in a folder of its own."
    fixed = {"epochs": 1, "lr": 0.01, "batch_size": 16, "steps": 1, "progress": False}
    return finetune(model, DATA, **{**fixed, "test": False, **settings})


def refused(words, model, **settings):
    with pytest.raises(AutoLoRaError, match=words):
        prepare(model, DATA, lr=0.01, batch_size=16, **settings)


# the head


class Projected(Net):
    "Layers that its forward never calls, or calls for something else, come last."

    def __init__(self):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 32))


class First(nn.Module):
    "Its head is registered first."

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 7)
        self.body = body()
        self.embed = nn.Linear(12, 16)

    def forward(self, x):
        return self.head(self.embed(self.body(x)).relu())


class Gated(nn.Module):
    "A convolution for a head, beside a squeeze-and-excitation gate of linear layers."

    def __init__(self):
        super().__init__()
        self.body = body()[:6]
        self.classifier = nn.Conv2d(12, 7, 1)
        self.gate = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 12), nn.Sigmoid())

    def forward(self, x):
        h = self.body(x)
        h = h * self.gate(h.mean((2, 3)))[:, :, None, None]
        return self.classifier(h).mean((2, 3))


class Cosine(Net):
    "A head of normalised weights with a learned temperature."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        return self.scale * F.linear(F.normalize(self.body(x)), F.normalize(self.fc.weight))


class Aliased(Net):
    "Its head's weight has another name besides, which comes first."

    def __init__(self):
        super().__init__()
        self.weights = self.fc.weight


HEADS = {
    "fc": Net,
    "fc ": Projected,
    "head": First,
    "classifier": Gated,
    "1.1": lambda: nn.Sequential(body(), nn.Sequential(nn.Dropout(), nn.Linear(12, 7))),
    "6": lambda: nn.Sequential(*body()[:6], nn.Conv2d(12, 7, 1), nn.ReLU(), *POOL),
    "fc  ": Cosine,
    "net.fc": lambda: Net(lambda net, x, h, z: (h, z)),
    "fc   ": Aliased,
    "3": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, 7)),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_layer_whose_output_is_the_logits(name):
    model = adopt(HEADS[name](), X, 3).model
    assert head_name(model) == name.strip()
    assert model(X).shape == (4, 3)
    assert not [n for n in adaptable(model) if n.startswith(name.strip() + ".")]
    branch = LowRankBranch(model)
    F.cross_entropy(branch(X), Y).backward()
    fe, head = split_parameters(model)
    assert all(model.get_parameter(n).grad is not None for n in head if "weight" in n)
    assert all(model.get_parameter(n).grad is None for n in fe)


def test_a_model_that_nobody_inspected_is_tried():
    assert head_name(Projected()) == "fc" and head_name(First()) == "head"


@pytest.mark.parametrize("cut", [slice(None), slice(0, 6)], ids=["vector", "map"])
def test_a_headless_body_gets_a_head(cut):
    found = adopt(body()[cut], X, 3)
    assert found.model(X).shape == (4, 3) and head_name(found.model) == "head"
    assert "got one" in found.told[-1]
    tokens = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.LayerNorm(16))
    assert adopt(tokens, X, 3).model(X).shape == (4, 3)


def test_several_heads_are_a_question():
    class Two(Net):
        def __init__(self):
            super().__init__(lambda net, x, h, z: (z, net.rotation(h)))
            self.rotation = nn.Linear(12, 4)

    refused(r"several heads \(fc, rotation\)", Two())
    assert head_name(prepare(Two(), DATA, head_layer="rotation").method.model) == "net.rotation"
    refused(
        "gives none of the model's outputs: those come from fc, rotation", Two(), head_layer="x"
    )
    added = Net()
    added.other = nn.Linear(12, 7)
    added.how = lambda net, x, h, z: z + net.other(h)
    refused(r"several heads", added)


# outputs and wrappers

Output = namedtuple("Output", "logits aux")


class Attacker(nn.Module):
    "As MadryLab's AttackerModel: the net twice, and the image beside the logits."

    def __init__(self):
        super().__init__()
        self.normalizer = Normalise((0.5,) * 3, (0.25,) * 3)
        self.model = Net()
        self.attacker = nn.Module()
        self.attacker.normalize = self.normalizer
        self.attacker.model = self.model

    def forward(self, x, target=None, make_adv=False):
        return self.model(self.normalizer(x)), x


OUTPUTS = {
    "tuple": lambda: Net(lambda net, x, h, z: (z, x)),
    "dict": lambda: Net(lambda net, x, h, z: {"features": h, "out": z}),
    "logits": lambda: Net(lambda net, x, h, z: SimpleNamespace(logits=z, hidden_states=None)),
    "auxiliary": lambda: Net(lambda net, x, h, z: Output(z, net.fc(h)) if net.training else z),
    "longer in training": lambda: Net(lambda net, x, h, z: [h, x, z] if net.training else (h, z)),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "inside": lambda: nn.Sequential(Normalise(*IMAGENET), nn.DataParallel(Net())),
    "compiled": lambda: torch.compile(Net()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Net()),
    "AttackerModel": Attacker,
    "half": lambda: Net().half(),
    "bfloat16": lambda: Net().bfloat16(),
    "double": lambda: Net().double(),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_any_output_in_any_wrapper(name):
    own = OUTPUTS[name]()
    before = copy.deepcopy(own.state_dict())
    model = adopt(own, X, 3).model
    for training in (False, True):
        logits = model.train(training)(X)
        assert logits.shape == (4, 3) and logits.dtype == torch.float32
    branch = LowRankBranch(model.eval())
    assert torch.allclose(branch(X), model(X), atol=1e-5)
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in before.items())
    check_saving(model)


@pytest.mark.parametrize("name", ["tuple", "AttackerModel", "auxiliary", "bfloat16"])
def test_such_a_model_is_trained_saved_and_opened(name, tmp_path):
    own = OUTPUTS[name]()
    run = short(own, out=tmp_path / "run")
    again = Run.open(run.path, model=own)
    assert torch.allclose(again.model(X), run.model(X), atol=1e-6)
    assert torch.allclose(again.branch.eval()(X), run.branch.eval()(X), atol=1e-5)
    assert run.config["model"]["head"].endswith("12 features to 3 classes)")
    assert "head" in (again.path / "config.json").read_text()


@pytest.mark.parametrize("wrong", [None, 3, "robust_mini_rgb", Net, lambda x: x])
def test_evaluate_takes_modules_alone(wrong):
    with pytest.raises(AutoLoRaError, match="is no nn.Module"):
        evaluate(wrong, (X, Y), "linf:0.1", ["none"])


def test_evaluate_takes_them_too():
    own = Net(lambda net, x, h, z: {"logits": z})
    report = evaluate(own, (X, Y), "linf:0.1", ["none"])
    assert report.rows[0].n == 4
    assert as_logits(own.eval(), X)(X).shape == (4, 7)
    with pytest.raises(AutoLoRaError, match="model.float()"):
        evaluate(Net().bfloat16(), (X, Y), "linf:0.1")


def test_peft_is_merged():
    peft = pytest.importorskip("peft")
    plain = Net()
    layers = peft.LoraConfig(target_modules=["body.3"], init_lora_weights=False)
    own = peft.get_peft_model(copy.deepcopy(plain), layers).eval()
    found = adopt(own, X, 7, keep=True)
    assert torch.allclose(found.model.eval()(X), own(X), atol=1e-5)
    assert not [name for name, _ in found.model.named_parameters() if "lora" in name]
    assert "merged" in found.told[0]


# tensors in two places


def test_a_call_swaps_every_place_and_puts_all_back():
    own = Attacker()
    model = adopt(own, X, 3).model.eval()
    places = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    name = next(name for name in places if name.endswith("body.3.weight"))
    swapped = call_with(model, {name: torch.zeros_like(model.get_parameter(name))}, X)
    assert not torch.allclose(swapped, model(X))
    alias = next(n for n in places if n != name and places[n] == places[name])
    again = call_with(model, {alias: torch.zeros_like(model.get_parameter(name))}, X)
    assert torch.equal(swapped, again)
    for view in (LowRankBranch(model), SplitBN(model)):
        view(X)
    frozen_call(model, X)
    assert places == {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()
        self.a = nn.Linear(12, 12)
        self.b = nn.Linear(12, 12)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(12, 7)

    def forward(self, x):
        return self.fc(self.b(self.a(self.body(x)).relu()).relu())


def test_tied_weights_are_saved_and_stay_tied(tmp_path):
    own = Tied()
    run = short(own, out=tmp_path / "run")
    again = Run.open(run.path, model=own).model
    assert again.a.weight is again.b.weight
    assert torch.allclose(again(X), run.model(X), atol=1e-6)
    assert "a.weight is also b.weight" in run.config["model"]["twice in it"]


class Stateful(Net):
    state = {"version": 1}

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_a_state_that_is_no_tensor(tmp_path):
    own = Stateful()
    own.state = {"version": 2}
    save_weights(tmp_path / "own.safetensors", own.state_dict(), "a run")
    again = Stateful()
    again.load_state_dict(read_weights(tmp_path / "own.safetensors", "a run", strict=True))
    assert again.state == {"version": 2}
    own.state = print
    refused("can't be saved and read again", own)


class Selective(Net):
    def state_dict(self, *args, **kwargs):
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if "fc" not in k}


def test_a_state_that_lacks_the_head_is_refused_with_the_cause():
    refused("can't be saved and read again .*fc", Selective())


# weights that are computed


def hooked(hook):
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hook(net.body[0])
        hook(net.body[3])
    net.train()(X)
    return net.eval()


COMPUTED = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_the_branch_adapts_what_a_weight_is_made_of(name):
    own = hooked(COMPUTED[name])
    model = adopt(own, X, 7, keep=True).model.eval()
    assert torch.allclose(model(X), own(X), atol=1e-5)
    branch = LowRankBranch(model)
    assert len(branch.names) == 1 and "body.3.parametrizations" in branch.names[0]
    assert torch.allclose(branch(X), model(X), atol=1e-5)
    F.cross_entropy(branch(X), Y).backward()
    assert branch.B["body/3/" + branch.names[0].split(".", 2)[2].replace(".", "/")].grad.any()
    merged = branch.merged()
    assert torch.allclose(merged.eval()(X), branch(X), atol=1e-4)
    if name == "pruned":
        assert torch.equal(model.body[3].weight == 0, own.body[3].weight == 0)


# refused, with the true cause


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Net().eval(), X)


def on_meta():
    with torch.device("meta"):
        return Net()


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, torch.qint8)


class Needs(Net):
    def forward(self, x, domain):
        return super().forward(x) * domain


class LazyLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()
        self.fc = nn.LazyLinear(7)

    def forward(self, x):
        return self.fc(self.body(x))


class Bare(nn.Module):
    "Its last weight belongs to no layer."

    def __init__(self, how=F.linear):
        super().__init__()
        self.body = body()
        self.weights = nn.Parameter(torch.rand(7, 12))
        self.how = how

    def forward(self, x):
        return self.how(self.body(x), self.weights)


def tied_head():
    net = Tied()
    net.fc = nn.Linear(12, 12)
    net.fc.weight = net.a.weight
    return net


class Twice(nn.Module):
    "One layer serves within and at the end."

    def __init__(self):
        super().__init__()
        self.body = body()
        self.fc = nn.Linear(12, 12)

    def forward(self, x):
        return self.fc(self.fc(self.body(x)).relu())


class Fixed(Net):
    "One that takes so many images at once, and no others."

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        if len(x) != self.n:
            raise ValueError(f"{self.n} at a time")
        return super().forward(x)


class Before(Net):
    "Something is done to the images before the net gets them."

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return super().forward(self.change(x))


def exported():
    return torch.export.export(Net().eval(), (X[:2],)).module()


class Hidden(Net):
    "A layer of it lies in a plain list, or dict."

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, x):
        layer = self.kept["a"] if isinstance(self.kept, dict) else self.kept[0]
        return self.fc(layer(self.body(x)).relu())


class SideBySide(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()
        self.parts = nn.ModuleList([nn.Linear(12, 3), nn.Linear(12, 4)])

    def forward(self, x):
        features = self.body(x)
        return torch.cat([part(features) for part in self.parts], 1)


class Complex(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 7, dtype=torch.complex64)

    def forward(self, x):
        return self.fc(self.body(x).to(torch.complex64)).abs()


def _entry(x):
    x[:, 0] = 0.5
    return x


def averaged():
    net = Net(lambda net, x, h, z: (z + net.second(h)) / 2)
    net.second = nn.Linear(12, 7)
    return net


def graph_kept():
    net = Net(lambda net, x, h, z: z + (setattr(net, "ema", 0.9 * net.ema + h.mean()) or 0))
    net.register_buffer("ema", torch.zeros(()))
    return net


WRITES = {
    "subtracts": lambda x: x.sub_(0.45),
    "scales": lambda x: x.mul_(0.6),
    "clamps": lambda x: x.clamp_(0, 1),
    "an entry": _entry,
    "past autograd": lambda x: x + 0 * x.data.mul_(0.5),
    "without gradients": lambda x: x * 2 if x.requires_grad else x.mul_(2),
}


REFUSED = {
    "come from a parameter of its own and no layer": Bare,
    "come from a parameter of its own and no layer: make": lambda: Bare(
        lambda h, w: torch.einsum("nd,kd->nk", h, w)
    ),
    "shares its weight with": tied_head,
    "its 'fc' is used elsewhere in it": Twice,
    "numbers of type int64": lambda: Net(lambda net, x, h, z: z.argmax(1)),
    "one logit a class": lambda: Net(lambda net, x, h, z: z[:, :, None, None]),
    "lazy layers": LazyLast,
    "meta device": on_meta,
    "TorchScript": scripted,
    "quantised": quantised,
    "needs more than the images": Needs,
    "no parameters": nn.Flatten,
    "gives probabilities: the softmax": lambda: Net(lambda net, x, h, z: z.softmax(1)),
    "gives probabilities: the sigmoid": lambda: Net(lambda net, x, h, z: z.sigmoid()),
    "No gradient gets through": lambda: Net(lambda net, x, h, z: net.fc(h.detach())),
    "without a tensor": lambda: Net(lambda net, x, h, z: None),
    "it takes 224 x 224 pixels": lambda: import_torchvision("models").VisionTransformer(
        224, 56, 1, 2, 16, 16
    ),
    "1 channel, the task's have 3": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), *POOL),
    "batches of 8 alone .*8 at a time": lambda: Fixed(8),
    "raised KeyError .*: 'domain'": lambda: Before(lambda x: {}["domain"]),
    "what torch.export made": exported,
    "batches of 2 images and not of 3": lambda: Fixed(2),
    "weights that aren't among its parameters .*12, 12": lambda: Hidden([nn.Linear(12, 12)]),
    "weights that aren't .* nn.ModuleDict": lambda: Hidden({"a": nn.Linear(12, 12)}),
    "2 layers side by side .parts.0, parts.1.": SideBySide,
    "complex weights": Complex,
    "is exactly zero, as after rounding": lambda: Before(lambda x: (x * 255).round() / 255),
    "exactly zero, as after rounding, a": lambda: Before(lambda x: (x > 0.5).float() + 0 * x),
    "mean .123.7, .* which is for pixels from 0 to 255": lambda: Before(
        lambda x: (x - 123.7) / 58.4
    ),
    "shape .7,. for 1 image, .* squeeze": lambda: Net(lambda net, x, h, z: z.squeeze()),
    "buffer 'ema' of Net keeps": graph_kept,
    "gives what it kept from another call": lambda: Net(
        lambda net, x, h, z: vars(net).setdefault("old", z.detach())
    ),
    "several heads together .fc, second.*head='keep'": averaged,
    "normalises its images twice": lambda: nn.Sequential(
        Normalise(*IMAGENET), load_backbone("robust_mini_rgb", 7)
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_with_the_true_cause(words):
    refused(words, REFUSED[words]())


def test_one_of_several_heads_is_kept_or_nothing():
    with pytest.raises(AutoLoRaError, match="come from more than 'fc'"):
        adopt(averaged(), X, 7, head_layer="fc")
    net = averaged().eval()
    kept = adopt(net, X, 7, head_layer="fc", keep=True)
    assert torch.allclose(kept.model.eval()(X), net(X), atol=1e-6)


def test_a_new_head_before_a_relu_is_not_born_dead():
    for seed in range(4):
        torch.manual_seed(seed)
        made = load_backbone("squeezenet1_0", 5, weights=None).eval()
        assert (made(torch.rand(2, 3, 64, 64)) > 0).any()


class Roundabout(Net):
    "Its head, or a weight of its body, is reached by another way too."

    def __init__(self, way):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.way = way
        self.kept = {"list": [self.fc], "dict": {"a": self.fc}, "weight": [self.first.weight]}

    def forward(self, x):
        if self.way == "weight":
            return super().forward(F.conv2d(x, self.kept["weight"][0], self.first.bias))
        head = self.kept["list"][0] if self.way == "list" else self.kept["dict"]["a"]
        return head(self.body(x))


@pytest.mark.parametrize("way", ["list", "dict"])
def test_a_new_head_that_the_forward_never_takes_is_refused(way):
    refused("A new head has no effect in Roundabout", Roundabout(way))


def test_a_branch_that_can_act_on_no_weight_of_a_list_is_refused():
    refused("The branch can't act on first.weight", Roundabout("weight"))
    prepare(Roundabout("weight"), DATA, "at", lr=0.01, batch_size=16)  # which needs no branch


def keeps(how):
    "A net that leaves something of its forward in itself."

    def forward(net, x, h, z):
        if how == "buffer":
            net.seen = h.detach()
        else:
            net.seen = h
        return z

    made = Net(forward)
    if how == "buffer":
        made.register_buffer("seen", torch.zeros(2, 12), persistent=False)
    return made


@pytest.mark.parametrize("how", ["features", "buffer"])
def test_what_a_forward_keeps_stops_no_training(how):
    own = keeps(how)
    run = short(own)
    assert len(run.history) == 1 and Run.open(run.path, model=keeps(how)).model is not None


@pytest.mark.parametrize("how", ["cast", "autocast"])
def test_logits_in_half_precision_train_to_the_end(how):
    class Halved(Net):
        def forward(self, x):
            if how == "cast":
                return super().forward(x).bfloat16()
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    assert len(short(Halved()).history) == 1


def test_a_reentrant_checkpoint_is_refused_everywhere():
    from torch.utils.checkpoint import checkpoint

    class Saving(Net):
        def forward(self, x):
            return self.fc(checkpoint(self.body, x, use_reentrant=True))

    own = Saving().eval()
    y = own(X).argmax(1)
    for call in (
        lambda: prepare(own, DATA, lr=0.01, batch_size=16),
        lambda: evaluate(own, (X, y), "linf:0.1"),
        lambda: pgd(own, X, y, "linf:0.1"),
    ):
        with pytest.raises(AutoLoRaError, match="use_reentrant=False"):
            call()


def test_pgd_says_what_a_model_should_give():
    own = Net(lambda net, x, h, z: {"logits": z}).eval()
    with pytest.raises(AutoLoRaError, match="gives a dict: wrap it"):
        pgd(own, X, torch.tensor([0, 1, 2, 3]), "linf:0.1")


def test_a_head_that_comes_as_zeros_is_no_fault():
    net = Net(lambda net, x, h, z: z)
    nn.init.zeros_(net.fc.weight)
    for classes in (3, net.fc.out_features):  # torchvision's ViTs and several of timm's come so
        assert adopt(net, X, classes).model.get_submodule("fc").weight.any()


@pytest.mark.parametrize("name", WRITES)
def test_a_forward_that_writes_to_its_input_is_refused_everywhere(name):
    own, x, y = Before(WRITES[name]).eval(), X.clone(), torch.tensor([0, 1, 2, 3])
    for call in (
        lambda: adopt(own, x, 3),
        lambda: evaluate(own, (x, y), "linf:0.1"),
        lambda: evaluate(own, (x, y), "linf:0.1", ["none"]),
        lambda: pgd(own, x, y, "linf:0.1"),
    ):
        with pytest.raises(AutoLoRaError, match=r"begin it with x = x.clone\(\)"):
            call()
        assert torch.equal(x, X)
    adopt(Before(lambda x: WRITES[name](x.clone())), x, 3)


BLIND = {
    "No gradient gets through Net": lambda: Net(lambda net, x, h, z: z.detach()),
    "No gradient gets through": lambda: Net(lambda net, x, h, z: F.one_hot(z.argmax(1), 7) * 1.0),
    "gradient gets through Before": lambda: Before(lambda x: torch.from_numpy(x.detach().numpy())),
    "quantised": quantised,
    "TorchScript": scripted,
    "is TorchScript, in which": lambda: nn.Sequential(scripted()),
    "lazy layers": LazyLast,
    "meta device": on_meta,
    "complex weights": Complex,
    "batches of 2 images and not of 3": lambda: Fixed(2),
    "what torch.export made": exported,
}


@pytest.mark.parametrize("words", BLIND)
def test_who_measures_a_model_is_told_the_same_cause(words):
    own, y = BLIND[words](), torch.arange(4)
    refused(words, own)
    with pytest.raises(AutoLoRaError, match=words):
        evaluate(own, (X, y), "linf:0.1")
    if "batches" not in words:
        with pytest.raises(AutoLoRaError, match=words):
            pgd(own, X, y, "linf:0.1")


def test_a_model_without_gradients_can_be_measured_on_natural_images():
    own = Net(lambda net, x, h, z: z.detach())
    assert evaluate(own, (X, torch.arange(4)), "linf:0.1", ["none"]).rows[0].n == 4


class Pyramid(nn.Module):
    "Maps of features, as timm's features_only gives them."

    def __init__(self, kind=list):
        super().__init__()
        self.kind = kind
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 3, 2, 1), nn.ReLU()) for c in (3, 6, 12)
        )

    def forward(self, x):
        maps = []
        for part in self.parts:
            x = part(x)
            maps.append(x)
        return {str(i): m for i, m in enumerate(maps)} if self.kind is dict else self.kind(maps)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_head_stands_on_the_last_of_several_maps(kind):
    found = adopt(Pyramid(kind), X, 3)
    assert found.model.head.in_features == 24 and "item 2" in found.told[0]
    assert "without effect" not in inspect_model(found, X)


SEEN = {
    "none: images enter as they are": lambda x: x,
    "inside the model, mean [0.0, 0.0, 0.0], std [0.004": lambda x: x * 255,
    "inside the model, mean [0.45": lambda x: x - 0.45,
    "inside the model, mean [0.5": lambda x: 2 * x - 1,
    "each image by its own mean": lambda x: (
        (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    ),
    "each image by its own": lambda x: F.layer_norm(x, x.shape[1:]),
    "can't be told": lambda x: x - x.mean((1, 2, 3), keepdim=True),
}


@pytest.mark.parametrize("words", SEEN)
def test_what_is_done_to_the_images_is_told(words):
    found = inspect_model(adopt(Before(SEEN[words]), X, 3), X)
    assert found["normalisation"].startswith(words)


def test_adapters_that_are_switched_off_are_not_merged_unseen(monkeypatch):
    class PeftModel(Net):
        "What it merges isn't what it computes, as PEFT's with disabled adapters."

        def merge_and_unload(self):
            net = Net(self.how)
            net.load_state_dict({k: v + 0.1 for k, v in self.state_dict().items()})
            return net

    with pytest.raises(AutoLoRaError, match="other logits than as it was handed over"):
        adopt(PeftModel(), X, 3)


def test_disabled_adapters_are_refused_and_active_ones_merged():
    peft = pytest.importorskip("peft")
    layers = peft.LoraConfig(target_modules=["body.3"], init_lora_weights=False)
    own = peft.get_peft_model(Net(), layers).eval()
    own.add_adapter("other", layers)
    assert torch.allclose(adopt(own, X, 7, keep=True).model.eval()(X), own(X), atol=1e-5)
    own.set_adapter("other")
    assert torch.allclose(adopt(own, X, 7, keep=True).model.eval()(X), own(X), atol=1e-5)
    with own.disable_adapter(), pytest.raises(AutoLoRaError, match="switch them on"):
        adopt(own, X, 7)


def test_a_graph_that_cannot_be_written_down_leaves_nothing_on_the_screen(capfd):
    flips = Before(lambda x: x.flip(3) if torch.rand(()) < 0.5 else x)
    with pytest.raises(AutoLoRaError, match="can't be written down"):
        captured(flips, X.shape[1:])
    assert capfd.readouterr() == ("", "")


def test_log_probabilities_are_logits():
    found = adopt(Net(lambda net, x, h, z: z.log_softmax(1)), X, 3)
    assert "log-probabilities" in found.told[0]


# frozen


def test_a_frozen_extractor_is_refused_or_thawed(tmp_path):
    own = Net().requires_grad_(False)
    refused("all 2 weights of the feature extractor are frozen", own)
    run = short(own, thaw=True, lr=0.1, out=tmp_path / "run")
    assert not torch.equal(run.model.body[3].weight, own.body[3].weight)
    assert prepare(own, DATA, "alf").config["model"]["frozen"].startswith("8 of 10")
    own.requires_grad_(True).body[0].requires_grad_(False)
    assert "2 of 10 tensors stay frozen" in prepare(own, DATA).config["model"]["frozen"]
    kept = check_frozen(adopt(own, X, 3).model, True, False)
    assert "body.0.weight" in kept


def test_what_was_found_is_told(tmp_path, capfd):
    run = short(nn.Sequential(Normalise(*IMAGENET), Projected()), progress=True, out=tmp_path / "r")
    found = run.config["model"]
    assert found["head"] == "1.fc (Linear, 12 features to 3 classes)"
    assert found["normalisation"].startswith("inside the model, mean [0.485")
    assert found["branch"].startswith("3 of 4 weights")
    assert "head: 1.fc" in capfd.readouterr().err
    images = inspect_model(adopt(Net(), X, 3), X)
    assert images["normalisation"].startswith("none: images enter as they are")


# a head that is kept


def test_a_trained_head_is_kept_for_the_same_classes(tmp_path):
    own = Net()
    refused("knows 7 classes and the data have 3", own, head="keep")
    own.fc = nn.Linear(12, 3)
    found = prepare(own, DATA, head="keep").method.model
    assert torch.equal(found.fc.weight, own.fc.weight)
    run = short(own, head="keep", out=tmp_path / "run")
    assert torch.allclose(Run.open(run.path, model=own).model(X), run.model(X), atol=1e-6)
    refused("no head to keep", body(), head="keep")
    trained = load_backbone("robust_mini_rgb", 3)
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    given = {"weights": str(tmp_path / "trained.pt"), "head": "keep"}
    kept = prepare("robust_mini_rgb", DATA, **given).method.model
    assert torch.equal(kept.net.head.weight, trained.net.head.weight)
    torch.save(load_backbone("robust_mini_rgb", 5).state_dict(), tmp_path / "trained.pt")
    refused("knows 5 classes and the data have 3", "robust_mini_rgb", **given)


# names

SMALL = """
from torch import nn

class Small(nn.Module):
    "Two convolutions of mine."
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    def forward(self, x):
        return {"logits": self.net(x)}

def fixed():
    return Small(5)
"""


def test_a_net_in_a_module_path_works_in_the_command_and_reopens(tmp_path):
    (tmp_path / "my_own_nets.py").write_text(SMALL)
    np.savez(tmp_path / "pack.npz", train_x=PIXELS.transpose(0, 2, 3, 1), train_y=DATA[1])
    call = "import autolora.cli as c, sys; sys.path.pop(0); sys.exit(c.main({!r}))"
    fixed = ["--epochs", "1", "--lr", "0.01", "--steps", "1", "--batch-size", "16", "--out", "run"]
    words = ["finetune", "my_own_nets:Small", "pack.npz", *fixed]
    done = subprocess.run(
        [sys.executable, "-c", call.format(words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    opened = "import autolora, torch; model = autolora.Run.open('run').model; "
    opened += "print(model(torch.rand(2, 3, 16, 16)).shape)"
    done = subprocess.run(
        [sys.executable, "-c", opened], cwd=tmp_path, capture_output=True, text=True
    )
    assert "[2, 3]" in done.stdout, done.stderr


@pytest.mark.parametrize("wrong", [None, 3, Net, ("a", "b"), Net().state_dict(), lambda x: x])
def test_what_is_no_backbone_is_said(wrong):
    refused("is no backbone: give a name, such as 'robust_mini_rgb' .*nn.Module", wrong)


def test_a_file_is_no_backbone(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    refused("it is a file, whose weights=", str(tmp_path / "weights.pt"))


def test_known_names():
    for name in ("robust_mini_gray", "robust_mini_rgb", "resnet18", "resnet152"):
        assert name in list(BACKBONES)
    assert "efficientnet_b0" in BACKBONES and "no_such_net" not in BACKBONES
    for name in ("cifar_resnet18", "preact_resnet18", "robustssl_resnet18"):
        assert load_backbone(name, 7, weights=None)(X).shape == (4, 7)
    with pytest.raises(AutoLoRaError, match="did you mean 'resnet18'"):
        load_backbone("resnet_18", 7)
    with pytest.raises(AutoLoRaError, match="leads nowhere"):
        load_backbone("autolora.models.nets:Nothing", 7)


ZOO = {"squeezenet1_1": "net.classifier.1", "mobilenet_v3_small": "net.classifier.3"}
ZOO |= {"shufflenet_v2_x0_5": "net.fc", "mnasnet0_5": "net.classifier.1"}


@pytest.mark.parametrize("name", ZOO)
def test_torchvision_classifiers_by_name(name):
    model = load_backbone(name, 5, weights=None).eval()
    x = torch.rand(2, 3, 64, 64)
    assert head_name(model) == ZOO[name] and model(x).shape == (2, 5)
    branch = LowRankBranch(model)
    assert torch.allclose(branch(x), model(x), atol=1e-4)


@pytest.mark.parametrize("collection, package", [("timm", "timm"), ("hf", "transformers")])
def test_an_extra_that_is_missing_is_one_sentence(collection, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AutoLoRaError, match=f"pip install 'autolora\\[{collection}\\]'"):
        load_backbone(f"{collection}:resnet18_for_this_test", 5)


def test_timm_by_name():
    import_torchvision()
    pytest.importorskip("timm")
    model = load_backbone("timm:resnetv2_18", 5, weights=None).eval()
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert BACKBONES["timm:vit_tiny_patch16_224"].size == 224
    with pytest.raises(AutoLoRaError, match="did you mean"):
        load_backbone("timm:resnet_18", 5)


def test_hugging_face_folder(tmp_path):
    import_torchvision()
    hub = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 8], "depths": [1, 1], "embedding_size": 8, "num_labels": 4}
    own = hub.ResNetForImageClassification(hub.ResNetConfig(**sizes, layer_type="basic"))
    own.save_pretrained(tmp_path / "net")
    (tmp_path / "net" / "preprocessor_config.json").write_text(
        '{"do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    model = load_backbone(f"hf:{tmp_path / 'net'}", 3)
    assert model.normalise.std.flatten().tolist() == [0.25] * 3
    assert model(X).shape == (4, 3)
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(model.net.net.get_parameter(stem), own.get_parameter(stem))


class Caching(nn.Module):
    "In eval mode it keeps what it has computed from its weights, as LeViT does its biases."

    def __init__(self):
        super().__init__()
        self.body = body()
        self.scale = nn.Parameter(torch.ones(12))
        self.fc = nn.Linear(12, 3)
        self.cache = {}

    def train(self, mode=True):
        self.cache = {} if mode else self.cache
        return super().train(mode)

    def forward(self, x):
        if not self.training:
            self.cache.setdefault("scale", self.scale.exp())
        scale = self.scale.exp() if self.training else self.cache["scale"]
        return self.fc(self.body(x) * scale)


def test_a_net_that_keeps_what_it_computed_can_be_copied():
    model = Caching().eval()
    model(X)
    assert torch.equal(adopt(model, X, 3, keep=True).model(X), model(X))
    branch = LowRankBranch(model)
    for B in branch.B.values():
        nn.init.normal_(B, std=0.1)
    model(X)
    assert torch.allclose(branch.merged()(X), branch(X), atol=1e-5)


def test_nothing_that_a_net_keeps_outlives_an_inspection():
    model = adopt(Caching(), X, 3).model.eval()
    with torch.no_grad():
        model.get_parameter("scale").fill_(2)
    found = model(X)
    assert torch.equal(found, model.train().eval()(X))


class Deep(Net):
    "With a layer over channels, rows and columns: its weight has five axes."

    def __init__(self):
        super().__init__()
        self.deep = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x):
        return super().forward(self.deep(x[:, None])[:, 0])


def test_a_weight_of_five_axes_stops_nothing(tmp_path):
    assert len(short(Deep(), out=tmp_path / "run").history) == 1


def test_a_net_whose_layers_ask_for_their_version_comes_back(tmp_path):
    net = load_backbone("mnasnet0_5", 3, weights=None)
    check_saving(net)
    save_weights(tmp_path / "net.safetensors", net.state_dict(), "a run")
    tensors = read_weights(tmp_path / "net.safetensors", "a run", strict=True)
    again = rebuilt({"backbone": "mnasnet0_5", "num_classes": 3}, tensors, tmp_path)
    assert torch.equal(again.net.classifier[1].weight, net.net.classifier[1].weight)
