"""Whether a handed-on model is the one that was measured: every format, several nets, natural
images and images under attack.

python benchmarks/exports.py                what is not in exports.json yet
python benchmarks/exports.py onnx vit       cells whose net or format holds one of these words, anew
python benchmarks/exports.py --show         exports.md from what there is

Each net is really trained for an epoch on real images, its run opened again, exported to each
format, and the file called by what reads it (onnxruntime, torch.export, PEFT) on the same 128
images: the largest difference of a logit, and how many images are right, natural and after PGD
against the model, in the model and in the file. "refused" is a sentence of the library. timm,
transformers, onnxruntime and PEFT are extras; what isn't installed isn't measured."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from _harness import HERE, versions
from _hugging_face import folder_of
from torch import nn

from autolora import AutoLoRaError, Run, finetune
from autolora.core.machine import import_torchvision
from autolora.models.formats import FORMATS

RESULTS = HERE / "exports.json"
PAGE = HERE / "exports.md"
N = 128
SHORT = {"epochs": 1, "lr": 0.02, "steps": 2, "limit": 400, "progress": False, "angles": False}
COLUMNS = ["net", "format", "MB", "seconds", "largest difference of a logit", "SA", "PGD-10"]


class Own(nn.Module):
    "A net of a user's: grouped convolution, GroupNorm, attention over the pixels of a small map."

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.GELU())
        self.mix = nn.Conv2d(16, 32, 3, 2, 1, groups=4)
        self.look = nn.MultiheadAttention(32, 4, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, x):
        h = self.mix(self.stem(x)).flatten(2).mT
        return {"logits": self.out((h + self.look(h, h, h)[0]).mean(1))}


def hugging_face(folder):
    return f"hf:{folder_of('vit', folder / 'net')}"


NETS = {  # name -> (backbone by the folder that it may use, data, settings)
    "robust_mini_gray": (lambda _: "robust_mini_gray", "digits", {}),
    "robust_mini_gray, lokr": (lambda _: "robust_mini_gray", "digits", {"parametrisation": "lokr"}),
    "a module of one's own": (lambda _: Own(), "digits", {}),
    "shufflenet_v2_x0_5": (lambda _: "shufflenet_v2_x0_5", "digits", {"size": 32}),
    "timm:resnet10t": (lambda _: "timm:resnet10t", "digits", {"size": 32}),
    "hf: a small ViT": (hugging_face, "digits", {"size": 32}),
}


def random_weights(name, folder):
    "A file of random weights of the backbone `name`, whose own can't be fetched everywhere."
    from autolora.models.backbones import BACKBONES

    path = folder / "start.pt"
    torch.save(BACKBONES[name].model(10).state_dict(), path)
    return {"weights": str(path)}


def trained(name, folder):
    "A short run of the net `name`, opened again."
    make, data, settings = NETS[name]
    torch.manual_seed(0)
    backbone = make(folder)
    start = {}
    if isinstance(backbone, str) and not backbone.startswith(("robust_mini", "hf:")):
        start = random_weights(backbone, folder)
    finetune(backbone, data, out=folder / "run", **SHORT | start | settings)
    return Run.open(folder / "run")


def cell(run, format):
    "What there is to tell of `run`'s model in that `format`."
    began = time.monotonic()
    try:
        done = run.export(format, n=N)
    except AutoLoRaError as error:
        return {"result": f"refused: {error}"}
    files = [done.path] if done.path.is_file() else done.path.iterdir()
    told = vars(done.parity)
    return {
        "result": "holds" if done.parity.holds else "WRONG",
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 2),
        "seconds": round(time.monotonic() - began, 1),
    } | {key: told[key] for key in ("n", "difference", "largest", "natural", "robust", "threat")}


def row(name, format, about):
    if about["result"] != "holds":
        return f"| {name} | {format} | | | {about['result']} | | |"
    far = f"{about['difference']:.1e} of {about['largest']:.3g}"
    pairs = [f"{a} and {b} of {about['n']}" for a, b in (about["natural"], about["robust"])]
    cells = [name, format, about["megabytes"], about["seconds"], far, *pairs]
    return f"| {' | '.join(map(str, cells))} |"


def page(kept):
    lines = ["# Handed on, and still the same", "", *__doc__.split("\n\n")[0].split("\n"), ""]
    lines += [__doc__.split("\n\n")[2].replace("\n", " "), ""]
    written = ", ".join(f"{package} {number}" for package, number in versions().items())
    lines += [f"Written by `python benchmarks/exports.py` with {written}.", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [row(*key.split(" | "), about) for key, about in kept.items()]
    PAGE.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    import_torchvision()
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in [] if args.show else NETS:
        keys = [f"{name} | {format}" for format in FORMATS]
        asked = [k for k in keys if any(word in k for word in args.words)]
        left = asked or [k for k in keys if k not in kept and not args.words]
        if left:
            with tempfile.TemporaryDirectory(prefix="autolora-exports-") as folder:
                try:
                    run = trained(name, Path(folder))
                except (AutoLoRaError, ImportError) as error:
                    print(f"{name} isn't measured: {error}", flush=True)
                    continue
                for key in left:
                    kept[key] = cell(run, key.split(" | ")[1])
                    print(row(*key.split(" | "), kept[key]), flush=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    page(kept)
    return any(about["result"] == "WRONG" for about in kept.values())


if __name__ == "__main__":
    sys.exit(main())
