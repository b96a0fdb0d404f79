"""How much the initial learning rate matters: AutoLoRa and naive RFT at fixed rates and with
lr="auto", over seeds.

python benchmarks/learning_rate.py --task mnist5k --limit 2000 --lr auto 0.003 0.01 0.03 0.1 --seeds
3 python benchmarks/learning_rate.py --recorded

A study (`autolora.compare`) with the rate as its condition: the same call goes on with it,
and its page has the curves. What was recorded before there were studies is in
results/learning_rate.jsonl, a line a run; `--recorded` reads it into the same tables. Accuracy on
the whole test split, means over the seeds with 95 % t intervals."""

import argparse
import json
import math
from pathlib import Path

import pandas as pd

from autolora.runs.study import compare
from autolora.runs.tables import summary, tests

RESULTS = Path(__file__).parent / "results" / "learning_rate.jsonl"
KEY = ["task", "backbone", "condition", "arm", "seed"]


def recorded(path=RESULTS):
    "The recorded runs as the table of a study; of a run recorded twice the last counts."
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    share = lambda row, attack: (
        row["found"][attack][0] / row["found"][attack][1] if attack in row["found"] else math.nan
    )
    return pd.DataFrame(
        [
            {
                "arm": row["method"],
                "task": f"{row['task']}, {row['limit'] or 'all'} images",
                "backbone": row["backbone"],
                "condition": f"lr={row['lr']}" + f", epochs={row['epochs']}" * bool(row["epochs"]),
                "seed": row["seed"],
                "lr_setting": row["lr"],
                "lr": row["chosen_lr"],
                **{
                    short: share(row, attack)
                    for short, attack in (("sa", "none"), ("ra", "pgd-10"), ("aa", "autoattack"))
                },
                "angle": row["angle"],
                "seconds": row["seconds"],
                "attack_steps": math.nan,
            }
            for row in rows
        ]
    ).drop_duplicates(KEY, keep="last")


def tell(table):
    print(f"{summary(table).to_string(index=False)}\n\n{tests(table).to_string(index=False)}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recorded", action="store_true", help="run nothing, show what was recorded"
    )
    parser.add_argument("--task", default="digits", help="a name or a path")
    parser.add_argument("--backbone", default="robust_mini_gray")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--method", nargs="+", default=["autolora", "trades"])
    parser.add_argument("--lr", nargs="+", default=["auto"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--autoattack", type=int, default=0, help="test images for AutoAttack")
    parser.add_argument("--jobs", type=int, help="runs at once")
    args = parser.parse_args()
    if args.recorded:
        return tell(recorded())
    rates = [lr if lr == "auto" else float(lr) for lr in args.lr]
    settings = {
        k: v
        for k, v in {
            "limit": args.limit,
            "epochs": args.epochs,
            "autoattack": args.autoattack,
        }.items()
        if v
    }
    study = compare(
        args.method,
        args.task,
        [args.backbone],
        args.seeds,
        {"lr": rates},
        f"runs/learning_rate-{Path(args.task).stem}-{args.limit or 'all'}",
        args.jobs,
        **settings,
    )
    tell(study.table)
    print(f"Figures: {study.path / 'study.html'}")


if __name__ == "__main__":
    main()
