"""The low-rank branch on whole models: where gradients go, parameter by parameter, and what the
branch equals."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autolora.core import registry
from autolora.core.errors import AutoLoRaError
from autolora.core.machine import import_torchvision
from autolora.models.backbones import BACKBONES, load_backbone
from autolora.models.parametrisations import PARAMETRISATIONS
from autolora.models.parts import split_parameters
from autolora.models.views import LowRankBranch
from autolora.robust.losses import autolora_loss


class SeparateAttention(nn.Module):
    """Attention over patches with keys and values of another width, so that q, k and v have weights
    of their own."""

    def __init__(self):
        super().__init__()
        self.patch, self.context = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 12)
        self.attention = nn.MultiheadAttention(16, 2, kdim=12, vdim=12, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).mT
        context = self.context(tokens).relu()
        return self.head((tokens + self.attention(tokens, context, context)[0]).mean(1))


class Patches(nn.Module):
    def forward(self, x):
        return x.flatten(2).mT


class TokenMean(nn.Module):
    def forward(self, tokens):
        return tokens.mean(1)


def mini():
    return load_backbone("robust_mini_gray", 10, weights=None)


def resnet18():
    return import_torchvision("models").resnet18(num_classes=10)


def convs():
    "Rectangular, strided, dilated, grouped and depthwise convolutions."

    def block(c_in, c_out, kernel, **options):
        return (
            nn.Conv2d(c_in, c_out, kernel, bias=False, **options),
            nn.BatchNorm2d(c_out, momentum=1.0),
            nn.SiLU(),
        )

    return nn.Sequential(
        *block(3, 16, 3, stride=2, padding=1),
        *block(16, 16, (1, 5), padding=(0, 2)),
        *block(16, 32, (3, 1), padding=(1, 0)),
        *block(32, 32, 3, dilation=2, padding=2),
        *block(32, 32, 3, stride=2, padding=1, groups=4),
        *block(32, 32, 3, padding=1, groups=32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), Patches(), layer, TokenMean(), nn.Linear(16, 10))


def vit():
    model = import_torchvision("models").VisionTransformer(
        16, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )
    nn.init.normal_(
        model.heads.head.weight, std=0.1
    )  # torchvision starts it at zero, which lets no gradient through
    return model


MODELS = {
    "mini": (mini, (1, 20, 20)),
    "resnet18": (resnet18, (3, 32, 32)),
    "convs": (convs, (3, 16, 16)),
    "encoder": (encoder, (3, 16, 16)),
    "vit": (vit, (3, 16, 16)),
    "separate_attention": (SeparateAttention, (3, 16, 16)),
}
FE, A, B, HEAD = "feature extractor", "A", "B", "head"
ROUTES = {"ce_nat": {A, B, HEAD}, "ce_adv": {FE, HEAD}, "kl": {FE, A, B, HEAD}}


@pytest.fixture(params=MODELS)
def case(request):
    "A seeded model, its branch at B = 0, and eight images."
    build, shape = MODELS[request.param]
    torch.manual_seed(0)
    model, x = build(), torch.rand(8, *shape)
    with torch.no_grad():
        model(x)  # BatchNorm statistics for eval mode
    return model, LowRankBranch(model), x


def leave_zero(branch):
    for factor in branch.B.values():
        nn.init.normal_(factor, std=0.02)


def routes(model, branch, x):
    """For each term and each parameter: None where no graph leads, else whether its gradient is
    other than zero."""
    fe, _ = split_parameters(model)
    params = {(FE if name in fe else HEAD, name): p for name, p in model.named_parameters()}
    params |= {(name[0], name): p for name, p in branch.named_parameters()}
    nat, adv = branch(x), model(x.flip(0))
    terms = autolora_loss(nat, adv, torch.arange(len(x)) % 10, lam1=0.5, lam2=3.0)
    grads = {
        term: torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
        for term, loss in terms.items()
    }
    return {
        term: {
            key: None if g is None else bool(g.count_nonzero())
            for key, g in zip(params, values, strict=True)
        }
        for term, values in grads.items()
    }


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_routing_parameter_by_parameter(case, mode):
    model, branch, x = case
    leave_zero(branch)
    getattr(branch, mode)()
    for term, found in routes(model, branch, x).items():
        for (group, name), reached in found.items():
            assert reached is (True if group in ROUTES[term] else None), (
                f"{term} -> {group} {name}: {reached}"
            )


def test_at_the_start_only_B_of_the_branch_moves(case):
    model, branch, x = case
    found = routes(model, branch, x)
    for term in ("ce_nat", "kl"):
        for (group, name), reached in found[term].items():
            if group in (A, B):
                assert reached is (group == B), f"{term} -> {name}: {reached}"


def test_zero_B_is_the_model(case):
    model, branch, x = case
    branch.eval()
    torch.testing.assert_close(branch(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_equals_a_copy_with_the_summed_weights(case, scale):
    model, branch, x = case
    leave_zero(branch)
    branch.eval()
    twin = copy.deepcopy(model)
    for name in branch.names:
        key, weight = name.replace(".", "/"), twin.get_parameter(name).data
        weight += (
            scale / branch.rank * (branch.B[key] @ branch.A[key]).detach().reshape(weight.shape)
        )
    torch.testing.assert_close(branch(x, scale), twin(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(branch.merged(scale)(x), twin(x), rtol=0, atol=1e-5)
    assert (twin(x) - model(x)).abs().max() > 1e-4
    with torch.no_grad():  # where attention takes its fused inference path
        torch.testing.assert_close(branch(x, scale), twin(x), rtol=0, atol=1e-5)


def test_the_factors_survive_a_file(case, tmp_path):
    from safetensors.torch import load_file, save_file

    model, branch, x = case
    leave_zero(branch)
    save_file(branch.state_dict(), tmp_path / "branch.safetensors")
    again = LowRankBranch(model)
    again.load_state_dict(load_file(tmp_path / "branch.safetensors"))
    branch.eval()
    torch.testing.assert_close(again(x), branch(x), rtol=0, atol=0)


def test_a_step_of_the_optimiser_moves_each_parameter_once(case):
    model, branch, x = case
    params = [*model.parameters(), *branch.parameters()]
    assert len({id(p) for p in params}) == len(params)
    terms = autolora_loss(branch(x), model(x), torch.arange(8), lam1=0.5, lam2=3.0)
    sum(terms.values()).backward()
    torch.optim.SGD(params, 0.1, momentum=0.9).step()
    assert all(factor.count_nonzero() for factor in branch.B.values())


def test_resnet18_coverage():
    "Every convolution of every block and the downsamples; neither stem, BatchNorm nor head."
    model = resnet18()
    convs = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    assert set(LowRankBranch(model).names) == convs - {"conv1.weight"} and len(convs) == 20
    last_blocks = LowRankBranch(model, where=["layer?.1.conv?.weight"]).names
    assert len(last_blocks) == 8  # what the code behind the published tables really reaches


@pytest.mark.parametrize(("rank", "published"), [(2, 1.19), (4, 2.38), (8, 4.76), (16, 9.52)])
def test_size_on_a_resnet18_with_cifar_stem(rank, published):
    "The published shares are of the feature extractor with its BatchNorm, stem included."
    model = resnet18()
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    fe = sum(model.get_parameter(name).numel() for name in split_parameters(model)[0])
    factors = sum(p.numel() for p in LowRankBranch(model, rank).parameters())
    assert round(100 * factors / fe, 2) == published


def test_size_on_imagenet_resnets():
    "At rank 8: 4.755 % of ResNet-18 and 3.72 % of ResNet-50, as released."
    models = import_torchvision("models")
    for build, published, digits in ((models.resnet18, 4.755, 3), (models.resnet50, 3.72, 2)):
        model = build()
        fe = sum(model.get_parameter(name).numel() for name in split_parameters(model)[0])
        assert (
            round(100 * sum(p.numel() for p in LowRankBranch(model).parameters()) / fe, digits)
            == published
        )


# ---- what every parametrisation of the branch promises


@pytest.fixture(
    params=[(form, model) for form in PARAMETRISATIONS for model in MODELS if model != "resnet18"],
    ids="-".join,
)
def parametrised(request):
    "A model, a fresh branch of one parametrisation, and eight images."
    form, (build, shape) = request.param[0], MODELS[request.param[1]]
    torch.manual_seed(0)
    model, x = build(), torch.rand(8, *shape)
    with torch.no_grad():
        model(x)
    return model, LowRankBranch(model, rank=4, parametrisation=form), x


def trained(branch):
    return {name: p for name, p in branch.named_parameters() if p.requires_grad}


def move(branch):
    "Every factor a little, as after some steps."
    for p in trained(branch).values():
        p.data += 0.05 * torch.randn_like(p)


def test_a_fresh_branch_is_the_model_and_can_learn(parametrised):
    model, branch, x = parametrised
    branch.eval()
    torch.testing.assert_close(branch(x), model(x), rtol=0, atol=1e-6)
    loss = nn.functional.cross_entropy(branch(x), torch.arange(8))
    grads = torch.autograd.grad(loss, list(trained(branch).values()), allow_unused=True)
    assert sum(g is not None and bool(g.count_nonzero()) for g in grads) >= len(branch.names) / 2, (
        "a start that lets no gradient through"
    )
    optimizer = torch.optim.Adam(branch.parameters(), 1e-3)
    before = loss.item()
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(branch(x), torch.arange(8))
        loss.backward()
        optimizer.step()
    assert nn.functional.cross_entropy(branch(x), torch.arange(8)).item() < before


def test_the_routing_table_holds(parametrised):
    model, branch, x = parametrised
    move(branch)
    branch.train()
    fe, head = split_parameters(model)
    nat, adv = branch(x), model(x.flip(0))
    terms = autolora_loss(nat, adv, torch.arange(8), lam1=0.5, lam2=3.0)
    groups = {
        "fe": [model.get_parameter(n) for n in fe],
        "head": [model.get_parameter(n) for n in head],
        "branch": list(trained(branch).values()),
    }
    wanted = {
        "ce_nat": {"head", "branch"},
        "ce_adv": {"fe", "head"},
        "kl": {"fe", "head", "branch"},
    }
    for term, loss in terms.items():
        reached = set()
        for group, params in groups.items():
            grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
            if any(g is not None for g in grads):
                reached.add(group)
        assert reached == wanted[term], term


def test_merged_slides_and_survives_a_file(parametrised, tmp_path):
    from safetensors.torch import load_file, save_file

    model, branch, x = parametrised
    move(branch)
    branch.eval()
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for scale in (0.0, 0.5, 1.0):
        torch.testing.assert_close(branch.merged(scale)(x), branch(x, scale), rtol=0, atol=1e-4)
    torch.testing.assert_close(branch(x, 0.0), model(x), rtol=0, atol=1e-5)
    assert (branch(x) - model(x)).abs().max() > 1e-5
    save_file(
        {name: tensor.contiguous() for name, tensor in branch.state_dict().items()},
        tmp_path / "branch.safetensors",
    )
    form = next(
        name
        for name, form in PARAMETRISATIONS.items()
        if form in branch.forms.values()
        and (name != "lora" or set(branch.forms.values()) == {form})
    )
    again = LowRankBranch(model, rank=4, parametrisation=form)
    again.load_state_dict(load_file(tmp_path / "branch.safetensors"))
    again.eval()
    torch.testing.assert_close(again(x), branch(x), rtol=0, atol=0)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_efft_shares_its_outer_factors():
    branch = LowRankBranch(resnet18(), parametrisation="efft")
    shapes = {tuple(branch.model.get_parameter(name).shape) for name in branch.names}
    assert len(branch.U) == len(branch.V) == len(shapes) < len(branch.names) == len(branch.C)


def test_rosa_finds_its_mask_on_the_way():
    from autolora.models.parametrisations import ROSA_BATCHES, ROSA_SHARE

    torch.manual_seed(0)
    branch, x = LowRankBranch(mini(), parametrisation="rosa"), torch.rand(8, 1, 16, 16)
    optimizer = torch.optim.SGD(branch.parameters(), 0.01, momentum=0.9)
    for done in range(ROSA_BATCHES + 3):
        branch.observe()
        assert all(bool(mask.any()) == (done >= ROSA_BATCHES) for mask in branch.M.values())
        optimizer.zero_grad()
        nn.functional.cross_entropy(branch(x), torch.arange(8)).backward()
        optimizer.step()
    for name in branch.names:
        factors = branch.factors(name)
        assert factors["M"].sum() == max(1, round(ROSA_SHARE * factors["M"].numel()))
        assert (factors["M"] * factors["S"]).count_nonzero() > 0


def test_a_start_at_zero_everywhere_is_refused(monkeypatch):
    "The published recipe that asks for A = B = 0, where both gradients vanish."
    from dataclasses import replace

    def zeros(weight, rank):
        return {
            name: torch.zeros_like(f)
            for name, f in PARAMETRISATIONS["lokr"].init(weight, rank).items()
        }

    dead = replace(PARAMETRISATIONS["lokr"], init=zeros)
    monkeypatch.setitem(PARAMETRISATIONS._things, "dead", dead)
    with pytest.raises(AutoLoRaError, match="never learn"):
        LowRankBranch(mini(), parametrisation="dead")


def test_another_package_brings_a_backbone_and_a_parametrisation(monkeypatch):
    "By entry points, the backbone as a plain function; both are known by name then."

    def two_layers(num_classes):
        "Two layers, of another package."
        layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4, num_classes))

    theirs = {"backbones": two_layers, "parametrisations": PARAMETRISATIONS["lokr"]}
    points = {
        f"autolora.{kind}": [SimpleNamespace(name="theirs", load=lambda thing=thing: thing)]
        for kind, thing in theirs.items()
    }
    for known in (BACKBONES, PARAMETRISATIONS):
        monkeypatch.setattr(known, "_things", dict(known))
        monkeypatch.setattr(known, "_filled", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: points[group])
    net = load_backbone("theirs", 5, channels=3)
    assert BACKBONES["theirs"].description == "Two layers, of another package."
    assert LowRankBranch(net, parametrisation="theirs")(torch.rand(2, 3, 8, 8)).shape == (2, 5)
