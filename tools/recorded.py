"""Makes the runs anew that the lab shows before any has been trained: python tools/recorded.py

AutoLoRa, naive RFT and plain fine-tuning of the embedded robust net on the digits, one seed, all
settings found. Weights are kept in half precision; what only a resume would need is left out."""

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
    deliver = "last"  # robust accuracy is no aim of it


def halved(value):
    return value.half() if getattr(value, "dtype", None) == torch.float32 else value


def record(name, method):
    path = FOLDER / name
    shutil.rmtree(path, ignore_errors=True)
    finetune("robust_mini_gray", "digits", method, out=path, progress=False)
    for file in path.iterdir():
        if file.name not in KEPT:
            file.unlink()
    run = Run(path)
    weights = path / "model.safetensors"
    state = read_weights(weights, run.identity, run.tells)
    save_weights(weights, {name: halved(value) for name, value in state.items()}, run.identity)


if __name__ == "__main__":
    methods = {"autolora": "autolora", "trades": "trades", "plain": Plain}
    for name in sys.argv[1:] or methods:
        record(name, methods[name])
