"""Makes the runs anew that the lab shows before any has been trained: python tools/recorded.py

AutoLoRa, naive RFT and plain fine-tuning of the embedded robust net on the digits, one seed, all
settings found. The plain one is chosen by its standard accuracy: its adversary may do almost
nothing. Weights are kept in half precision; what only a resume would need is left out."""

import shutil
import sys
from pathlib import Path

import torch

from autolora import Run, finetune
from autolora.methods.base import Natural
from autolora.models.kept import read_weights, save_weights

FOLDER = Path(__file__).parent.parent / "autolora" / "recorded"
KEPT = {"config.json", "events.jsonl", "report.json", "examples.npz", "model.safetensors"}


class Plain(Natural):
    "Plain fine-tuning: CE(nat), no attack."

    name = "plain"
    label = "plain fine-tuning"


def halved(value):
    return value.half() if getattr(value, "dtype", None) == torch.float32 else value


def record(name, method, threat=None):
    path = FOLDER / name
    shutil.rmtree(path, ignore_errors=True)
    finetune("robust_mini_gray", "digits", method, threat=threat, out=path, progress=False)
    for file in path.iterdir():
        if file.name not in KEPT:
            file.unlink()
    run = Run(path)
    weights = path / "model.safetensors"
    state = read_weights(weights, run.identity, run.tells)
    save_weights(weights, {name: halved(value) for name, value in state.items()}, run.identity)


CALLS = {"autolora": ["autolora"], "trades": ["trades"], "plain": [Plain, "linf:0.001"]}

if __name__ == "__main__":
    for name in sys.argv[1:] or CALLS:
        record(name, *CALLS[name])
