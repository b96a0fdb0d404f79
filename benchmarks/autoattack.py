"""AutoAttack standard side by side: `evaluate(..., ("autoattack",))` and pyautoattack fed the plain
model, on the same images.

python benchmarks/autoattack.py: 16 photographs on robust_mini_rgb, 32 digits on robust_mini_gray,
3 rounds; before, image by image, which of 64 images stand, on four published nets and on our two
backbones with a fitted head, in each norm there (needs the nets of shared/data).

Both begin with images that the net classifies correctly; images fooled may differ by AutoAttack's
own randomness. The plain way: AutoAttack as its README has it, on the contiguous model as it is."""

import copy
import logging

import _small_nets
import torch
from _harness import options, ratios, save, turns
from _material import images, probed

from autolora.core.threat import linf
from autolora.robust.evaluation import evaluate


class Ours:
    "Our evaluation, on the same contiguous model."

    def __init__(self, model, x, y, threat):
        self.model, self.data, self.threat, self.standing = copy.deepcopy(model), (x, y), threat, []

    def __call__(self):
        self.standing.append(
            evaluate(self.model, self.data, self.threat, ("autoattack",))["autoattack"].correct
        )


class Plain:
    "pyautoattack, as its README has it."

    def __init__(self, model, x, y, threat):
        from pyautoattack import AutoAttack

        self.model, self.x, self.y, self.standing = copy.deepcopy(model), x, y, []
        self.attack = AutoAttack(
            self.model, norm="Linf", eps=threat.eps, version="standard", seed=0, device=x.device
        )
        logging.getLogger("auto-attack").setLevel(logging.ERROR)

    def __call__(self):
        x_adv, _ = self.attack.run_standard_evaluation(
            self.x.clone(), self.y.clone(), batch_size=256
        )
        with torch.no_grad():
            self.standing.append((self.model(x_adv).argmax(1) == self.y).sum().item())


def compare(name, key, n, threat, args, data):
    "Measure one backbone on `n` images and save it."
    x, y = images(1000, data)
    model = probed(name, x, y).to(args.device)
    with torch.no_grad():
        right = (
            torch.cat([model(part.to(args.device)).argmax(1).cpu() for part in x.split(250)]) == y
        )
    x, y = x[right][:n].to(args.device), y[right][:n].to(args.device)
    contestants = {
        "autolora.evaluate": Ours(model, x, y, threat),
        "pyautoattack": Plain(model, x, y, threat),
    }
    times = turns(contestants, args.rounds, warm=0)
    standing = {
        who: ", ".join(map(str, sorted(set(len(x) - kept for kept in call.standing))))
        for who, call in contestants.items()
    }
    save(
        args.results,
        "autoattack",
        f"AutoAttack standard: {name}, {len(x)} images ({data or 'photographs'}), {threat}",
        times,
        len(x),
        {key: ratios(times, *times)},
        {"fooled": standing},
    )


AGREED = {  # net -> the threats that leave some of its images standing
    "mnist_lenet5_adv": ["linf:0.3"],
    "cifar_cnn_a_adv": ["linf:8/255"],
    "cifar_resnet4b": ["linf:2/255"],
    "mnist_kw": ["linf:0.1"],
    "robust_mini_gray": ["linf:0.1", "l2:0.6", "l1:3"],
    "robust_mini_rgb": ["linf:8/255", "l2:0.5", "l1:12"],
}


def right_images(name, n):
    "`(model, x, y)`: the net `name` and `n` images that it classifies correctly."
    if name.startswith("robust"):
        x, y = images(1000, "digits" if name.endswith("gray") else None)
        model = probed(name, x, y)
    else:
        x, y = _small_nets.images(name, 4 * n)
        model = _small_nets.net(name)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(250)]) == y
    return model, x[right][:n], y[right][:n]


def agreement(n, args):
    "Which images stand after each, and which after one alone; saved as a table."
    rows = [
        [
            "net",
            "threat",
            "images",
            "stand after ours",
            "after pyautoattack",
            "ours alone",
            "pyautoattack alone",
        ]
    ]
    for name, threats in AGREED.items():
        model, x, y = right_images(name, n)
        for threat in threats:
            report = evaluate(model, (x, y), threat, ("autoattack", "pyautoattack"))
            ours, theirs = (int(row.hits, 16) for row in report.rows)
            counts = ours, theirs, ours & ~theirs, theirs & ~ours
            rows.append([name, threat, str(len(x)), *(str(c.bit_count()) for c in counts)])
            print(*rows[-1], flush=True)
    save(args.results, "autoattack", "AutoAttack, image by image", table=rows)


def main():
    args = options(__doc__, rounds=3, n=[16, 32, 64], device="cpu", data=None)
    agreement(args.n[2], args)
    compare("robust_mini_rgb", "autoattack", args.n[0], linf(8 / 255), args, args.data)
    compare(
        "robust_mini_gray", "autoattack, robust_mini_gray", args.n[1], linf(0.1), args, "digits"
    )


if __name__ == "__main__":
    main()
