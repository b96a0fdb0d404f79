"""A model leaves the house: each file gives what the run measured, to whoever has nothing of ours;
what can't leave is refused with the true cause; and a net of one's own comes back without its
class."""

import copy
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from autolora import AutoLoRaError, Run, evaluate, finetune
from autolora.core.reading import digest
from autolora.models.adapters import check_holds
from autolora.models.adoption import adopt
from autolora.models.formats import FORMATS
from autolora.models.programs import Program, program_of, read_program
from autolora.models.reopening import known_everywhere
from autolora.models.views import LowRankBranch

FILES = ["safetensors", "torch.export", "onnx"]
SHORT = {"epochs": 1, "lr": 0.02, "steps": 1, "limit": 300, "progress": False}
PIXELS = np.random.default_rng(0).integers(0, 256, (260, 3, 16, 16)).astype("u1")
DATA = (PIXELS, np.arange(260) % 3)
OWN = {"epochs": 1, "lr": 0.02, "steps": 1, "batch_size": 16, "progress": False}
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A short real run, opened again."
    out = tmp_path_factory.mktemp("export") / "run"
    finetune("robust_mini_gray", "digits", out=out, **SHORT)
    return Run.open(out)


def needs(name):
    "Skip where what the format needs isn't installed."
    for package in FORMATS[name].needs:
        pytest.importorskip(package, reason=f"the format {name} comes with an extra")


def python(code, *words, **env):
    "What `code` prints in a fresh interpreter, which finds this package."
    done = started("-c", code, *words, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def started(*words, **env):
    "A fresh interpreter with these words, ended; it finds this package."
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"} | env
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


# the same logits, the same accuracy


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_what_the_run_measured(run, name):
    """On all test images, naturally and after PGD, the counts of the file are those of the run's
    own report."""
    needs(name)
    done = run.export(name, n=None)
    counts = {row["attack"]: row["correct"] for row in run.report["evaluations"]}
    assert done.path.parent == run.path and done.parity.n == run.report["n"]
    assert done.parity.holds and done.parity.difference < 1e-4 * done.parity.largest
    assert done.parity.natural == (counts["none"],) * 2
    assert done.parity.robust == (counts["pgd-10"],) * 2
    assert f"on {run.report['n']} test images" in str(done)


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_its_user_needs(run, name):
    needs(name)
    told = FORMATS[name].told(run.export(name, n=20).path)
    assert json.loads(told["classes"]) == run.config["classes"]
    given = json.loads(told["input"])
    assert given["shape"] == ["batch", *run.config["shape"]] and given["range"] == [0, 1]
    assert "inside" in given["normalisation"]
    assert told["threat"].startswith(run.config["threat"])
    claims = json.loads(told["claims"])
    assert claims["split"] == "test"
    assert [row["accuracy"] for row in claims["accuracies"]] == [
        row["accuracy"] for row in run.report["evaluations"]
    ]
    assert json.loads(told["trained_with"])["torch"] == run.config["versions"]["torch"]


NOTHING_OF_OURS = """
import json, sys
sys.modules["autolora"] = None
import numpy as np
path, images = sys.argv[1], np.load(sys.argv[2])
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    taken = session.get_inputs()[0]
    assert (taken.name, taken.shape[1:]) == ("images", list(images.shape[1:])), taken
    assert isinstance(taken.shape[0], str), "the batch size must be open"
    about = session.get_modelmeta().custom_metadata_map
    call = lambda x: session.run(None, {"images": x})[0]
else:
    import torch
    found = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=found).module()
    about = json.loads(found["metadata.json"])
    call = lambda x: module(torch.from_numpy(x)).detach().numpy()
assert all(np.allclose(call(images)[:n], call(images[:n]), atol=1e-4) for n in (1, 3))
classes = json.loads(about["classes"])
print(json.dumps([classes[i] for i in call(images).argmax(1)]))
"""


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_needs_nothing_of_ours(run, name, tmp_path):
    "In a process where this package can't be imported: names of classes for raw images in [0, 1]."
    needs(name)
    path = run.export(name, tmp_path / f"model{FORMATS[name].ending}", n=20).path
    images = run.task.test.images(slice(0, 40))
    np.save(tmp_path / "images.npy", images.numpy())
    with torch.no_grad():
        ours = [run.config["classes"][i] for i in run.model(images).argmax(1)]
    assert json.loads(python(NOTHING_OF_OURS, path, tmp_path / "images.npy")) == ours


def test_weights_can_be_read_as_a_checkpoint(run, tmp_path):
    path = run.export("safetensors", n=20).path
    tensors = load_file(path)
    assert tensors.keys() == run.model.state_dict().keys()
    again = finetune(
        "robust_mini_gray", "digits", out=tmp_path, weights=str(path), **SHORT, head="keep"
    )
    assert again.config["weights"] == str(path)


def test_what_has_seen_no_test_image_is_compared_on_validation_images(tmp_path):
    run = finetune("robust_mini_gray", "digits", "at", out=tmp_path, test=False, **SHORT)
    done = run.export("safetensors")
    assert "validation images" in str(done) and done.parity.n == run.config["n_val"]
    assert json.loads(FORMATS["safetensors"].told(done.path)["claims"]) == {
        "measured": "nothing on test images"
    }


# refused, with the cause


def test_a_file_that_gives_something_else_is_not_kept(run, tmp_path, monkeypatch):
    honest = FORMATS["safetensors"]

    def write(model, shape, told, path):
        spoiled = copy.deepcopy(model)
        with torch.no_grad():
            next(spoiled.parameters()).mul_(1.02)
        honest.write(spoiled, shape, told, path)

    monkeypatch.setitem(FORMATS._things, "safetensors", replace(honest, write=write))
    with pytest.raises(AutoLoRaError, match="gives other logits than the model and wasn't kept"):
        run.export("safetensors", tmp_path / "wrong.safetensors")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "format, path, words",
    [
        ("onx", None, "did you mean 'onnx'"),
        ("torch.export", "model.pt", r"must end in \.pt2"),
        ("safetensors", "model.safetensors", "the run's own file"),
        ("safetensors", "branch.safetensors", "the run's own file"),
        ("safetensors", "nowhere/a.safetensors", "can't be written"),
    ],
)
def test_a_wrong_name_is_refused(run, format, path, words):
    before = {file.name: file.stat().st_mtime_ns for file in run.path.iterdir()}
    with pytest.raises(AutoLoRaError, match=words):
        run.export(format, path and run.path / path)
    assert {file.name: file.stat().st_mtime_ns for file in run.path.iterdir()} == before


@pytest.mark.parametrize(
    "name, package", [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("peft", "peft")]
)
def test_an_extra_that_is_missing_is_one_sentence(run, name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    others = [other for other in FORMATS[name].needs if other != package]
    for other in others:
        monkeypatch.setitem(sys.modules, other, SimpleNamespace())
    with pytest.raises(AutoLoRaError, match=rf"{package} is missing.*autolora\[{name}\]"):
        run.export(name)


def test_a_run_without_its_data_or_its_model(tmp_path):
    own = finetune(Net(), DATA, "at", out=tmp_path / "own", test=False, **OWN)
    assert own.export("safetensors").parity.holds  # in whose hands the data still are
    with pytest.raises(AutoLoRaError, match="by name which data.*run.task = load_task"):
        Run.open(own.path).export("safetensors")
    (own.path / "model.safetensors").unlink()
    with pytest.raises(AutoLoRaError, match="model.safetensors is gone"):
        Run.open(own.path).export("safetensors")


def net(forward):
    "A small module of three classes whose forward ends in `forward(x, logits)`."

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return forward(x, self.head(self.conv(x).relu().mean((2, 3))))

    return Own().eval()


@pytest.mark.parametrize(
    "forward, words",
    [
        (lambda x, z: z if x.mean() > 0.5 else 2 * z, "by the values of the images"),
        (lambda x, z: z * (1 + int(x.amax() > 2)), "by the values of the images"),
        (lambda x, z: z + torch.from_numpy(x.detach().numpy()).mean() * 0, "leaves torch"),
        (lambda x, z: z.view(3, 3), "depends on the batch size"),
        (lambda x, z: z if len(x) == 3 else 2 * z, "depends on the batch size"),
        (lambda x, z: z + torch.rand(()), "draws random numbers"),
    ],
)
def test_what_cannot_be_written_down_says_why(forward, words):
    with pytest.raises(AutoLoRaError, match=words):
        program_of(net(forward), (3, 16, 16))


# a net of one's own, without its class


class Net(nn.Module):
    "Dropout, a buffer that no file holds, a branch on its mode: what eval mode means is kept."

    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2)
        self.bn = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("grid", torch.linspace(-1, 1, 16), persistent=False)
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        h = self.dropout(self.bn(self.conv(x + 0.1 * self.grid)).relu().mean((2, 3)))
        return self.fc(h)


class Bent(Net):
    "The same layers, called otherwise."

    def forward(self, x):
        return self.fc(self.bn(self.conv(x + 0.1 * self.grid)).tanh().mean((2, 3)))


REOPEN = """
import sys, numpy as np, torch
from autolora import Run
run = Run.open(sys.argv[1])
with torch.no_grad():
    np.save(sys.argv[3], run.model(torch.from_numpy(np.load(sys.argv[2]))).numpy())
print(type(run.model).__name__)
"""


def reopened(run, folder, **env):
    "The logits of `run`'s model in a fresh process, and the name of its class there."
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    np.save(folder / "x.npy", x.numpy())
    kind = python(REOPEN, run.path, folder / "x.npy", folder / "z.npy", **env)
    with torch.no_grad():
        return torch.from_numpy(np.load(folder / "z.npy")), run.model.cpu()(x), kind


@pytest.mark.parametrize(
    "method",
    ["autolora", *(pytest.param(m, marks=pytest.mark.long) for m in ("trades", "full_lora"))],
)
def test_a_module_comes_back_without_its_class(method, tmp_path):
    run = finetune(Net(12), DATA, method, out=tmp_path / "run", **OWN)
    theirs, ours, kind = reopened(run, tmp_path)
    assert kind == "Program" and torch.allclose(theirs, ours, atol=1e-5)
    opened = Run.open(run.path)
    opened.task = run.task
    again = evaluate(opened.model, opened.task.test, run.config["threat"])
    assert [row.correct for row in again.rows] == [r["correct"] for r in run.report["evaluations"]]
    assert opened.export("torch.export", n=30).parity.holds


def test_a_registered_net_comes_back_where_nobody_registered_it(tmp_path):
    code = """
import sys, numpy as np
sys.path.insert(0, sys.argv[2])
from autolora import finetune
from autolora.models import register_backbone
import test_export as t
register_backbone("mine", lambda num_classes: t.Net(6))
finetune("mine", t.DATA, "at", out=sys.argv[1], test=False, **t.OWN)
"""
    python(code, tmp_path / "run", Path(__file__).parent)
    run = Run.open(tmp_path / "run")
    assert not known_everywhere("mine")
    theirs, ours, kind = reopened(run, tmp_path)
    assert kind == "Program" and torch.allclose(theirs, ours, atol=1e-6)


SMALL = """
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).{}().mean((2, 3)))
"""


def test_a_net_of_a_package_comes_back_with_it_without_it_and_after_an_edit(tmp_path):
    package = tmp_path / "place" / "ownpackage"
    package.mkdir(parents=True)
    (package / "nets.py").write_text(SMALL.format("relu"))
    code = """
import sys
sys.path.insert(0, sys.argv[2])
import test_export as t
t.finetune("ownpackage.nets:Small", t.DATA, "at", out=sys.argv[1], test=False, **t.OWN)
"""
    here = f"{ROOT}{os.pathsep}{package.parent}"
    python(code, tmp_path / "run", Path(__file__).parent, PYTHONPATH=here)
    run = Run.open(tmp_path / "run")
    theirs, ours, kind = reopened(run, tmp_path, PYTHONPATH=here)
    assert kind == "Sequential" and torch.allclose(theirs, ours, atol=1e-6)
    (package / "nets.py").write_text(SMALL.format("sigmoid"))  # the same weights fit
    theirs, _, kind = reopened(run, tmp_path, PYTHONPATH=here)
    assert kind == "Program" and torch.allclose(theirs, ours, atol=1e-6)
    theirs, _, kind = reopened(run, tmp_path)
    assert kind == "Program" and torch.allclose(theirs, ours, atol=1e-6)


def test_another_module_of_the_same_shapes_is_refused(tmp_path):
    run = finetune(Net(), DATA, "at", out=tmp_path / "run", test=False, **OWN)
    with pytest.raises(AutoLoRaError, match="isn't the one that was trained"):
        print(Run.open(run.path, Bent()).model)
    assert isinstance(Run.open(run.path, Net()).model, Net)


def test_what_could_not_be_written_down_is_trained_and_says_so_when_opened(tmp_path):
    own = net(lambda x, z: z if x.mean() > 2 else 1.5 * z)
    run = finetune(own, DATA, "at", out=tmp_path / "run", test=False, **OWN)
    with pytest.raises(AutoLoRaError, match="model=the_module.*by the values of the images"):
        print(Run.open(run.path).model)
    assert torch.isfinite(Run.open(run.path, own).model(torch.rand(2, 3, 16, 16))).all()


def test_the_branch_asks_for_the_module(tmp_path):
    run = finetune(Net(), DATA, out=tmp_path / "run", test=False, **OWN)
    with pytest.raises(AutoLoRaError, match="layers of the module that was trained"):
        print(Run.open(run.path).branch)
    x = torch.rand(2, 3, 16, 16)
    with_module = Run.open(run.path, Net())
    assert torch.allclose(with_module.branch(x, 0.0), Run.open(run.path).model(x), atol=1e-5)


@pytest.mark.parametrize(
    "step",
    [
        ["os.system", ["touch here"], {}],
        ["aten.from_file.default", ["here", True, 4], {}],
        ["aten.save.default", [1, "here"], {}],
        ["python.attrgetter", ["__class__"], {}],
        ["torch.load", ["here"], {}],
        ["torch.hub.load", ["here"], {}],
    ],
)
def test_a_program_of_a_stranger_runs_nothing_but_tensor_operations(step, tmp_path):
    path = tmp_path / "program.safetensors"
    program = json.dumps({"steps": [step], "shape": [3, 8, 8], "parameters": []})
    told = {"run": "run", "program": program, "sha256": digest([program, {}])}
    save_file({}, path, told)
    with pytest.raises(AutoLoRaError, match="can't be read"):
        read_program(path, "run")
    assert not (tmp_path / "here").exists()


def test_a_program_has_gradients_and_follows_the_device_of_its_images():
    model = Net().eval()
    again = Program(program_of(model, (3, 16, 16)), model.state_dict())
    x = torch.rand(3, 3, 16, 16, requires_grad=True)
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, again))
    assert torch.allclose(ours, theirs, atol=1e-7)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    on_meta = again.to("meta")(torch.rand(2, 3, 16, 16, device="meta"))
    assert on_meta.shape == (2, 3)


# the Hub


def test_a_hub_folder_is_opened_anywhere(run, tmp_path):
    folder = run.to_hub_folder(tmp_path / "hub", "apache-2.0")
    x = run.task.test.images(slice(0, 5))
    code = """
import sys, torch
from autolora import Run
run = Run.open(sys.argv[1])
torch.save(run.model(torch.load(sys.argv[2])).detach(), sys.argv[3])
"""
    torch.save(x, tmp_path / "x.pt")
    python(code, folder, tmp_path / "x.pt", tmp_path / "z.pt")
    assert torch.allclose(torch.load(tmp_path / "z.pt"), run.model(x), atol=1e-6)
    assert Run.open(folder).report == run.report
    assert "snapshot_download" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "card.md"])
def test_a_card_tells_programs_what_was_measured(run, name, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="it comes with the extra autolora[hf]")
    path = run.path / name
    if name == "README.md":
        path = run.to_hub_folder(tmp_path / "hub", "apache-2.0") / name
    told = hub.ModelCard.load(path).data
    assert told.license == ("apache-2.0" if name == "README.md" else "other")
    assert told.library_name == "autolora" and told.pipeline_tag == "image-classification"
    assert "adversarial-robustness" in told.tags and told.datasets == ["digits"]
    found = {result.metric_name: result.metric_value for result in told.eval_results}
    accuracies = {row["attack"]: row["accuracy"] for row in run.report["evaluations"]}
    assert found["standard accuracy"] == accuracies["none"]
    assert found["robust accuracy (PGD-10)"] == accuracies["pgd-10"]
    assert {result.dataset_split for result in told.eval_results} == {"test"}


def test_a_hub_folder_of_an_own_net_brings_its_program_and_no_path(tmp_path):
    secret = tmp_path / "home of somebody"
    secret.mkdir()
    np.savez(secret / "birds.npz", x=PIXELS, y=DATA[1])
    run = finetune(Net(), str(secret / "birds.npz"), "at", out=secret / "run", **OWN)
    assert str(secret) in (run.path / "config.json").read_text()
    folder = run.to_hub_folder(tmp_path / "hub")
    for file in folder.iterdir():
        assert str(secret).encode() not in file.read_bytes(), file.name
    x = torch.rand(3, 3, 16, 16)
    assert torch.allclose(Run.open(folder).model(x), run.model.cpu()(x), atol=1e-6)


class Hub(BaseHTTPRequestHandler):
    "What of the Hub's API an upload needs, on this machine; what came is kept in `server.files`."

    def answer(self, told):
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b"".join(self.chunks())
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.path.endswith("/repos/create"):
            self.server.asked = json.loads(body)
            self.answer({"url": f"{here}/somebody/net", "name": "somebody/net"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = line["value"]["content"]
            self.answer({"commitUrl": f"{here}/somebody/net/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({})

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_GET(self):
        self.answer({"name": "somebody", "sha": "0" * 40, "siblings": [], "id": "somebody/net"})

    def log_message(self, *args):
        pass


def test_a_push_sends_the_folder(run, tmp_path):
    "The real client, to a server of this machine that speaks as much of the Hub's API."
    pytest.importorskip("huggingface_hub", reason="it comes with the extra autolora[hf]")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
import sys
from autolora import Run
print(Run.open(sys.argv[1]).push_to_hub("somebody/net", private=True))
"""
    here = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        said = python(
            code,
            run.path,
            HF_ENDPOINT=here,
            HF_TOKEN="hf_no_such_token",
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            NO_PROXY="127.0.0.1",
        )
    finally:
        server.shutdown()
        server.server_close()
    folder = run.to_hub_folder(tmp_path / "hub")
    assert sorted(server.files) == sorted(file.name for file in folder.iterdir())
    assert True in server.asked.values() or "private" in server.asked.values()  # old and new API
    assert said.endswith("somebody/net")


# the branch in PEFT's format


class Named(nn.Module):
    "Layers whose names end others: a bare name would be found in several places."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.block.conv = nn.Conv2d(8, 12, 1)
        self.wide = nn.Linear(12, 24)
        self.fc = nn.Linear(24, 3)

    def forward(self, x):
        h = self.block.conv(self.block[1](self.block[0](self.conv(x).relu())))
        return self.fc(self.wide(h.mean((2, 3))).relu())


def filled(model, **how):
    "A branch of `model` that changes something."
    branch = LowRankBranch(model, **how)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in branch.B.values():
            factor.copy_(0.1 * torch.randn(factor.shape, generator=generator))
    return branch


@pytest.fixture
def adapter(tmp_path):
    "A model, its branch and the folder of the adapter, written."
    model = adopt(Named(), torch.rand(2, 3, 16, 16), 3).model.eval()
    branch = filled(model, rank=3, where=lambda name: name != "conv.weight")
    FORMATS["peft"].write(branch, (3, 16, 16), {"threat": "linf:0.1"}, tmp_path / "adapter")
    return model, branch, tmp_path / "adapter"


def test_the_adapter_is_what_the_format_says(adapter):
    """Without PEFT: A a convolution with the layer's kernel, B one of 1 x 1 (or two matrices), what
    they give added to the layer's output, scaled by alpha / r."""
    model, branch, path = adapter
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA" and config["lora_alpha"] == config["r"]
    layers = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors}
    assert layers == {"block.0", "block.conv", "wide"}

    def change(name):
        def hook(layer, args, out):
            a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            if isinstance(layer, nn.Linear):
                return out + F.linear(F.linear(args[0], a), b)
            return out + F.conv2d(F.conv2d(args[0], a, None, layer.stride, layer.padding), b)

        return hook

    x = torch.rand(4, 3, 16, 16)
    hooks = [model.get_submodule(n).register_forward_hook(change(n)) for n in layers]
    with torch.no_grad():
        ours = model(x)
        for hook in hooks:
            hook.remove()
        assert torch.allclose(ours, branch(x), atol=1e-5)
        assert not torch.allclose(ours, model(x), atol=1e-3)


def test_peft_gives_the_natural_path(adapter):
    pytest.importorskip("peft", reason="it comes with the extra autolora[peft]")
    model, branch, path = adapter
    x = torch.rand(4, 3, 16, 16)
    loaded = FORMATS["peft"].call(path, branch)
    with torch.no_grad():
        assert torch.allclose(loaded(x), branch(x), atol=1e-5)
        assert torch.allclose(loaded.merge_and_unload()(x), branch(x), atol=1e-5)


def test_the_branch_of_a_run_leaves_as_an_adapter(run, tmp_path):
    pytest.importorskip("peft", reason="it comes with the extra autolora[peft]")
    done = run.export("peft", tmp_path / "adapter", n=100)
    assert done.parity.holds and done.parity.n == 100
    assert FORMATS["peft"].told(done.path)["threat"].startswith(run.config["threat"])


@pytest.mark.parametrize(
    "method, words", [("twins", "a second BatchNorm"), ("at", r"its method \(at\) trains none")]
)
def test_a_run_without_a_branch_has_no_adapter(method, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace())
    run = finetune("robust_mini_gray", "digits", method, out=tmp_path, test=False, **SHORT)
    with pytest.raises(AutoLoRaError, match=words):
        run.export("peft")


def test_a_part_of_a_branch_is_no_adapter():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 1), nn.Flatten()
    )
    model.append(nn.Linear(8 * 12 * 12, 3))
    branch = filled(model, rank=2)
    with pytest.raises(AutoLoRaError, match="can't hold 1 of the branch's 2 weights, 1.weight"):
        check_holds(branch)


# in a shell


def test_the_command_says_how_the_file_compares(run, tmp_path):
    path = tmp_path / "model.pt2"
    words = ("--format", "torch.export", "--path", path, "--n", 50)
    done = started("-m", "autolora.cli", "export", run.path, *words)
    assert done.returncode == 0 and "on 50 test images: SA" in done.stdout, done.stderr
    assert path.is_file()
    refused = started("-m", "autolora.cli", "export", run.path, "--format", "onxx")
    assert refused.returncode == 2 and "did you mean 'onnx'" in refused.stderr
    done = started("-m", "autolora.cli", "hub", run.path, "--folder", tmp_path / "hub")
    assert done.returncode == 0 and (tmp_path / "hub" / "README.md").is_file(), done.stderr
