"""What letting the natural gradient through costs: training steps of AutoLoRa by its routes, and of
TRADES.

python benchmarks/routes.py"""

from _harness import options, ratios, save, turns
from _material import photos

from autolora.core.threat import linf
from autolora.methods.registry import make_method
from autolora.models.backbones import load_backbone
from autolora.train.learner import train_step

WAYS = {
    "open": ("autolora", {}),
    "branch": ("autolora", {"route": "branch", "lam1": "auto"}),
    "shared": ("autolora", {"route": "shared"}),
    "TRADES": ("trades", {}),
}


def step(name, settings, x, y):
    "One training step of a method from the embedded backbone, as a call."
    method = make_method(name, load_backbone("robust_mini_rgb", 10), linf(8 / 255), **settings)
    optimizer = method.optimizer(1e-3)
    method.train()
    return lambda: train_step(method, optimizer, x, y)


def main():
    args = options(__doc__, rounds=12)
    x, y = photos(128, 32)
    x = x.float().div(255)
    times = turns({way: step(*call, x, y) for way, call in WAYS.items()}, args.rounds)
    found = {f"open over {way}": ratios(times, way, "open") for way in WAYS if way != "open"}
    title = "A step of each route, robust_mini_rgb, batch 128"
    save(args.results, "routes", title, times, 128, found)


if __name__ == "__main__":
    main()
