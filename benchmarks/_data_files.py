"""Small data and checkpoints in each format that is read, and what a person does with each."""

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from autolora.data.loading import load_task
from autolora.models.backbones import load_backbone
from autolora.models.inspection import inspect_file

N = 60  # images of a set


def pictures(folder, ending):
    "A folder of two classes of small images."
    rng = np.random.default_rng(0)
    for i in range(N):
        path = Path(folder) / "ab"[i % 2] / f"{i}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return Path(folder)


def arrays(classes=3, side=12, channels=1):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (N, channels, side, side), np.uint8)
    return x, np.arange(N) % classes


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def idx_files(folder, packed):
    raw = Path(folder) / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    x, y = arrays(10)
    for kind in ("train", "t10k"):
        for name, array in (("images-idx3", x[:, 0]), ("labels-idx1", y)):
            path = raw / f"{kind}-{name}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return raw


def cifar_files(folder):
    folder = Path(folder) / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    x, y = arrays(10, 32, 3)
    batch = {b"data": x.reshape(N, -1), b"labels": y.tolist()}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


def shard(path):
    with tarfile.open(path, "w") as archive:
        for file in sorted(pictures(path.parent / "sharded", "png").glob("*/*.png")):
            label = str("ab".index(file.parent.name)).encode()
            for name, content in ((file.name, file.read_bytes()), (f"{file.stem}.cls", label)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def packed(path, folder):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*.png"):
                archive.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, folder.name)


def taken(source, **how):
    "Load a task and look at all its images: they are what every other room relies on."
    task = load_task(source, **how)
    for split in task.splits.values():
        x = split.images()
        assert len(x) == len(split.y) and x.dtype == torch.float32
        assert x.min() >= 0 and x.max() <= 1, "images out of range"
        assert split.y.min() >= 0 and split.y.max() < task.num_classes, "a label without a class"


def fitted(path):
    "Ask what a checkpoint is, and load it."
    inspect_file(path)
    net = load_backbone("robust_mini_gray", 10, weights=str(path))
    assert all(v.isfinite().all() for v in net.state_dict().values()), "weights that are NaN"


def sources(folder):
    "By format: the folder to be copied, the file in it that is mutated, and the use of the copy."
    made = {}

    def place(name):
        path = folder / name
        path.mkdir(parents=True)
        return path

    for ending in ("png", "jpg", "webp", "gif", "tif", "bmp"):
        pictures(folder / ending, ending)
        made[ending] = f"a/0.{ending}", lambda path: taken(path)
    x, y = arrays()
    np.savez_compressed(place("npz") / "pack.npz", train_x=x, train_y=y, classes=list("abc"))
    made["npz"] = "pack.npz", lambda path: taken(path / "pack.npz")
    torch.save((torch.from_numpy(x), torch.from_numpy(y)), place("pt") / "set.pt")
    made["pt"] = "set.pt", lambda path: taken(path / "set.pt")
    table = pictures(folder / "csv", "png")
    rows = [f"{p.relative_to(table)},{p.parent.name}" for p in sorted(table.glob("*/*.png"))]
    (table / "table.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    made["csv"] = "table.csv", lambda path: taken(path / "table.csv")
    packed(place("zip") / "set.zip", folder / "png")
    made["zip"] = "set.zip", lambda path: taken(path / "set.zip")
    packed(place("tgz") / "set.tar.gz", folder / "png")
    made["tgz"] = "set.tar.gz", lambda path: taken(path / "set.tar.gz")
    shard(place("shard") / "set-train-0000.tar")
    made["shard"] = "set-train-0000.tar", lambda path: taken(path / "set-train-0000.tar")
    for name, zipped in (("idx", False), ("idx_gz", True)):
        idx_files(folder / name, zipped)
        file = f"FashionMNIST/raw/train-images-idx3-ubyte{'.gz' * zipped}"
        made[name] = file, lambda path: taken("fashion_mnist", root=path)
    cifar_files(folder / "cifar")
    made["cifar"] = "cifar-10-batches-py/data_batch_1", lambda path: taken("cifar10", root=path)
    state = {
        k: v.contiguous() for k, v in load_backbone("robust_mini_gray", 10).state_dict().items()
    }
    save_file(state, place("weights_st") / "w.safetensors")
    made["weights_st"] = "w.safetensors", lambda path: fitted(path / "w.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, place("weights_pt") / "w.pt")
    made["weights_pt"] = "w.pt", lambda path: fitted(path / "w.pt")
    np.savez(place("weights_npz") / "w.npz", **{k: v.numpy() for k, v in state.items()})
    made["weights_npz"] = "w.npz", lambda path: fitted(path / "w.npz")
    return made
