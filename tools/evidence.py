"""The evidence: AutoLoRa and its rivals over seeds under one protocol; tables in nbs/results.

python tools/evidence.py digits
    AutoLoRa, as published too, and four rivals, with a random head and with one trained first
python tools/evidence.py digits --what endings
    AutoLoRa and the two rivals nearest to it, all handing over the average of their weights
python tools/evidence.py digits --what parts
    AutoLoRa with one of its parts taken back, and by what it hands over
python tools/evidence.py digits --what ablations
    what each part of the published method is worth, and two of our changes to it
python tools/evidence.py digits --what tuned
    the rivals after a search at ten times a run's cost, against AutoLoRa with nothing set
python tools/evidence.py cifar10_jpeg.npz --limit 2000 --heads random
python tools/evidence.py dtd10_128_jpeg.npz --size 32 --heads random --autoattack 0
python tools/evidence.py cifar10_jpeg.npz --limit 2000 --heads random --backbone resnet18 \\
    --weights resnet18.safetensors

Goes on where it stopped. The runs stay in runs/; nbs/results gets a row a run (NAME.csv) and the
protocol (NAME.json)."""

import argparse
import json
from pathlib import Path

import pandas as pd

from autolora.data.loading import load_task
from autolora.runs.protocol import embedded
from autolora.runs.study import compare
from autolora.runs.tables import summary, tests
from autolora.runs.tuning import tune

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "nbs" / "results"
RIVALS = ["trades", "at", "twins", "ar_at"]
METHODS = ["autolora", "autolora_paper", *RIVALS]
ABLATIONS = [
    "autolora_paper",
    {"arm": "branch, no schedule", "method": "autolora_paper", "decay": "step", "lam1": 0.5},
    {"arm": "schedule, no branch", "method": "autolora_paper", "route": "shared"},
    {"arm": "stop-gradient, no branch", "method": "autolora_paper", "route": "stop"},
    {"arm": "branch, no stop-gradient", "method": "autolora_paper", "route": "open"},
    {"arm": "KL teacher detached", "method": "autolora_paper", "kl": "detached"},
    {"arm": "no KL", "method": "autolora_paper", "kl": "none"},
    {"arm": "lam fixed at 0.5", "method": "autolora_paper", "lam1": 0.5},
    {
        "arm": "branch in the last block only, as released",
        "method": "autolora_paper",
        "where": "*blocks.1*",
    },
    {"arm": "one-epoch delay, as released", "method": "autolora_paper", "timing": "released"},
    {"arm": "adversarial terms whole", "method": "autolora_paper", "adv_weight": "full"},
    {"arm": "a rate of its own for the branch", "method": "autolora_paper", "branch_rate": "own"},
    "autolora",
]
ENDINGS = [
    "autolora",
    {"arm": "trades, its average", "method": "trades", "deliver": "average"},
    {"arm": "at, its average", "method": "at", "deliver": "average"},
]
PARTS = [
    "autolora",
    {"arm": "natural term kept out", "method": "autolora", "route": "branch", "lam1": "auto"},
    {"arm": "no branch", "method": "autolora", "route": "shared"},
    {"arm": "natural weight 1 - SA", "method": "autolora", "lam1": "auto"},
    {"arm": "one rate for all", "method": "autolora", "branch_rate": "paper"},
    {"arm": "no KL", "method": "autolora", "kl": "none"},
    {"arm": "step decay", "method": "autolora", "decay": "step"},
    {"arm": "last epoch", "method": "autolora", "deliver": "last"},
    {"arm": "best epoch", "method": "autolora", "deliver": "best"},
]
STUDIES = {"methods": METHODS, "endings": ENDINGS, "parts": PARTS, "ablations": ABLATIONS}
KEPT = [
    "arm",
    "task",
    "backbone",
    "condition",
    "seed",
    "state",
    "sa",
    "sa_correct",
    "sa_n",
    "ra",
    "ra_correct",
    "ra_n",
    "aa",
    "aa_correct",
    "aa_n",
    "best_epoch",
    "delivered",
    "epochs_done",
    "lr",
    "lr_setting",
    "angle",
    "angle_natural",
    "seconds",
    "attack_steps",
    "message",
]


def tuned(task, backbone, settings):
    """AutoLoRa as it is, and each rival with the settings that a search found, with a seed that no
    run of the study has; for `compare`."""
    net = backbone or embedded(
        load_task(task, limit=settings.get("limit"), size=settings.get("size"))
    )
    found = {
        method: tune(
            net,
            task,
            method,
            10,
            seed=1000,
            out=folder("tune", task, backbone, method, settings),
            **settings,
        )
        for method in RIVALS
    }
    for method, tuning in found.items():
        print(f"{method}: {tuning.chosen}, {tuning.spent['default_runs']:.1f} default runs spent")
    return [
        "autolora",
        *({"arm": f"{method}, tuned", **tuning.chosen} for method, tuning in found.items()),
    ]


def slid(study):
    "What each run measured with its branch added: a row a scale, on validation images."
    rows = []
    for cell in study.cells:
        found = study.run(cell).last("scales")
        points = zip(*(found.get(name, []) for name in ("scale", "sa", "ra")), strict=True)
        about = {name: cell[name] for name in ("arm", "task", "seed")} | {"n": found.get("n")}
        rows += [about | {"scale": s, "sa": sa, "ra": ra} for s, sa, ra in points]
    return pd.DataFrame(rows)


def folder(what, task, backbone, part, settings):
    "Where the runs lie: a folder for everything that makes them differ."
    return (
        ROOT
        / "runs"
        / "-".join(
            filter(
                None,
                [
                    what,
                    part,
                    Path(task).stem,
                    backbone,
                    *(Path(str(value)).stem for value in settings.values()),
                ],
            )
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="a name or a path")
    parser.add_argument("--what", choices=[*STUDIES, "tuned"], default="methods")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--heads", nargs="+", default=["random", "robust_linear"], help="of the methods"
    )
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--size", type=int, help="pixels a side, to which the images are resized")
    parser.add_argument("--backbone", help="default: the embedded one")
    parser.add_argument("--weights", help="its checkpoint")
    parser.add_argument("--epochs", type=int, help="default: fits the size of the data")
    parser.add_argument("--autoattack", type=int, default=128, help="test images for AutoAttack")
    parser.add_argument("--jobs", type=int, help="runs at once")
    args = parser.parse_args()
    settings = {
        name: value
        for name in ("limit", "size", "epochs", "weights")
        if (value := getattr(args, name))
    }
    arms = STUDIES.get(args.what) or tuned(args.task, args.backbone, settings)
    vary = {"head": args.heads} if args.what == "methods" else None
    study = compare(
        arms,
        [args.task],
        [args.backbone] if args.backbone else None,
        args.seeds,
        vary,
        folder("evidence", args.task, args.backbone, args.what, settings),
        args.jobs,
        autoattack=args.autoattack,
        **settings,
    )
    ends = [study.run(cell).last("end").get("delivered") for cell in study.cells]
    table = study.table.assign(delivered=ends)
    name = "_".join(filter(None, [args.what, args.backbone, *study.protocol["tasks"]]))
    RESULTS.mkdir(exist_ok=True)
    kept = [column for column in KEPT if column in table]
    table[kept].to_csv(RESULTS / f"{name}.csv", index=False)
    if len(measured := slid(study)):
        measured.to_csv(RESULTS / f"slider_{name}.csv", index=False)
    protocol = study.protocol
    protocol["tasks"] = {
        task: about | {"source": task} for task, about in protocol["tasks"].items()
    }  # the place of a file is nobody's business
    if args.weights:
        protocol["settings"]["weights"] = Path(args.weights).name
    (RESULTS / f"{name}.json").write_text(json.dumps(protocol, indent=1) + "\n")
    print(
        summary(table).to_string(index=False),
        tests(table, against=table.arm.iloc[0]).to_string(index=False),
        f"Written: {RESULTS / name}.csv",
        sep="\n\n",
    )


if __name__ == "__main__":
    main()
