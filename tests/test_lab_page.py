"""The lab's page from outside, without a browser: who gets in, what it asks for, what stays."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# every interpreter that is started notes whom it connects to, unless that is this machine
LISTENING = """
import os, sys

def hear(event, args):
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = args
    else:
        return
    host = address[0] if isinstance(address, tuple) else ""
    if host not in ("", None, "127.0.0.1", "localhost", "::1", "0.0.0.0"):
        with open(os.environ["HEARD"], "a") as file:
            file.write(f"{os.path.basename(sys.argv[0])}: {event} {address}\\n")

sys.addaudithook(hear)
"""

SERVE = """
import sys
from autolora.lab import page

page._IDLE = 10
page.serve(sys.argv[1], int(sys.argv[2]), browser=False)
"""

WORK = """
import sys
from autolora import Run, evaluate, finetune
from autolora.data.loading import load_task

run = finetune("robust_mini_gray", "digits", out=sys.argv[1], epochs=1, limit=220, steps=1, lr=0.02)
evaluate(Run.open(run.path).model, load_task("digits").test, "linf:0.1", n=40)
"""


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    "`(env, file)`: an environment whose interpreters note in the file what they connect to."
    folder = tmp_path_factory.mktemp("heard")
    (folder / "sitecustomize.py").write_text(LISTENING)
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HEARD": str(folder / "heard")}
    env |= {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    env |= {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1"}
    env.pop("JUPYTER_TOKEN", None)
    return env, folder / "heard"


def children(pid):
    "The ids of the processes that `pid` has started, and those that they have."
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(stat.parent.name)
                yield from children(int(stat.parent.name))


def kernels(server):
    "The kernels that a server has started."
    found = []
    for pid in children(server.pid):
        with contextlib.suppress(OSError):
            if b"ipykernel" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.fixture(scope="module")
def lab(heard, tmp_path_factory):
    "`(server, address, token)` of a served lab."
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, str(folder / "runs"), str(port)]
    said = folder / "said"
    with said.open("w") as log, subprocess.Popen(
        command, env=heard[0], stdout=log, stderr=log, start_new_session=True
    ) as server:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not (found := re.search(r"The lab is at (\S+)/\?token=(\S+)", said.read_text())):
                assert server.poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
            until(lambda: answer(found[1] + "/voila/static/voila.js")[0], 120)
            yield server, found[1], found[2]
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def answer(url):
    "`(status, text, headers)` of what is at `url`, for a visitor who comes the first time."
    visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    try:
        with visitor.open(url, timeout=120) as found:
            return found.status, found.read().decode(), found.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, "", {}


needs_voila = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import voila"], capture_output=True).returncode != 0,
    reason="needs autolora[lab]",
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts in /proc")


@needs_voila
@needs_proc
def test_without_the_token_nobody_gets_in(lab):
    server, address, token = lab
    pages = ("/", "/?token=", "/?token=wrong", "/voila/render/autolora%20lab.ipynb")
    for path in (*pages, "/api/kernels/x/channels"):
        status, text, _ = answer(address + path)
        assert status in (401, 403) or "token" in text.lower() and "rendered_cells" not in text
    assert not kernels(server)
    assert token not in Path(f"/proc/{server.pid}/cmdline").read_text()
    for pid in children(server.pid):
        assert token not in Path(f"/proc/{pid}/cmdline").read_text()


@needs_voila
@needs_proc
def test_a_kernel_that_nobody_looks_at_ends(lab):
    server, address, token = lab
    status, text, headers = answer(f"{address}/?token={token}")
    assert status == 200 and "rendered_cells" in text
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy and "*" not in policy
    assert len(kernels(server)) == 1
    until(lambda: not kernels(server), 90)


@needs_voila
@needs_proc
def test_no_connection_leaves_the_machine(lab, heard, tmp_path):
    "After the tests before it, so that the lab has served a page."
    env, file = heard
    command = [sys.executable, "-c", WORK, str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not file.exists(), file.read_text()
    asking = "import socket; socket.getaddrinfo('example.invalid', 80)"
    subprocess.run([sys.executable, "-c", asking], env=env, capture_output=True)
    assert "example.invalid" in file.read_text()  # it would have been heard
    file.unlink()
