"""What letting the natural gradient through costs: training steps of AutoLoRa by its routes, and of
TRADES.

python benchmarks/routes.py"""

from _harness import options, ratios, save, turns
from steps import Ours, model_and_batch

WAYS = {
    "open": ("autolora", {}),
    "branch": ("autolora", {"route": "branch", "lam1": "auto"}),
    "shared": ("autolora", {"route": "shared"}),
    "TRADES": ("trades", {}),
}


def main():
    args = options(__doc__, rounds=12)
    given = model_and_batch("robust_mini_rgb", 128, 32, "cpu")
    ways = {way: Ours(*given, name, **settings) for way, (name, settings) in WAYS.items()}
    times = turns(ways, args.rounds)
    found = {f"open over {way}": ratios(times, way, "open") for way in WAYS if way != "open"}
    title = "A step of each route, robust_mini_rgb, batch 128"
    save(args.results, "routes", title, times, 128, found)


if __name__ == "__main__":
    main()
