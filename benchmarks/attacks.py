"""PGD-10 side by side: ours, torchattacks, foolbox, ART and APGD-CE on one net, and the
convolutions alone.

python benchmarks/attacks.py both backbones, batch 128; 5 rounds python benchmarks/attacks.py --data
PACK.npz images of a pack instead of photographs

All make ten steps of 2.5 eps / 10 on cross-entropy from a uniform random start, in eval mode. The
ceiling is the time that the net's convolutions take alone, forward and the gradient of their input,
each in the faster memory format, no BatchNorm, ReLU or head."""

import copy

import torch
from _harness import available, clock, options, peer, ratios, save, turns
from _material import images, probed
from torch import nn

from autolora.core.threat import linf
from autolora.robust.attacks import pgd

STEPS = 10


def ours(model, x, y, eps):
    "Our attack, on model and images laid out as `finetune` lays them out: channels last."
    model, x = (
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        x.contiguous(memory_format=torch.channels_last),
    )
    return lambda: pgd(model, x, y, linf(eps), steps=STEPS, step_size=2.5 * eps / STEPS)


def torchattacks(model, x, y, eps, layout=torch.contiguous_format):
    module, reason = peer("torchattacks")
    if reason:
        raise ImportError(reason)
    attack = module.PGD(
        copy.deepcopy(model).to(memory_format=layout),
        eps=eps,
        alpha=2.5 * eps / STEPS,
        steps=STEPS,
        random_start=True,
    )
    x = x.contiguous(memory_format=layout)
    return lambda: attack(x, y)


def foolbox(model, x, y, eps):
    module, reason = peer("foolbox")
    if reason:
        raise ImportError(reason)
    net = module.PyTorchModel(copy.deepcopy(model), bounds=(0, 1), device=x.device)
    attack = module.attacks.LinfPGD(abs_stepsize=2.5 * eps / STEPS, steps=STEPS, random_start=True)
    return lambda: attack.run(net, x, module.criteria.Misclassification(y), epsilon=eps)


def art(model, x, y, eps):
    evasion, reason = peer("art.attacks.evasion")
    estimators, reason = peer("art.estimators.classification") if not reason else (None, reason)
    if reason:
        raise ImportError(reason)
    net = estimators.PyTorchClassifier(
        copy.deepcopy(model),
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        int(y.max()) + 1,
        clip_values=(0, 1),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    attack = evasion.ProjectedGradientDescentPyTorch(
        net,
        norm="inf",
        eps=eps,
        eps_step=2.5 * eps / STEPS,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    return lambda: torch.from_numpy(attack.generate(images, labels))


def apgd(model, x, y, eps):
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(
        copy.deepcopy(model), n_iter=STEPS, norm="Linf", eps=eps, loss="ce", seed=0, device=x.device
    )
    attack.init_hyperparam(x)
    return lambda: attack.attack_single_run(x, y)[3]


def convolutions(model, x):
    "For every convolution of `model` on `x`: its input's shape, weight and arguments."
    found, hooks = [], []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(
                module.register_forward_hook(
                    lambda conv, given, _: found.append((given[0].shape, conv))
                )
            )
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def one_convolution(shape, conv, layout):
    "A call of forward and input gradient of `conv` on random numbers in `layout`."
    x = torch.randn(shape, device=conv.weight.device).contiguous(memory_format=layout)
    weight = conv.weight.detach().contiguous(memory_format=layout)
    rest = (conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups)
    grad = torch.randn_like(torch.ops.aten.convolution(x, weight, None, *rest))

    def call():
        torch.ops.aten.convolution(x, weight, None, *rest)
        torch.ops.aten.convolution_backward(grad, x, weight, None, *rest, [True, False, False])

    return call


def ceiling(model, x, repeats=3):
    """`seconds()`: the least that all convolutions of one attack step take, each the best of
    `repeats` in its better memory format."""
    calls = [
        [
            one_convolution(shape, conv, layout)
            for layout in (torch.contiguous_format, torch.channels_last)
        ]
        for shape, conv in convolutions(model, x)
    ]
    for pair in calls:
        for call in pair:
            call()
    return lambda: sum(min(clock(call) for call in pair for _ in range(repeats)) for pair in calls)


def operations(model, x):
    """Multiplications and additions of the convolutions of one attack step, forward and input
    gradient."""
    return 2 * sum(
        2
        * shape[0]
        * conv.weight.numel()
        * (shape[2] // conv.stride[0])
        * (shape[3] // conv.stride[1])
        // conv.groups
        for shape, conv in convolutions(model, x)
    )


def fooled(model, attack, y):
    "Of how many images the attack changes the right answer."
    x_adv = attack().to(y.device)
    with torch.no_grad():
        return (model(x_adv).argmax(1) != y).sum().item()


def compare(name, eps, args, data):
    "Measure one backbone, and save it."
    x, y = images(max(1000, args.batch), data)
    model = probed(name, x, y).to(args.device)
    with torch.no_grad():
        right = (
            torch.cat([model(part.to(args.device)).argmax(1).cpu() for part in x.split(250)]) == y
        )
    x, y = x[right][: args.batch].to(args.device), y[right][: args.batch].to(args.device)
    given = model, x, y, eps
    contestants, missing = available(
        {
            "autolora": lambda: ours(*given),
            "torchattacks": lambda: torchattacks(*given),
            "foolbox": lambda: foolbox(*given),
            "ART": lambda: art(*given),
            "torchattacks, channels last": lambda: torchattacks(*given, torch.channels_last),
            "APGD-CE (pyautoattack), 11 gradients": lambda: apgd(*given),
        }
    )
    counts = {who: fooled(model, attack, y) for who, attack in contestants.items()}
    for who, count in counts.items():
        if abs(count - counts["autolora"]) > max(2, 0.05 * len(x)) and "APGD" not in who:
            missing[who] = (
                f"it fools {count} images and ours {counts['autolora']}: not the same attack"
            )
    contestants = {who: attack for who, attack in contestants.items() if who not in missing}
    alone, steps = ceiling(model, x), []
    times = turns(
        contestants | {"convolutions alone": lambda: steps.append(STEPS * alone())}, args.rounds
    )
    times["convolutions alone"] = steps[1:]
    found = {
        key: ratios(times, "autolora", who)
        for key, who in (("torchattacks", "torchattacks"), ("foolbox", "foolbox"), ("art", "ART"))
        if who in times
    }
    found["ceiling"] = ratios(times, "autolora", "convolutions alone")
    prefix = (
        "pgd"
        if (name, args.batch) == ("robust_mini_rgb", 128)
        else f"pgd, {name}, batch {args.batch}, over"
    )
    rate = STEPS * operations(model, x) / min(steps) / 1e9
    save(
        args.results,
        "attacks",
        f"PGD-10: {name}, {len(x)} images of {'x'.join(map(str, x.shape[1:]))} "
        f"({data or 'photographs'}), eps {eps:.4g}",
        times,
        len(x),
        {
            f"{prefix}{'_' if prefix == 'pgd' else ' '}{key}": values
            for key, values in found.items()
        },
        {"fooled": {who: f"{count} / {len(x)}" for who, count in counts.items()}},
        missing=missing,
        notes=[
            "Every image is classified correctly before the attack. The convolutions alone ran at "
            f"{rate:.0f} GFLOP/s. APGD-CE takes one gradient more and is a stronger attack: it is "
            "listed, not compared. "
            "ART's call includes its own count of successes."
        ],
    )


def main():
    args = options(__doc__, batch=128, data=None, device="cpu")
    compare("robust_mini_rgb", 8 / 255, args, args.data)
    compare("robust_mini_gray", 0.1, args, "digits")


if __name__ == "__main__":
    main()
