"""How much the initial learning rate matters: AutoLoRa and naive RFT at fixed rates and with lr="auto", over seeds.

python benchmarks/learning_rate.py --task mnist5k --limit 2000 --lr auto 0.003 0.01 0.03 0.1 --seeds 3

Each finished run is a line of results/learning_rate.jsonl and is never run again, so a long study can be stopped and resumed, and
several processes may share the work (--only i/k). The table at the end is made from that file: accuracy on the whole test split,
mean over seeds with a 95 % t interval.
"""
import argparse
import json
import math
import shutil
import statistics
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "learning_rate.jsonl"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 97.5 % points, n - 1 degrees
KEY = ("task", "backbone", "limit", "epochs", "method", "lr", "seed")


def rows():
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def measure(args, method, lr, seed):
    from autolora import finetune
    folder = Path(tempfile.mkdtemp())
    run = finetune(args.backbone, args.task, method, epochs=args.epochs, seed=seed, out=folder / "run", limit=args.limit, autoattack=args.autoattack,
                   lr=lr if lr == "auto" else float(lr), progress=False)
    history = run.history
    found = {e["attack"]: [e["correct"], e["n"]] for e in run.report["evaluations"]}
    cost = {"seconds": run.last("end")["seconds"], "range_test_seconds": run.last("range_test").get("seconds"), "angle_share": float(history.angle_seconds.sum() / history.seconds.sum())}
    row = {"task": run.config["task"], "backbone": args.backbone, "limit": args.limit, "epochs": args.epochs, "method": method, "lr": lr, "seed": seed, "chosen_lr": float(history.lr[0]),
           "found": found, "angle": float(history.angle.mean()), "angle_natural": float(history.angle_natural.mean()), "versions": run.config["versions"], **cost}
    shutil.rmtree(folder)
    return row


def interval(values):
    if len(values) < 2: return f"{values[0]:.1f} (one seed)"
    return f"{statistics.mean(values):.1f} ± {STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def table(found):
    groups = {}
    for row in found: groups.setdefault((row["task"], row["limit"], row["method"], row["lr"]), []).append(row)
    lines = ["| task | training images | method | lr | chosen | seeds | SA % | PGD-10 % | AutoAttack % | minutes |", "|---|---|---|---|---|---|---|---|---|---|"]
    for (task, limit, method, lr), group in sorted(groups.items(), key=lambda item: tuple(map(str, item[0]))):
        group = list({row["seed"]: row for row in group}.values())
        def share(attack, group=group): return interval([100 * r["found"][attack][0] / r["found"][attack][1] for r in group]) if all(attack in r["found"] for r in group) else "–"
        chosen = ", ".join(f"{r['chosen_lr']:.3g}" for r in group) if lr == "auto" else ""
        minutes = statistics.mean(r["seconds"] for r in group) / 60
        lines.append(f"| {task} | {limit or 'all'} | {method} | {lr} | {chosen} | {len(group)} | {share('none')} | {share('pgd-10')} | {share('autoattack')} | {minutes:.1f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits", help="a name or a path")
    parser.add_argument("--backbone", default="robust_mini_gray")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--method", nargs="+", default=["autolora", "trades"])
    parser.add_argument("--lr", nargs="+", default=["auto"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--autoattack", type=int, default=0, help="test images for AutoAttack")
    parser.add_argument("--only", default="0/1", help="i/k: this process takes every k-th run, starting with the i-th")
    args = parser.parse_args()
    from autolora.data import load_task
    name, (i, k) = load_task(args.task, limit=args.limit).name, map(int, args.only.split("/"))
    wanted = [(method, lr, seed) for seed in range(args.seeds) for lr in args.lr for method in args.method]
    RESULTS.parent.mkdir(exist_ok=True)
    for method, lr, seed in wanted[i::k]:
        this = dict(zip(KEY, (name, args.backbone, args.limit, args.epochs, method, lr, seed), strict=True))
        if any(all(row[key] == this[key] for key in KEY) for row in rows()): continue
        line = json.dumps(measure(args, method, lr, seed))
        with RESULTS.open("a") as file: file.write(line + "\n")
        print(line, flush=True)
    print(table([row for row in rows() if row["task"] == name]))


if __name__ == "__main__": main()
