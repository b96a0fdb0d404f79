"""One backbone, really stepped once: what the library finds it to be, and whether everything that
is promised of any backbone holds for it."""

import copy
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from autolora.core.errors import AutoLoRaError
from autolora.core.threat import linf
from autolora.methods.autolora import PublishedAutoLoRa
from autolora.models.backbones import BACKBONES, open_backbone
from autolora.models.kept import read_weights, rebuilt, save_weights
from autolora.models.parts import eval_mode, head_name, placed, split_parameters
from autolora.models.tracing import trial
from autolora.models.views import adaptable
from autolora.models.wrappers import without_graphs
from autolora.robust.attacks import pgd
from autolora.robust.fusion import explain_speed
from autolora.train.learner import check_first_step, train_step

SIDES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 384)
CLASSES = 4
THREAT = linf("8/255")
SMALL = linf("1/255")  # a random net is far from linear within more


class Wrong(Exception):
    "A promise that doesn't hold; the words say which."


def hold(promise, words):
    if not promise:
        raise Wrong(words)


def images(model, channels=3):
    "The smallest square images (4, C, H, W) that `model` takes in both modes, and labels."
    generator = torch.Generator().manual_seed(0)
    for side in SIDES:
        x = torch.rand(CLASSES, channels, side, side, generator=generator)
        try:
            for training in (False, True):
                trial(model, x, training)
        except Exception as error:
            last = error
        else:
            return x, torch.arange(len(x)) % (CLASSES - 1)
    raise last


@torch.no_grad()
def warm(model, x):
    "Give BatchNorms statistics: with those they are born with, a signal fades or explodes."
    norms = [m for m in model.modules() if getattr(m, "momentum", None) is not None]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(x)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def close(ours, theirs):
    "Whether logits are the same but for rounding."
    return (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-5


@torch.no_grad()
def logits_of(model, x):
    with eval_mode(model):
        return model(x)


def state_of(model):
    state = model.state_dict()
    return {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}


def changed(before, model):
    "The names of `model`'s tensors that aren't what they were."
    now = state_of(model)
    hold(now.keys() == before.keys(), "its tensors have other names afterwards")
    return [name for name, old in before.items() if not torch.equal(old, now[name])]


def check_start(method, x):
    """Branch off and branch at its start: the model's own logits; calling it leaves no trace.
    Returns how far they are from the same, 0.0 for exactly."""
    model, branch = method.model, method.branch
    before = state_of(model)
    with eval_mode(model), torch.no_grad():
        plain, off, start = model(x), branch(x, 0.0), branch(x)
    hold(close(off, plain), "with the branch off it gives other logits")
    hold(close(start, plain), "at its start the branch changes the logits")
    hold(not changed(before, model), "a call of the branch changes the model")
    return max((made - plain).abs().max().item() for made in (off, start))


def check_routing(method, x, y):
    "The natural term moves head and factors, and nothing of the feature extractor."
    model, branch = method.model, method.branch
    fe, head = split_parameters(model)
    with eval_mode(model):
        loss = F.cross_entropy(branch(x), y)
    own = [model.get_parameter(name) for name in (*fe, *head)]
    found = torch.autograd.grad(loss, [*own, *branch.parameters()], allow_unused=True)
    moved = [g is not None and bool(g.abs().max() > 0) for g in found]
    leaks = [name for name, m in zip(fe, moved[: len(fe)], strict=True) if m]
    hold(not leaks, f"the natural term reaches {', '.join(leaks[:2])}")
    hold(any(moved[len(fe) : len(own)]), "the natural term doesn't reach the head")
    hold(any(moved[len(own) :]), "the natural term doesn't reach the branch")


def check_attack(method, x, y):
    "The attack stays within the threat, raises the loss and leaves the model alone."
    model = method.model
    before = state_of(model)
    x_adv = pgd(model, x, y, SMALL, steps=5)
    hold((x_adv - x).abs().max() <= SMALL.eps + 1e-6, "the attack leaves the threat")
    nat, adv = (F.cross_entropy(logits_of(model, images), y) for images in (x, x_adv))
    hold(not torch.equal(x, x_adv) and adv >= nat, "the attack doesn't raise the loss")
    hold(not changed(before, model), "the attack changes the model")


def check_step(method, x, y):
    "A training step moves model and branch by finite numbers, and the branch is what it says."
    model, branch = method.model, method.branch
    before = state_of(model)
    method.train()
    optimizer = method.optimizer(1e-4)
    terms = train_step(method, optimizer, x, y)
    check_first_step(method, float(sum(terms.values())))
    moved = changed(before, model)
    warm(model, x)  # some nets' statistics follow so slowly that logits overflow
    hold(f"{head_name(model)}.weight" in moved, "a step doesn't move the head")
    hold(set(moved) & set(split_parameters(model)[0]), "a step doesn't move the feature extractor")
    hold(any(B.abs().max() > 0 for B in branch.B.values()), "a step doesn't move the branch")
    for B in branch.B.values():
        torch.nn.init.normal_(B, std=0.05)
    ours = logits_of(branch, x)
    hold(
        close(ours, logits_of(branch.merged(), x)) or summed_in_double(method, x),
        "the branch isn't the net with summed weights",
    )
    hold(not torch.equal(ours, logits_of(model, x)), "the branch changes nothing")


def summed_in_double(method, x):
    "Whether the branch is the net with summed weights but for single precision's rounding."
    pair = (method.model, method.branch)
    model, branch = copy.deepcopy(pair, without_graphs(method.model))
    model.double()
    branch.double()
    ours, theirs = (logits_of(net, x.double()) for net in (branch, branch.merged()))
    return (ours - theirs).abs().max() <= 1e-8 * theirs.abs().max()


def check_dropped(method, x):
    "What is left when the branch is dropped is the plain model, as it was."
    model = method.model
    after = logits_of(model, x)
    kinds = [type(module) for module in model.modules()]
    kept = copy.deepcopy(model, without_graphs(model))
    method.branch = None
    method.beside.clear()
    hold(torch.equal(after, logits_of(model, x)), "dropping the branch changes the logits")
    hold(torch.equal(after, logits_of(kept, x)), "a copy gives other logits")
    hold(kinds == [type(module) for module in kept.modules()], "layers were exchanged")


def check_saved(name, model, x):
    "Saved and opened again by its name: the same logits."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(path, model.state_dict(), "0")
        config = {"backbone": name, "num_classes": CLASSES}
        again = placed(rebuilt(config, read_weights(path, "0", strict=True), path))
    hold(torch.equal(logits_of(model, x), logits_of(again, x)), "reopened it gives other logits")


def examined(name: str) -> dict:
    """What the backbone `name` is found to be with random weights, as words by topic; `result` is
    "works", "refused: ..." or "WRONG: ...".

    A net may be born dead (a ReLU behind its head that is never passed), so up to three are
    tried."""
    for seed in range(3):
        about = _examined(name, seed)
        if not about["result"].startswith("WRONG"):
            break
    return about


def _examined(name, seed):
    about = {"result": "works"}
    try:
        torch.manual_seed(seed)
        model = placed(open_backbone(name, CLASSES, 3, weights=None).model)
        about["millions"] = round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
        about["head"] = head_name(model)
        x, y = images(model)
        about["side"] = x.shape[-1]
        warm(model, x)
        method = PublishedAutoLoRa(model, THREAT, steps=2)
        about |= coverage(model, method.branch.names)
        about["difference"] = check_start(method, x)
        check_routing(method, x, y)
        if (largest := logits_of(model, x).abs().max()) > 1e6:  # no attack finds its way in that
            return about | {"result": f"not run: untrained, it gives logits up to {largest:.0e}"}
        check_attack(method, x, y)
        about["attacks"] = explain_speed(model)
        check_step(method, x, y)
        check_dropped(method, x)
        check_saved(name, model, x)
    except AutoLoRaError as error:
        about["result"] = f"refused: {error}"
    except Exception as error:
        kind = "" if isinstance(error, Wrong) else f"{type(error).__name__}: "
        about["result"] = f"WRONG: {kind}{' '.join(str(error).split())[:300]}"
    return about


def coverage(model, names):
    "How many of the weights that could have a branch have one, and their share of the parameters."
    fe = split_parameters(model)[0]
    size = lambda chosen: sum(model.get_parameter(name).numel() for name in chosen)
    return {
        "weights": f"{len(names)} of {len(adaptable(model))}",
        "share": round(100 * size(names) / size(fe), 1),
    }


def known(name: str) -> bool:
    "Whether the collection that `name` leads to is installed and has it."
    try:
        BACKBONES[name]
    except AutoLoRaError:
        return False
    return True
