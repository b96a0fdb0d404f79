"""What people bring: every spelling, mode and container, and what ends in a sentence instead."""

import io
import itertools
import os
import pickle
import sys
import tarfile
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from autolora import finetune
from autolora.core.errors import AutoLoRaError
from autolora.core.machine import import_torchvision
from autolora.data.augmenting import suited
from autolora.data.files import kind_of
from autolora.data.images import BROKEN_LIST, Split
from autolora.data.loading import load_task
from autolora.data.tables import read_table, table_splits
from autolora.data.task import TASKS

RNG = np.random.default_rng(0)
N = 120
X = RNG.integers(0, 256, (N, 12, 12, 3), dtype=np.uint8)
Y = np.arange(N) % 2
FIRST = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "The list of broken images is written into the working directory."
    monkeypatch.chdir(tmp_path)


def save(path, i=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(X[i]).save(path, **options)
    return path


def folder(root, *places, n=40):
    "`n` images in each of the places below `root`, no two the same."
    i = 0
    for place in places:
        for _ in range(n):
            save(root / place / f"{i}.png", i % N)
            i += 1
    return root


def refused(source, says, **options):
    "That `load_task` refuses `source` quickly in one sentence that `says` so."
    start = time.perf_counter()
    with pytest.raises(AutoLoRaError, match=says) as error:
        load_task(source, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500 and message.endswith(".")
    assert time.perf_counter() - start < 10
    return message


# ---- folders: splits and classes

SPELLINGS = [
    ("Training", "Testing"),
    ("Train", "Test"),
    ("TRAIN", "VALIDATION"),
    ("seg_train", "seg_test"),
    ("train_images", "Test_images"),
    ("train2017", "val2017"),
    ("training_set", "test_set"),
    ("TrainData", "TestData"),
    ("trainset", "dev"),
    ("xray_train", "xray_test"),
    ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
]


@pytest.mark.parametrize("train, test", SPELLINGS)
def test_any_spelling_of_a_split(tmp_path, train, test):
    root = folder(
        tmp_path / "in", *(f"{part}/{c}" for part in (train, test) for c in ("cat", "dog"))
    )
    task = load_task(root)
    assert task.classes == ["cat", "dog"] and len(task.test) == 80
    assert train in task.notes[0] and test in task.notes[0] and "Splits found" in task.notes[0]


def test_three_splits_nested_and_unlabelled(tmp_path):
    kinds = ("seg_train", "seg_valid", "seg_test")
    folder(tmp_path / "in/deeper", *(f"{k}/{k}/{c}" for k in kinds for c in "ab"))
    folder(tmp_path / "in/deeper", "seg_pred/seg_pred", n=3)
    folder(tmp_path / "in/deeper", "__MACOSX/a", ".cache/b", n=2)
    task = load_task(tmp_path / "in")
    assert [len(s) for s in task.splits.values()] == [80, 80, 80] and task.classes == ["a", "b"]
    assert any("seg_pred" in note for note in task.notes)


@pytest.mark.parametrize(
    "places, says",
    [
        (("cat/.", "dog/.", "test/."), "called like a split"),
        (("cat/.", "dog/.", "Validation/."), "called like a split"),
        (("train/.", "test/."), "without class folders"),
        (("Training/.", "Testing/."), "without class folders"),
        (("test/cat", "test/dog"), "no training folder"),
        (("train/cat", "Training/cat", "test/cat"), "two train folders"),
        (("train/cat", "train/dog", "extra/cat"), "beside them, 'extra'"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "splits within"),
        (("tr/cat", "tr/dog", "te/cat", "te/dog"), "hold the same folders .cat, dog."),
        (("gallery/cat", "gallery/dog", "query/cat", "query/dog"), "call the outer ones train"),
        (("a/images", "a/masks", "b/images", "b/masks"), "hold the same folders .images, masks."),
        (("train/cat", "train/dog", "test/cat", "test/cow"), "class folder 'cow'"),
    ],
)
def test_doubtful_folders_are_asked(tmp_path, places, says):
    refused(folder(tmp_path / "in", *places, n=5), says)


def test_a_class_of_trains_is_one(tmp_path):
    task = load_task(folder(tmp_path / "in", "bus", "car", "train"))
    assert task.classes == ["bus", "car", "train"] and "'train'" in task.notes[0]


def test_names_that_only_begin_like_splits_are_classes():
    names = ["test_tube", "training shoe", "freight_train", "protest", "invalid", "devil", "valley"]
    assert not [name for name in names if kind_of(name)]


def test_a_test_split_may_lack_a_class_by_name(tmp_path):
    root = folder(tmp_path / "in", *(f"train/{c}" for c in "abc"), "test/b", "test/c")
    task = load_task(root)
    assert sorted({task.classes[i] for i in task.test.y.tolist()}) == ["b", "c"]
    assert any("no test image of 'a'" in note for note in task.notes)


def test_pairs_of_folders_need_the_same_classes(tmp_path):
    for part, classes in (("one", "abc"), ("two", "abc"), ("three", "bc")):
        folder(tmp_path / part, *classes)
    assert len(load_task((tmp_path / "one", tmp_path / "two")).test) == 120
    refused((tmp_path / "one", tmp_path / "three"), "different class folders")
    datasets = import_torchvision("datasets")
    sets = [datasets.ImageFolder(tmp_path / part) for part in ("one", "two", "three")]
    assert load_task((sets[0], sets[1])).classes == list("abc")
    refused((sets[0], sets[2]), "other classes than training")
    refused((sets[0], torch.utils.data.Subset(sets[2], range(20))), "other classes than training")


# ---- files: modes and what is broken


def mixed(root, change, n=60):
    "A folder of two classes in which image 7 of the first is replaced by `change(path)`."
    folder(root, "a", "b", n=n)
    change(root / "a" / "7.png")
    return root


def test_colour_is_not_lost_in_a_grey_folder(tmp_path):
    for i in range(100):
        save(tmp_path / "in" / "ab"[i % 2] / f"{i}.png", i)
        Image.fromarray(X[i]).convert("L").save(tmp_path / "in" / "ab"[i % 2] / f"{i}.png")
    assert load_task(tmp_path / "in").shape == (1, 12, 12)
    save(tmp_path / "in" / "a" / "34.png")
    task = load_task(tmp_path / "in")
    assert task.shape == (3, 12, 12) and any("99 of 100 images are grey" in n for n in task.notes)


def shown(tmp_path, image, name="7.png", **options):
    "What the model sees of `image`, saved as a file among others; (C, H, W) in [0, 1]."
    root = folder(tmp_path / "in", "a", "b", n=60)
    (root / "a" / "7.png").unlink()
    image.save(root / "a" / f"007{name}", **options)
    task = load_task(root, size=12)
    for split in task.splits.values():
        for place, i in enumerate(split.index.tolist()):
            if split.source.names[i].name == f"007{name}":
                return split.images(torch.tensor([place]))[0]


def test_exif_turns(tmp_path):
    wide = np.zeros((24, 24, 3), np.uint8)
    wide[:12] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: the right half is white
    seen = shown(tmp_path, Image.fromarray(wide), ".jpg", exif=exif, quality=95)
    assert seen[:, :, 8:].mean() > 0.9 and seen[:, :, :4].mean() < 0.1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    clear = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    if mode == "P":
        clear = Image.new("P", (12, 12), 0)
        clear.putpalette([0, 0, 0, 255, 0, 0])
        clear.info["transparency"] = 0
    assert shown(tmp_path, clear.convert(mode)).min() == 1


def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 12).astype(np.uint16), (12, 1))
    seen = shown(tmp_path, Image.fromarray(ramp))
    assert torch.allclose(seen[0, 0], torch.linspace(0, 1, 12), atol=0.01)


def test_twelve_bits_in_sixteen_are_refused(tmp_path):
    for i in range(40):
        (tmp_path / "in" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        deep = Image.fromarray(X[i, ..., 0].astype(np.uint16) * 16)
        deep.save(tmp_path / "in" / "ab"[i % 2] / f"{i}.png")
    refused(tmp_path / "in", "nearly black")


def test_masks_of_small_numbers_are_refused(tmp_path):
    for i in range(40):
        (tmp_path / "in" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray((X[i, ..., 0] > 99).astype(np.uint8)).save(
            tmp_path / f"in/{'ab'[i % 2]}/{i}.png"
        )
    refused(tmp_path / "in", "nearly black")


def test_cmyk_is_converted(tmp_path):
    seen = shown(tmp_path, Image.new("CMYK", (12, 12), (0, 255, 255, 0)), ".jpg", quality=95)
    assert seen[0].min() > 0.9 and seen[1:].max() < 0.1


def text(path):
    path.write_bytes(b"no image")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_jpeg(path):
    big = Image.fromarray(np.kron(X[0], np.ones((20, 20, 1), np.uint8)))
    big.save(path.with_suffix(".jpg"), quality=95)
    path.unlink()
    path = path.with_suffix(".jpg")
    path.write_bytes(path.read_bytes()[:-4000])


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def dangling(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere.png")


def itself(path):
    path.unlink()
    path.symlink_to(path)


def bomb(path):
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20), 9)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def script(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


BREAKS = [text, empty, truncated, cut_jpeg, fifo, device, dangling, bomb, script]


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_a_broken_file_is_named_before_training_or_left_out(tmp_path, change):
    root = mixed(tmp_path / "in", change)
    message = refused(root, "1 of 120 images can't be read.*skip_broken=True")
    assert "a/7." in message and "a/7." in (tmp_path / BROKEN_LIST).read_text()
    task = load_task(root, skip_broken=True)
    assert sum(len(split) for split in task.splits.values()) == 119
    assert any("left out" in note for note in task.notes)


def test_a_huge_image_is_named(tmp_path):
    root = mixed(tmp_path / "in", lambda path: Image.new("1", (14_000, 13_000)).save(path))
    refused(root, "a/7.png .more than 179 million pixels")


def test_links_without_an_end(tmp_path):
    root = folder(tmp_path / "in", "a", "b", n=5)
    (root / "a" / "loop").symlink_to(root)
    refused(root, "is a link back to")
    (root / "a" / "loop").unlink()
    (root / "a" / "self").symlink_to(root / "a" / "self")
    refused(root, "link without an end")
    (root / "a" / "self").unlink()
    (root / "real").rename(tmp_path / "x") if (root / "real").exists() else None
    folder(tmp_path / "shared", "c", n=60)
    (root / "c").symlink_to(tmp_path / "shared" / "c")
    assert load_task(root).classes == ["a", "b", "c"]


def test_a_path_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    refused(tmp_path / "pipe.npz", "no regular file")


def test_images_by_what_they_begin_with(tmp_path):
    root = folder(tmp_path / "data", "a", "b")
    for i, path in enumerate(sorted((root / "a").iterdir())[:10]):
        path.rename(path.with_suffix(".png_large" if i % 2 else ""))
    (root / "a" / "Thumbs.db").write_bytes(b"1")
    (root / "b" / "list.txt").write_text("0.png")
    (root / "b" / "scan.nef").write_bytes((root / "b" / "40.png").read_bytes())
    task = load_task(root)
    assert sum(map(len, task.splits.values())) == 80
    told = [note for note in task.notes if "no images of a kind that is read here" in note]
    assert len(told) == 1 and told[0].startswith("2 files in class folders")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root))
    assert sum(map(len, load_task(tmp_path / "data.zip").splits.values())) == 80


@pytest.mark.parametrize("inner", ["images", "imgs", "raw_data"])
def test_folders_that_say_only_images_are_gone_through(tmp_path, inner):
    root = folder(tmp_path / "data", f"train/{inner}/a", f"train/{inner}/b", n=10)
    assert load_task(root).classes == ["a", "b"]


def test_hidden_files_are_skipped(tmp_path):
    root = folder(tmp_path / "in", "a", "b", n=60)
    for name in ("._1.png", ".DS_Store", ".hidden.png"):
        (root / "a" / name).write_bytes(b"Mac OS X")
    assert sum(len(s) for s in load_task(root).splits.values()) == 120


def test_skip_broken_is_a_setting(tmp_path, capsys):
    root = mixed(tmp_path / "in", text)
    options = dict(epochs=1, lr=0.01, steps=1, test=False, angles=False, batch_size=16, size=16)
    with pytest.raises(AutoLoRaError, match="skip_broken=True"):
        finetune("robust_mini_rgb", root, out=tmp_path / "one", **options)
    assert not (tmp_path / "one").exists()
    run = finetune("robust_mini_rgb", root, out=tmp_path / "two", skip_broken=True, **options)
    assert run.config["skip_broken"] is True
    assert any("left out" in note for note in run.config["notes"])
    assert "left out" in capsys.readouterr().err


# ---- what is said of the data


def test_small_data_run_and_no_split_takes_more_than_a_fifth(tmp_path):
    for n in (40, 60, 120, 300):
        task = load_task((np.resize(X, (n, 12, 12, 3)), np.arange(n) % 2))
        assert len(task.test) * 5 <= n and 0 < len(task.val) * 5 <= n
    options = dict(epochs=1, lr=0.01, steps=1, test=False, progress=False, batch_size=16, size=16)
    run = finetune("robust_mini_rgb", (X, Y), out=tmp_path / "run", **options)
    assert run.config["n_train"] == 77 and len(run.history) == 1
    assert any("uncertain by" in note for note in run.config["notes"])


def test_imbalance_and_missing_classes_are_said():
    y = np.array([0] * 900 + [1] * 60 + [2] * 6)
    x = RNG.integers(0, 256, (len(y), 4, 4), dtype=np.uint8)
    task = load_task({"train": (x, y), "val": (x[:900], y[:900]), "test": (x, y)})
    assert any("unbalanced: 900 training images of '0', 6 of '2'" in note for note in task.notes)
    assert any("no validation image of '1', '2'" in note for note in task.notes)


def again(image):
    "The same image, saved as a JPEG of another size."
    file = io.BytesIO()
    Image.fromarray(image).resize((80, 80)).save(file, "jpeg", quality=85)
    return np.asarray(Image.open(file).resize(image.shape[:2]))


def test_copies_across_splits_are_said():
    soft = np.stack([np.asarray(Image.fromarray(x).resize((48, 48))) for x in X])
    fresh = np.stack(
        [np.asarray(Image.fromarray(x.transpose(1, 0, 2)).resize((48, 48))) for x in X]
    )
    test = np.concatenate([fresh[:90], soft[:5], np.stack([again(x) for x in soft[5:12]])])
    task = load_task(((soft, Y), (test, np.arange(len(test)) % 2)))
    said = [note for note in task.notes if "memory" in note]
    numbers = sum(int(word) for note in said for word in note.split() if word.isdigit())
    assert numbers == len(said) * len(test) + 12
    clean = load_task(((soft, Y), (fresh, Y)))
    assert not [note for note in clean.notes if "memory" in note]


def test_copies_of_files_are_said(tmp_path):
    root = folder(tmp_path / "in", *(f"train/{c}" for c in "ab"), n=50)
    for i in range(20):
        save(root / "test" / "ab"[i % 2] / f"new{i}.png", 100 + i)
    save(root / "test" / "a" / "copy.png", 3)
    notes = [note for note in load_task(root).notes if "memory" in note]
    assert sum(" 1 are training images too" in n or " 1 are validation" in n for n in notes) == 1


def test_one_image_of_two_classes_is_said():
    x = np.concatenate([X, X[:4]])
    task = load_task(((x, np.concatenate([Y, 1 - Y[:4]])), (X[:9], Y[:9])))
    assert any("under different classes" in note for note in task.notes)


# ---- tables


def table(tmp_path, **columns):
    for i in range(N):
        save(tmp_path / "images" / f"{i:03}.png", i)
    frame = pd.DataFrame({"file": [f"images/{i:03}.png" for i in range(N)]})
    return frame.assign(**columns)


def test_csv_of_paths_and_names(tmp_path):
    frame = table(tmp_path, species=np.array(["cat", "dog"])[Y])
    frame.to_csv(tmp_path / "pets.csv", index=False)
    task = load_task(tmp_path / "pets.csv")
    assert task.classes == ["cat", "dog"] and task.name == "pets"
    x = task.train.images(slice(1))[0]
    i = int(task.train.source.names[int(task.train.index[0])].stem)
    assert torch.equal(x, FIRST[i]) and task.train.y[0] == Y[i]
    assert load_task(frame, root=tmp_path).classes == ["cat", "dog"]


@pytest.mark.parametrize(
    "sep, header",
    [(",", True), (";", True), ("\t", False), ("|", True), ("|", False), (" ", False)],
)
def test_csv_dialects(tmp_path, sep, header):
    frame = table(tmp_path, label=Y)
    frame.to_csv(tmp_path / "t.csv", sep=sep, header=header, index=False)
    assert load_task(tmp_path / "t.csv").classes == ["0", "1"]


def test_csv_with_splits_ids_and_odd_names(tmp_path):
    frame = table(tmp_path, target=np.array(["None", "NA"])[Y])
    frame["file"] = [f"{i:03}" for i in range(N)]
    frame = frame.rename(columns={"file": "id"})
    frame["split"] = np.array(["Training", "valid", "TEST"])[np.arange(N) // 40]
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "images").rename(tmp_path / "pictures")
    task = load_task(tmp_path / "t.csv", root=tmp_path / "pictures")
    assert task.classes == ["NA", "None"] and [len(s) for s in task.splits.values()] == [40] * 3


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda f: f.assign(label="a", target="b"), "could all be the labels"),
        (lambda f: f.drop(columns="file").assign(age=3, label=1), "Which column holds the paths"),
        (lambda f: f.assign(age=3, sex=1), "Which column holds the labels"),
        (lambda f: f.assign(label=[None] + ["a", "b"] * 59 + ["a"]), "label of image 0 is missing"),
        (lambda f: f.assign(label=Y - 1), "label is -1"),
        (lambda f: f.assign(label=Y + 0.5), "whole numbers"),
        (lambda f: f.assign(label=(Y + 0.5).astype(str)), "whole numbers"),
        (lambda f: pd.concat([f.assign(label=Y), f.assign(label=Y)]), "stand in the table twice"),
        (lambda f: f.assign(label=Y, split="fold1"), "neither train, val nor test"),
        (lambda f: f.assign(label=Y, file=f.file + ".gone.png"), "120 of 120 images can't be read"),
        (lambda f: f.assign(label=Y)[:0], "no rows"),
        (lambda f: f.assign(label=np.array(["a", "NaN"])[Y]), "label of image 1 is missing"),
        (lambda f: f.assign(file=list(X), label=Y), "holds ndarrays, no paths"),
        (lambda f: f.assign(label=Y, is_valid=Y, is_test=Y), "marked in both"),
        (lambda f: f.assign(label=Y, is_valid=Y, val=Y), "both mark the val images"),
        (lambda f: f.assign(label=Y, is_test=1), "no training images"),
        (lambda f: f.assign(label=Y, is_train=Y, is_test=0), "a row in no split"),
    ],
)
def test_doubtful_tables_are_asked(tmp_path, change, says):
    refused(change(table(tmp_path)), says, root=tmp_path)


@pytest.mark.parametrize(
    "marks, sizes",
    [
        ({"is_valid": Y}, {"train": 60, "val": 60}),
        ({"is_training_image": Y}, {"train": 60, "test": 60}),
        ({"IsTest": np.array(["no", "yes"])[Y]}, {"train": 60, "test": 60}),
        ({"val": Y == 0, "test": np.arange(N) == 1}, {"train": 59, "val": 60, "test": 1}),
    ],
)
def test_columns_of_yes_and_no_are_splits(tmp_path, marks, sizes):
    frame = table(tmp_path, label=np.arange(N) // 2 % 2, fold=np.arange(N) % 5, **marks)
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, read_table(tmp_path / "t.csv")):
        splits, _ = table_splits(source, tmp_path)
        assert {kind: len(split) for kind, split in splits.items()} == sizes
        notes = " ".join(note for split in splits.values() for note in split.notes)
        assert all(repr(name) in notes for name in marks) and "not used: fold." in notes


# ---- packs, tensors, arrays


@pytest.mark.parametrize("extra", [{"x_test": X[:20]}, {"x_test": X[:20], "y_tset": Y[:20]}])
def test_test_images_without_labels_are_asked(tmp_path, extra):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, **extra)
    refused(tmp_path / "a.npz", "has x_test but no labels for it")


def test_arrays_that_a_pack_has_no_use_for_are_said(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, camera=Y)
    assert "Of the pack, camera isn't used." in load_task(tmp_path / "a.npz").notes


def test_numbers_of_another_machine(tmp_path):
    np.savez(tmp_path / "a.npz", x=(X / 255).astype(">f4"), y=Y.astype(">i2"))
    assert load_task(tmp_path / "a.npz").train.images().max() <= 1


def test_images_of_two_types_are_told_so():
    pairs = [(FIRST[i] if i % 2 else torch.from_numpy(X[i]), int(Y[i])) for i in range(N)]
    refused(AsDataset(pairs), "is torch.float32, the first torch.uint8: give all as uint8")


def test_labels_of_a_type_that_numpy_lacks():
    refused((X, torch.from_numpy(Y).bfloat16()), "pass whole numbers")


class AsDataset(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_a_stream_without_an_end_asks_for_a_limit():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ((FIRST[i % N], i % 2) for i in itertools.count())

    with pytest.raises(AutoLoRaError, match="goes on: say how many to take, limit="):
        load_task(Endless())
    assert len(load_task(Endless(), limit=100).train) == 64


def test_medmnist_and_keras_packs(tmp_path):
    splits = {"train": 80, "val": 20, "test": 20}
    arrays = {f"{k}_images": X[:n] for k, n in splits.items()}
    arrays |= {f"{k}_labels": Y[:n, None] for k, n in splits.items()}
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    assert [len(s) for s in load_task(tmp_path / "bloodmnist.npz").splits.values()] == [80, 20, 20]
    np.savez(tmp_path / "k.npz", x_train=X[..., 0], y_train=Y, x_test=X[:9, ..., 0], y_test=Y[:9])
    assert load_task(tmp_path / "k.npz").shape == (1, 12, 12)
    several = np.ones((N, 3), int)
    np.savez(tmp_path / "chest.npz", train_images=X, train_labels=several)
    refused(tmp_path / "chest.npz", "several labels or none")


def test_npz_bombs_and_lies(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("train_y.npy", b"")
        with file.open("train_x.npy", "w", force_zip64=True) as member:
            for _ in range(17):
                member.write(bytes(64 << 20))
    refused(path, "damaged or a trap")
    header = np.lib.format.magic(1, 0)
    lie = b"{'descr': '|u1', 'fortran_order': False, 'shape': (16000000000,), }"
    lie += b" " * (117 - len(lie)) + b"\n"
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as file:
        file.writestr("train_x.npy", header + len(lie).to_bytes(2, "little") + lie)
        file.writestr("train_y.npy", header + len(lie).to_bytes(2, "little") + lie)
    refused(tmp_path / "lie.npz", "can't be read|is not a readable")
    np.savez(tmp_path / "o.npz", train_x=X, train_y=Y.astype(object))
    refused(tmp_path / "o.npz", "'train_y' in .* can't be read")


def test_tensors_in_a_file(tmp_path):
    torch.save((torch.from_numpy(X), torch.from_numpy(Y)), tmp_path / "t.pt")
    assert load_task(tmp_path / "t.pt").name == "t"
    torch.save({"train_x": torch.from_numpy(X), "train_y": torch.from_numpy(Y)}, tmp_path / "t.pt")
    assert load_task(tmp_path / "t.pt").shape == (3, 12, 12)
    torch.save(torch.utils.data.TensorDataset(torch.zeros(3)), tmp_path / "t.pt")
    refused(tmp_path / "t.pt", "save them by torch.save")
    (tmp_path / "t.pt").write_bytes(pickle.dumps(os.getcwd))
    refused(tmp_path / "t.pt", "can't be read as tensors")


LABELS = {
    "names": (np.array(["cat", "dog"])[Y], ["cat", "dog"]),
    "objects": (np.array(["cat", "dog"])[Y].astype(object), ["cat", "dog"]),
    "a list of names": (np.array(["cat", "dog"])[Y].tolist(), ["cat", "dog"]),
    "bytes": (np.array([b"cat", b"dog"])[Y], ["cat", "dog"]),
    "a Series": (pd.Series(["cat", "dog"] * 60), ["cat", "dog"]),
    "a Categorical": (pd.Categorical(["cat", "dog"] * 60), ["cat", "dog"]),
    "booleans": (Y.astype(bool), ["False", "True"]),
    "one-hot": (np.eye(2)[Y], ["0", "1"]),
    "one-hot integers": (torch.eye(2)[torch.from_numpy(Y)].long(), ["0", "1"]),
    "a column": (Y[:, None], ["0", "1"]),
    "digits as text": (np.array(["9", "10"])[Y], ["9", "10"]),
}


@pytest.mark.parametrize("labels, classes", LABELS.values(), ids=LABELS)
def test_labels_of_every_kind(labels, classes):
    task = load_task((X, labels))
    assert task.classes == classes
    for split in task.splits.values():
        assert torch.equal(split.y, torch.from_numpy(Y)[split.index])


def test_test_labels_are_read_with_the_names_of_training():
    names = np.array(["cat", "dog"])[Y]
    task = load_task(((X, names), (X[1::2], names[1::2])))
    assert set(task.test.y.tolist()) == {1}
    refused(((X, names), (X, np.array(["cat", "cow"])[Y])), "label is 'cow'")


@pytest.mark.parametrize("shape", [(N, 4, 32, 32), (N, 32, 32, 13), (N, 32, 32, 4), (N, 2, 32, 32)])
def test_more_than_three_channels(shape):
    task = load_task((RNG.random(shape, dtype=np.float32), Y))
    assert task.shape == (min(shape[1:]), 32, 32)


def test_black_and_white_booleans():
    task = load_task((X[..., 0] > 127, Y))
    assert set(task.train.images().unique().tolist()) == {0, 1}
    refused(((X[..., 0] > 127).astype(np.uint8), Y), "nearly black")
    refused((X[..., 0] // 16, Y), "nearly black")


# ---- mappings, loaders, Hugging Face


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return FIRST[i], int(Y[i])


def test_mappings_by_split():
    parts = {"Train": (X, Y), "validation": (X[:9], Y[:9]), "test": Pictures()}
    assert [len(s) for s in load_task(parts).splits.values()] == [120, 9, 120]
    refused({"test": (X, Y)}, "no training images")
    refused({"train": (X, Y), "training": (X, Y)}, "a split twice")
    refused({"a": (X, Y)}, "no pack of images here, it holds a")


def test_data_loaders():
    loader = torch.utils.data.DataLoader(Pictures(), 16, shuffle=True)
    assert torch.equal(load_task((loader, loader)).test.images(), FIRST)
    part = torch.utils.data.SubsetRandomSampler(range(60))
    chosen = load_task(torch.utils.data.DataLoader(Pictures(), 16, sampler=part))
    assert sum(len(split) for split in chosen.splits.values()) == 60

    def negative(batch):
        x, y = torch.utils.data.default_collate(batch)
        return 1 - x, y

    changed = torch.utils.data.DataLoader(Pictures(), 16, collate_fn=negative)
    assert torch.allclose(load_task((changed, changed)).test.images(), 1 - FIRST)


def test_streams():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            i = 0
            while True:
                yield Image.fromarray(X[i % N]), "ab"[i % 2]
                i += 1

    task = load_task(Stream(), limit=100)
    assert task.classes == ["a", "b"] and any("first 100 images" in note for note in task.notes)
    refused(iter([]), "stream is empty")
    refused([1, 2, 3], "no task")


def test_a_dataset_that_raises_is_named():
    class Bad(Pictures):
        def __getitem__(self, i):
            if i == 60:
                raise RuntimeError("disk on fire")
            return super().__getitem__(i)

    refused(Bad(), "Item 60 .*disk on fire")


@pytest.fixture
def hugging_face():
    return pytest.importorskip("datasets", reason="the extra hf isn't installed")


def test_hugging_face(hugging_face):
    features = hugging_face.Features(
        {"img": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"img": [Image.fromarray(x) for x in X], "label": Y.tolist()}
    data = hugging_face.Dataset.from_dict(rows, features)
    task = load_task((data, data))
    assert task.classes == ["cat", "dog"] and torch.equal(task.test.images(), FIRST)
    raw = data.cast_column("img", hugging_face.Image(decode=False))
    assert torch.equal(load_task((raw, raw)).test.images(), FIRST)
    parts = hugging_face.DatasetDict({"train": data, "validation": data, "test": data})
    assert [len(s) for s in load_task(parts).splits.values()] == [120] * 3
    task = load_task(data.to_iterable_dataset(), limit=100)
    assert task.classes == ["cat", "dog"]
    other = hugging_face.ClassLabel(names=["dog", "cat"])
    refused((data, data.cast_column("label", other)), "other classes than training")
    refused(data.add_column("coarse", Y.tolist()).cast_column("coarse", other), "remove_columns")


def test_hugging_face_on_disk(hugging_face, tmp_path):
    features = hugging_face.Features(
        {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [Image.fromarray(x) for x in X], "label": Y.tolist()}
    hugging_face.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "saved", f"hf:{tmp_path / 'saved'}"):
        task = load_task(source)
        assert task.classes == ["cat", "dog"] and task.name == "saved"


def test_hugging_face_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:beans", r"pip install 'autolora\[hf\]'")


def test_the_list_of_broken_images_needs_no_place_to_write(tmp_path, monkeypatch):
    root = mixed(tmp_path / "in", text)
    (tmp_path / BROKEN_LIST).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "in"))
    refused(root, "1 of 120 images can't be read")


class Rows(list):
    "What a Hugging Face `Dataset` offers."

    column_names = ["image", "label"]

    class _Names:
        names = ["cat", "dog"]

    features = {"image": None, "label": _Names()}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_hugging_face_by_what_it_offers():
    encoded = io.BytesIO()
    Image.fromarray(X[0]).save(encoded, "png")
    rows = Rows({"image": Image.fromarray(X[i]), "label": int(Y[i])} for i in range(N))
    rows[0] = {"image": {"bytes": encoded.getvalue(), "path": None}, "label": 0}
    task = load_task(rows)
    assert task.classes == ["cat", "dog"] and task.shape == (3, 12, 12)
    assert len(load_task({"train": rows, "unsupervised": rows, "test": rows}).test) == N


# ---- archives and shards


def zipped(path, names, content=None):
    encoded = []
    for x in X:
        Image.fromarray(x).save(file := io.BytesIO(), "png")
        encoded.append(file.getvalue())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for i, name in enumerate(names):
                file.writestr(name, content or encoded[i % N])
    else:
        with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as file:
            for i, name in enumerate(names):
                member = tarfile.TarInfo(name)
                member.size = len(content or encoded[i % N])
                file.addfile(member, io.BytesIO(content or encoded[i % N]))
    return path


PETS = [
    f"pets/{'Training' if i < 80 else 'Testing'}/{'cat' if i % 2 else 'dog'}/{i}.png"
    for i in range(N)
]


@pytest.mark.parametrize("name", ["pets.zip", "pets.tar", "pets.tar.gz", "pets.tgz"])
def test_archives_of_a_folder(tmp_path, name):
    task = load_task(zipped(tmp_path / name, [*PETS, "__MACOSX/pets/cat/._1.png"]))
    assert task.name == "pets" and task.classes == ["cat", "dog"] and len(task.test) == 40


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/tmp/evil.png", "a/../../b.png", "..\\evil.png"]
)
@pytest.mark.parametrize("end", [".zip", ".tar"])
def test_no_path_leaves_the_target(tmp_path, name, end):
    refused(zipped(tmp_path / f"evil{end}", [*PETS, name]), "leads out of its folder")


def test_archives_by_what_they_are_and_not_by_their_name(tmp_path):
    root = folder(tmp_path / "data", "a", "b")
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as archive:
        archive.add(root, "data")
    (tmp_path / "t.tar.gz").rename(tmp_path / "t.zip")
    assert load_task(tmp_path / "t.zip").classes == ["a", "b"]
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(tmp_path / "t.zip", "t.zip")
    with pytest.raises(AutoLoRaError, match="outer.zip .* It holds an archive, t.zip") as error:
        load_task(tmp_path / "outer.zip")
    assert "/autolora-" not in str(error.value)
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.write(root / "a" / "0.png", "a/0.png")
    raw = bytearray((tmp_path / "locked.zip").read_bytes())
    raw[raw.index(b"PK\3\4") + 6] |= 1  # the flag that it is encrypted, in both its headers
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(raw)
    refused(tmp_path / "locked.zip", "is encrypted: unpack")


def test_blanks_around_a_label_are_no_other_class():
    names = np.array(["cat", "cat ", " dog", "dog"])[np.arange(N) % 4]
    assert load_task((X, names)).classes == ["cat", "dog"]
    notes = load_task((X, np.array(["Cat", "cat"])[Y])).notes
    assert "The classes 'Cat', 'cat' differ in capitals only." in notes


def test_a_loader_that_drops_its_last_batch_drops_no_image():
    data = torch.utils.data.TensorDataset(FIRST, torch.from_numpy(Y))
    loader = torch.utils.data.DataLoader(data, 50, drop_last=True)
    assert sum(map(len, load_task(loader).splits.values())) == N


def test_a_label_of_none_is_a_missing_one():
    refused(AsDataset([(FIRST[i], None if i == 3 else i % 2) for i in range(N)]), "image 3 is miss")


def test_archives_with_links_bombs_and_damage(tmp_path):
    with tarfile.open(tmp_path / "l.tar", "w") as file:
        member = tarfile.TarInfo("pets/cat/a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        file.addfile(member)
    refused(tmp_path / "l.tar", "a link or a device")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("pets/cat/a.png", "w", force_zip64=True) as member:
            for _ in range(17):
                member.write(bytes(64 << 20))
    refused(tmp_path / "b.zip", "trap")
    (tmp_path / "d.zip").write_bytes(b"PK nothing")
    refused(tmp_path / "d.zip", "can't be unpacked")


def shard(path, numbers, label=lambda i: b"cat" if Y[i] else b"dog", ending="cls"):
    with tarfile.open(path, "w") as file:
        for i in numbers:
            Image.fromarray(X[i]).save(encoded := io.BytesIO(), "png")
            for end, content in (("png", encoded.getvalue()), (ending, label(i))):
                member = tarfile.TarInfo(f"{i:06}.{end}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def test_shards(tmp_path):
    for k in range(2):
        shard(tmp_path / f"train-{k:06}.tar", range(40 * k, 40 * k + 40))
    shard(tmp_path / "test-000000.tar", range(80, 120))
    task = load_task(tmp_path)
    assert task.classes == ["cat", "dog"] and len(task.test) == 40
    assert torch.equal(task.test.images(), FIRST[80:])
    one = load_task(str(tmp_path / "train-{000000..000001}.tar"))
    assert sum(len(split) for split in one.splits.values()) == 80
    assert load_task(tmp_path / "train-000000.tar").num_classes == 2
    refused(str(tmp_path / "train-{000000..000005}.tar"), "no shard")


def test_shards_of_json_and_without_labels(tmp_path):
    as_json = lambda i: b'{"label": %d}' % Y[i]
    shard(tmp_path / "s.tar", range(N), as_json, "json")
    assert load_task(tmp_path / "s.tar").classes == ["0", "1"]
    shard(tmp_path / "s.tar", range(N), lambda i: as_json(i) if i else b"{}", "json")
    refused(tmp_path / "s.tar", "has no label")


# ---- by name


def lists(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def photos(root, names):
    for i, name in enumerate(names):
        save(root / name, i % N)


def stl10(root):
    (root / "stl10_binary").mkdir(parents=True)
    for kind in ("train", "test"):
        RNG.integers(0, 256, (60, 3, 96, 96), dtype=np.uint8).tofile(
            root / f"stl10_binary/{kind}_X.bin"
        )
        (np.arange(60, dtype=np.uint8) % 10 + 1).tofile(root / f"stl10_binary/{kind}_y.bin")
    lists(root / "stl10_binary/class_names.txt", list("abcdefghij"))
    lists(root / "stl10_binary/fold_indices.txt", ["0"])
    RNG.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8).tofile(
        root / "stl10_binary/unlabeled_X.bin"
    )


def svhn(root):
    from scipy.io import savemat

    for kind in ("train", "test"):
        x = RNG.integers(0, 256, (32, 32, 3, 60), dtype=np.uint8)
        savemat(root / f"{kind}_32x32.mat", {"X": x, "y": np.arange(60)[:, None] % 10 + 1})


def dtd(root):
    for kind in ("train", "val", "test"):
        names = [f"{c}/{c}_{kind}{i}.jpg" for c in ("dotted", "woven") for i in range(8)]
        photos(root / "dtd/dtd/images", names)
        lists(root / f"dtd/dtd/labels/{kind}1.txt", names)


def caltech101(root):
    for c in ("BACKGROUND_Google", "Faces", "ant"):
        photos(
            root / "caltech101/101_ObjectCategories" / c,
            [f"image_{i:04}.jpg" for i in range(1, 31)],
        )


def caltech256(root):
    for k, c in enumerate(("001.ak47", "002.flag"), 1):
        photos(
            root / "caltech256/256_ObjectCategories" / c,
            [f"{k:03}_{i:04}.jpg" for i in range(1, 31)],
        )


def flowers102(root):
    from scipy.io import savemat

    photos(root / "flowers-102/jpg", [f"image_{i:05}.jpg" for i in range(1, 613)])
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.arange(612) % 102 + 1})
    numbers = np.arange(1, 613)
    splits = {"trnid": numbers[:204], "valid": numbers[204:408], "tstid": numbers[408:]}
    savemat(root / "flowers-102/setid.mat", splits)


def pets(root):
    for kind in ("trainval", "test"):
        names = [f"{('Abyssinian', 'pug')[i % 2]}_{kind}{i}" for i in range(30)]
        photos(root / "oxford-iiit-pet/images", [f"{name}.jpg" for name in names])
        lines = [f"{name} {1 + i % 2} {1 + i % 2} 1" for i, name in enumerate(names)]
        lists(root / f"oxford-iiit-pet/annotations/{kind}.txt", lines)


def eurosat(root):
    photos(
        root / "eurosat/2750", [f"{c}/{c}_{i}.jpg" for c in ("Forest", "River") for i in range(30)]
    )


def gtsrb(root):
    base = root / "gtsrb"
    photos(base / "GTSRB/Training", [f"{c:05}/{i:05}.ppm" for c in (0, 1) for i in range(30)])
    photos(base / "GTSRB/Final_Test/Images", [f"{i:05}.ppm" for i in range(20)])
    rows = [f"{i:05}.ppm;9;9;0;0;9;9;{i % 2}" for i in range(20)]
    lists(base / "GT-final_test.csv", ["Filename;Width;Height;A;B;C;D;ClassId", *rows])


def food101(root):
    import json

    for kind in ("train", "test"):
        held = {c: [f"{c}/{kind}{i}" for i in range(30)] for c in ("apple_pie", "sushi")}
        photos(
            root / "food-101/images", [f"{name}.jpg" for names in held.values() for name in names]
        )
        lists(root / f"food-101/meta/{kind}.json", [json.dumps(held)])


def aircraft(root):
    base = root / "fgvc-aircraft-2013b/data"
    lists(base / "variants.txt", ["707-320", "A300B4"])
    for k, kind in enumerate(("train", "val", "test")):
        numbers = range(100 * k, 100 * k + 30)
        photos(base / "images", [f"{i:07}.jpg" for i in numbers])
        lines = [f"{i:07} {('707-320', 'A300B4')[i % 2]}" for i in numbers]
        lists(base / f"images_variant_{kind}.txt", lines)


def cifar100(root):
    (root / "cifar-100-python").mkdir(parents=True)
    for kind in ("train", "test"):
        data = RNG.integers(0, 256, (400, 3072), dtype=np.uint8)
        held = {b"data": data, b"fine_labels": [i % 100 for i in range(400)], b"coarse_labels": []}
        (root / "cifar-100-python" / kind).write_bytes(pickle.dumps(held, protocol=2))


def cub200(root):
    names = [f"00{1 + i % 2}.{('Crow', 'Tern')[i % 2]}/{i}.jpg" for i in range(60)]
    base = root / "CUB_200_2011"
    photos(base / "images", names)
    lists(base / "images.txt", [f"{i + 1} {name}" for i, name in enumerate(names)])
    lists(base / "image_class_labels.txt", [f"{i + 1} {1 + i % 2}" for i in range(60)])
    lists(base / "train_test_split.txt", [f"{i + 1} {int(i < 40)}" for i in range(60)])
    lists(base / "classes.txt", ["1 001.Crow", "2 002.Tern"])


def stanford_dogs(root):
    from scipy.io import savemat

    for kind in ("train", "test"):
        names = [f"n0{i % 2}-{('boxer', 'pug')[i % 2]}/{kind}{i}.jpg" for i in range(40)]
        photos(root / "Images", names)
        listed = np.array([[name] for name in names], dtype=object)
        labels = np.array([[1 + i % 2] for i in range(40)])
        savemat(root / f"{kind}_list.mat", {"file_list": listed, "labels": labels})


NAMED = [stl10, svhn, dtd, caltech101, caltech256, flowers102, pets, eurosat, gtsrb, food101]
NAMED += [aircraft, cifar100, cub200, stanford_dogs]


@pytest.mark.parametrize("make", NAMED, ids=lambda make: make.__name__)
def test_data_sets_by_name(tmp_path, make):
    name, root = make.__name__, tmp_path / "data"
    refused(name, "root", root=root)
    root.mkdir(exist_ok=True)
    make(root)
    task = load_task(name, root=root, size=8)
    assert task.name == name and task.shape == (3, 8, 8) and task.origin != "not stated"
    assert torch.bincount(task.train.y, minlength=task.num_classes).min() > 0
    assert load_task(name, size=8).train.shape == (3, 8, 8)  # data/ below the working directory
    assert TASKS[name].__doc__


def test_broken_images_of_a_named_set_can_be_left_out(tmp_path):
    for make, place in ((eurosat, "eurosat/2750/River/River_4.jpg"), (stanford_dogs, "Images")):
        root = tmp_path / make.__name__
        root.mkdir()
        make(root)
        broken = root / place if place.endswith("jpg") else next((root / place).rglob("*.jpg"))
        text(broken)
        refused(make.__name__, broken.name, root=root, size=8)
        task = load_task(make.__name__, root=root, size=8, skip_broken=True)
        assert any("left out" in note for note in task.notes)


def test_archives_of_cub_and_dogs(tmp_path):
    cub200(tmp_path / "made")
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as file:
        file.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")
    (tmp_path / "made" / "CUB_200_2011").rename(tmp_path / "gone")
    (tmp_path / "at").mkdir()
    (tmp_path / "CUB_200_2011.tgz").rename(tmp_path / "at" / "CUB_200_2011.tgz")
    assert load_task("cub200", root=tmp_path / "at").classes == ["Crow", "Tern"]
    stanford_dogs(tmp_path / "dogs")
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed/images.tar", "w") as file:
        file.add(tmp_path / "dogs" / "Images", "Images")
    with tarfile.open(tmp_path / "packed/lists.tar", "w") as file:
        for kind in ("train", "test"):
            file.add(tmp_path / f"dogs/{kind}_list.mat", f"{kind}_list.mat")
    assert load_task("stanford_dogs", root=tmp_path / "packed").classes == ["boxer", "pug"]


# ---- mirroring


def test_a_mirror_is_decided_by_the_images_not_by_a_name(tmp_path):
    upper = np.zeros((300, 16, 16), np.uint8)
    for i in range(300):  # an arrow's mass lies to the left or to the right
        upper[i, 4:12, (2 if i % 2 else 9) : (7 if i % 2 else 14)] = 255
    noisy = np.clip(upper + RNG.integers(0, 60, upper.shape), 0, 255).astype(np.uint8)
    for stem in ("anything", "gtsrb32_webp"):
        np.savez(tmp_path / f"{stem}.npz", train_x=noisy, train_y=np.arange(300) % 2)
        choice = load_task(tmp_path / f"{stem}.npz").augment_choice
        assert choice.startswith("shift (mirrored")
    tall = noisy.transpose(0, 2, 1)  # mass above or below: a mirror changes nothing
    task = load_task((np.stack([tall] * 3, 1), np.arange(300) % 2))
    assert task.augment_choice.startswith("shift+flip (mirrored")


def test_a_shift_is_left_out_where_the_place_is_the_class():
    x = np.zeros((480, 16, 16), np.uint8)
    for i in range(480):
        x[i, :, i % 16] = 255
    noisy = np.clip(x + RNG.integers(0, 40, x.shape), 0, 255).astype(np.uint8)
    task = load_task((noisy, np.arange(480) % 16))
    assert task.augment is None and any("left as they are" in note for note in task.notes)


def test_names_decide_where_images_tell_nothing():
    noise = Split(torch.rand(300, 3, 8, 8), torch.arange(300) % 2)
    assert suited(noise, ["cat", "dog"]).keywords["flip"]
    for names in (["left", "right"], ["turn_left", "go"], ["b", "d"], ["0", "1"]):
        assert not suited(noise, names).keywords["flip"]
