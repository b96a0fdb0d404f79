"""What less work costs in robustness: AutoLoRa with its full attack, with each of the savings, and
with fewer steps all along.

python benchmarks/less_work.py --seeds 5

A study over seeds with AutoAttack, two runs at once; paired differences to the full attack, and the
Pareto plot: AutoAttack accuracy against the seconds of training. A cheaper attack is worth offering
only where the interval of its difference holds nothing but small losses."""

import argparse

import plotly.graph_objects as go
from _harness import HERE, save

from autolora.core.paired import t_interval
from autolora.runs.study import compare
from autolora.runs.tables import summary, tests

ARMS = [
    "autolora_paper",
    *(
        {"method": "autolora_paper", **saving}
        for saving in (
            {"attack": "growing"},
            {"attack": "single_first"},
            {"coreset": 0.3},
            {"steps": 5},
            {"steps": 2},
        )
    ),
]


def pareto(table):
    """Mean AutoAttack accuracy (percent, 95 % t interval over seeds) against the mean seconds of
    training, a point an arm; those that nothing beats are ringed."""
    spread = lambda rows: t_interval(100 * rows.aa)
    points = [
        (arm, rows.seconds.mean(), spread(rows)[0], spread(rows)[2] - spread(rows)[0])
        for arm, rows in table.groupby("arm", sort=False)
    ]
    fig = go.Figure(layout_template="none")
    for (arm, seconds, aa, half), symbol in zip(
        points, ("circle", "square", "diamond", "cross", "triangle-up", "x"), strict=True
    ):
        best = not any(
            s <= seconds and a >= aa and (s, a) != (seconds, aa) for _, s, a, _ in points
        )
        fig.add_trace(
            go.Scatter(
                x=[seconds],
                y=[aa],
                error_y=dict(array=[half]),
                mode="markers",
                name=arm + ", unbeaten" * best,
                marker=dict(symbol=symbol, size=12, line_width=3 * best),
            )
        )
    return fig.update_layout(
        title="Robustness and its cost",
        xaxis_title="seconds of training",
        yaxis_title="AutoAttack accuracy (percent)",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="digits", help="a name or a path")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--autoattack", type=int, default=128, help="test images for AutoAttack")
    parser.add_argument("--jobs", type=int, help="runs at once")
    args = parser.parse_args()
    study = compare(
        ARMS,
        [args.task],
        None,
        args.seeds,
        out=f"runs/less_work-{args.task}",
        jobs=args.jobs,
        autoattack=args.autoattack,
    )
    found = summary(study.table)
    apart = [
        f"{row.measure}, {row.difference}: {row['points [95 %]']} points, n={row.n}"
        for _, row in tests(study.table, against="autolora_paper").iterrows()
    ]
    save(
        HERE / "results",
        "less_work",
        f"Less work: AutoLoRa on {args.task}, {args.seeds} seeds, two runs at once",
        table=[list(found), *found.to_numpy().tolist()],
        notes=["; ".join(apart)],
    )
    pareto(study.table).write_html(study.path / "pareto.html")
    print(
        found.to_string(index=False),
        tests(study.table, against="autolora_paper").to_string(index=False),
        f"Pareto plot: {study.path / 'pareto.html'}",
        sep="\n\n",
    )


if __name__ == "__main__":
    main()
