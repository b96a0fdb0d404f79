"""README's moving picture, from the run of AutoLoRa that comes with the package and the one of
TRADES beside it: python tools/moving.py"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import PercentFormatter
from PIL import Image

from autolora import Run

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "autolora" / "recorded"
TARGET = ROOT / "nbs" / "images" / "run.gif"
OURS, RIVAL = "#0072B2", "#999999"
STAY = 250, 3000  # milliseconds of a frame, and of the last one


def panels(last):
    "The three panels, empty, with axes that a whole run fits."
    fig, axes = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained", dpi=90)
    titles = ("Accuracy on validation images", "Learning rate", "Angle of the two gradients")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlim(0.5, last + 0.5)
        ax.set_xlabel("epoch", fontsize=9)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(0.55, 1.01)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes[1].set_yscale("log")
    axes[1].set_ylim(5e-4, 0.2)
    axes[2].set_ylim(40, 130)
    axes[2].yaxis.set_major_formatter("{x:.0f}°")
    axes[2].axhline(90, color="black", lw=0.6, ls=":")
    return fig, axes


def frame(histories, epoch):
    "The picture after so many epochs."
    fig, axes = panels(histories["AutoLoRa"].epoch.max())
    for (name, h), colour in zip(histories.items(), (RIVAL, OURS), strict=True):
        h = h[h.epoch <= epoch]
        axes[0].plot(h.epoch, h.sa, color=colour, ls="--", label=f"{name}: natural")
        axes[0].plot(h.epoch, h.ra, color=colour, label=f"{name}: attacked")
        axes[1].step(h.epoch, h.lr, color=colour, where="mid", label=name)
        angles = h.dropna(subset="angle_natural")
        axes[2].plot(angles.epoch, angles.angle_natural, "o-", ms=4, color=colour, label=name)
    for ax in axes:
        ax.legend(fontsize=7, loc="lower right" if ax is axes[0] else "upper right", frameon=False)
    out = io.BytesIO()
    fig.savefig(out)
    plt.close(fig)
    return Image.open(out).convert("RGB").quantize(32)


def main():
    histories = {
        label: pd.DataFrame(Run(RUNS / name).history)
        for label, name in (("TRADES", "trades"), ("AutoLoRa", "autolora"))
    }
    first, *more = [frame(histories, epoch) for epoch in histories["AutoLoRa"].epoch]
    times = [STAY[0]] * len(more) + [STAY[1]]
    first.save(TARGET, save_all=True, append_images=more, duration=times, loop=0, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
