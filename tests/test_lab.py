"""The lab in a real JupyterLab and as a page of voila, used as a person does, in a real browser."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from test_lab_faults import made

from autolora import Run
from autolora.runs.background import Trainer
from autolora.runs.protocol import design
from autolora.runs.study import create_study
from autolora.runs.turns import leave, line

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# anywidget's scripts come too late, as on a busy machine: it gives them 2 s, and then up
LATE = """const old = AbortSignal.timeout;
AbortSignal.timeout = n => old.call(AbortSignal, n === 2000 ? 0 : n);"""
OTHER_CELL = "import time\nprint('another cell', time.time())"
SHOTS = os.environ.get("AUTOLORA_SHOTS")  # a folder: screenshots are left there, to be looked at


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url):
    "What is at `url` as text, None while nobody answers there."
    try:
        return urllib.request.urlopen(url, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def until(condition, seconds, what):
    """Wait until `condition()` is true and give its value; a sentence when it takes longer than
    `seconds`."""
    deadline = time.time() + seconds
    while not (found := condition()):
        assert time.time() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def serving(command, url, folder):
    """A server in a process of its own, without the user's settings; its words are shown if it
    doesn't come up."""
    env = (
        os.environ
        | {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
        | {"IPYTHONDIR": str(folder / "ipython")}
    )
    with (
        open(folder / "server.log", "w") as log,
        subprocess.Popen(
            [*map(str, command)], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            try:
                until(lambda: server.poll() is None and get(url) is not None, 120, "the server")
            except AssertionError:
                pytest.fail((folder / "server.log").read_text()[-3000:])
            yield
        finally:
            server.terminate()
            for ticket in line(folder / "runs"):
                leave(folder / "runs", ticket.name)
            Trainer(folder / "runs").stop()  # which would outlive it
            Trainer(folder / "runs").wait(30)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()  # one that is told to end while a kernel starts may stay for ever


@pytest.fixture
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def settings(folder, name, **values):
    "JupyterLab's user settings `name`, as extension/plugin, in `folder`."
    path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@contextlib.contextmanager
def jupyterlab(folder, theme="JupyterLab Light"):
    """A JupyterLab on a copy of the lab's notebook with one more cell; gives the notebook's address
    and the server's."""
    nb = json.loads((ROOT / "nbs" / "lab.ipynb").read_text())
    nb["cells"] = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    nb["cells"].append(
        {
            "cell_type": "code",
            "id": "another",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": OTHER_CELL,
        }
    )
    (folder / "lab.ipynb").write_text(json.dumps(nb))
    settings(folder, "apputils-extension/notification", fetchNews="false", checkForUpdates=False)
    settings(folder, "apputils-extension/themes", theme=theme)
    # two tabs on one notebook would ask which of them is right, on a machine that is slow enough
    settings(folder, "docmanager-extension/plugin", autosave=False)
    server = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={server.split(':')[-1]}",
        "--IdentityProvider.token=",
        "--allow-root",
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
    ]
    with serving(command, f"{server}/api/status", folder):
        yield f"{server}/lab/tree/lab.ipynb", server


def idle_kernel(server):
    "Whether the notebook's kernel is connected and idle: an earlier Run All would be dropped."
    kernels = json.loads(get(f"{server}/api/kernels") or "[]")
    if not isinstance(kernels, list):
        return False  # the server fails to list a kernel that it is starting at this moment
    return kernels and kernels[0]["connections"] and kernels[0]["execution_state"] == "idle"


def open_notebook(page, address, server):
    "Open the notebook, run all cells; seconds until the first picture is drawn."
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    until(lambda: idle_kernel(server), 60, "an idle kernel")
    sidebar = page.get_by_role("tab", name="File Browser").first
    if sidebar.get_attribute("aria-selected") == "true":
        sidebar.click()
    return run_all(page)


def run_all(page):
    item = page.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True)

    def opened():  # a page that is still being built closes its menus
        if not item.is_visible():
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.wait_for_timeout(300)
        return item.is_visible()

    until(opened, 30, "the menu")
    start = time.time()
    item.click()
    page.wait_for_selector("[data-panel=angles] .main-svg", timeout=60_000)
    return time.time() - start


def save(page):
    "By its button: JupyterLab takes no keys while a widget has the focus."
    page.get_by_role("button", name=re.compile("^Save")).first.click()


def unfold(page):
    "Show every method and setting."
    page.get_by_role("button", name="More methods and settings").click()
    page.get_by_label("Images", exact=True).wait_for()


def begun(page):
    "Press Start, and wait until what was recorded has made room."
    assert "were recorded" in words(page)
    press(page, START)
    until(lambda: "were recorded" not in words(page), 30, "the end of the recorded runs")


def look_at(page, view):
    page.get_by_role("button", name=view).click()


def shoot(page, name):
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def points(page, panel="angles"):
    "How many points each curve of a panel has."
    return page.evaluate(
        "name => (document.querySelector(`[data-panel=${name}] .autolora-plot`)?._fullData || "
        "[]).map(t => t.y ? t.y.length : 0)",
        panel,
    )


def words(page):
    return page.locator(".autolora-lab").inner_text()


def press(page, hint):
    page.get_by_title(hint).click()


def field(page, name, value):
    page.get_by_label(name, exact=True).fill(str(value))
    page.keyboard.press("Tab")


def runs(folder):
    return sorted(
        (Run(path.parent) for path in folder.glob("runs/*/config.json")),
        key=lambda run: (run.path / "config.json").stat().st_mtime,
    )


START, PAUSE, RESUME, STOP = (
    "Train with this choice",
    "Hold the training where it is",
    "Go on after a pause, a stop or an error",
    "End the training and keep the best weights so far",
)


def test_lab_in_jupyterlab(tmp_path, browser):
    with jupyterlab(tmp_path) as (address, server):
        page, complaints = browser.new_page(viewport={"width": 1280, "height": 1400}), []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        open_notebook(page, address, server)
        until(
            lambda: "1337 + 100 + 360 images" in words(page) and "attack steps" in words(page),
            60,
            "data and estimate",
        )

        # a wrong choice is refused at the control, and nothing starts
        unfold(page)
        field(page, "eps", 8)
        press(page, START)
        until(
            lambda: "8/255" in words(page) and "Correct what is marked" in words(page),
            20,
            "the refusal",
        )
        assert runs(tmp_path) == []
        field(page, "eps", "")
        field(page, "Images", 400)
        field(page, "Epochs", 300)
        field(page, "AutoAttack", 0)

        # start: the trace grows while another cell runs
        begun(page)  # before, the recorded runs were shown
        until(lambda: 2 <= sum(points(page)) < 30, 90, "the first angles")
        seen, cell = sum(points(page)), page.locator(".jp-CodeCell").last
        cell.locator(".cm-content").click()
        before = re.findall(r"another cell [\d.]+", cell.inner_text())
        page.keyboard.press("Control+Enter")
        until(
            lambda: re.findall(r"another cell [\d.]+", cell.inner_text()) not in ([], before),
            20,
            "another cell",
        )
        until(
            lambda: sum(points(page)) > seen and sum(points(page, "lr")) >= 4, 60, "growing traces"
        )
        assert page.get_by_title(START).is_enabled()

        # pause holds it, resume goes on
        press(page, PAUSE)
        until(lambda: "AutoLoRa: paused" in words(page), 20, "the pause")
        held = len(runs(tmp_path)[0].history)
        time.sleep(2)
        assert len(runs(tmp_path)[0].history) == held
        shoot(page, "paused")
        press(page, RESUME)
        until(lambda: len(runs(tmp_path)[0].history) > held, 60, "going on")

        # a second tab on the same kernel shows the same panel: what is pressed in one is seen in
        # the other
        save(page)
        second = browser.new_page(viewport={"width": 1280, "height": 1400})
        second.add_init_script(LATE)
        until(
            lambda: "autolora Lab" in (tmp_path / "lab.ipynb").read_text(), 20, "the saved notebook"
        )
        second.goto(address)
        until(
            lambda: second.locator(".autolora-lab").count() and sum(points(second)) >= 2,
            90,
            "the same panel in a second tab",
        )
        press(second, PAUSE)
        until(
            lambda: "AutoLoRa: paused" in words(page) and "AutoLoRa: paused" in words(second),
            20,
            "one pause in both tabs",
        )
        press(page, RESUME)
        until(lambda: "AutoLoRa: running" in words(second), 20, "one resume in both tabs")
        seen = sum(points(second))
        until(lambda: sum(points(second)) > seen, 60, "growing traces where scripts came late")
        second.close()

        # an interrupt of the kernel is meant for its cells: the training goes on
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.locator(".lm-Menu-itemLabel").get_by_text("Interrupt Kernel", exact=True).click()
        held = len(runs(tmp_path)[0].history)
        until(lambda: len(runs(tmp_path)[0].history) > held, 60, "going on after an interrupt")

        # a reload in mid-training: the same training is found again
        page.reload()
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        until(
            lambda: sum(points(page)) >= 2 and "AutoLoRa: running" in words(page),
            90,
            "the panel of the saved notebook, by itself, after a reload",
        )
        until(lambda: idle_kernel(server), 60, "the kernel")
        run_all(page)
        until(
            lambda: (
                page.locator(".autolora-lab").count() == 1
                and sum(points(page)) >= 2
                and "AutoLoRa: running" in words(page)
            ),
            60,
            "the training in a new panel",
        )

        # the kernel is gone: the training isn't, and the lab run again shows and ends it
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.locator(".lm-Menu-itemLabel").get_by_text("Restart Kernel…", exact=True).click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
        page.wait_for_timeout(3000)  # until then the old one may look idle
        held = len(runs(tmp_path)[0].history)
        until(lambda: len(runs(tmp_path)[0].history) > held, 60, "going on without a kernel")
        until(lambda: idle_kernel(server), 60, "the new kernel")
        run_all(page)
        until(
            lambda: (
                page.locator(".autolora-lab").count() == 1 and "AutoLoRa: running" in words(page)
            ),
            60,
            "the training in the new kernel's panel",
        )

        # stop keeps the best weights, for both; resume would go on
        press(page, STOP)
        until(lambda: words(page).count(": stopped") == 2, 60, "the stop")
        (stopped,) = runs(tmp_path)
        assert (
            not stopped.finished
            and (stopped.path / "model.safetensors").is_file()
            and not page.get_by_title(RESUME).is_disabled()
        )

        # an attack by hand and the playground, with the kernel's own answers
        look_at(page, "Attack it yourself")
        page.get_by_role("button", name="Step", exact=True).click(timeout=60_000)
        until(lambda: "step 1" in words(page), 30, "a step of the attack")
        look_at(page, "Playground 2-D")
        playground = page.locator(".autolora-playground")
        playground.get_by_role("button", name="Play", exact=True).click(timeout=60_000)
        until(lambda: "frames a second" in words(page), 30, "frames")
        page.get_by_role("button", name="Pause playground").click()
        look_at(page, "Pictures")

        # two short runs to the end: results, slider, images, code, report; what stands in a field
        # when Start is pressed is what is run, even if its own message never came
        unfold(page)
        field(page, "Images", 400)
        field(page, "Epochs", 2)
        page.get_by_label("AutoAttack", exact=True).evaluate("e => { e.value = 0 }")
        press(page, START)
        until(lambda: words(page).count("finished:") == 2, 180, "two finished runs")
        until(
            lambda: "Measured on test images" in words(page) and "PGD-10 (n=360)" in words(page),
            20,
            "the results",
        )
        until(
            lambda: page.locator("[data-panel=example] .autolora-plot image").count() == 6,
            20,
            "an image strip for each run",
        )
        said = page.locator("[data-panel=scales] p").inner_text()
        page.get_by_role("slider", name="share s").focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        until(
            lambda: "At s = 1" in page.locator("[data-panel=scales] p").inner_text(),
            20,
            f"the slider (it said {said})",
        )
        page.locator("[data-panel=angles] summary").click()
        until(
            lambda: page.locator("[data-panel=angles] td").count() >= 4,
            20,
            "the numbers as a table",
        )

        press(page, "This choice as Python and as a shell command")
        code = until(lambda: page.get_by_title("This choice as code").input_value(), 20, "the code")
        field(page, "Seed", 3)
        until(lambda: "of an earlier choice" in words(page), 20, "that the code is stale")
        field(page, "Seed", 0)
        until(lambda: "of an earlier choice" not in words(page), 20, "that the code is right again")
        button = page.get_by_title("A page for each run shown, to read and to send")
        button.click()
        link = page.get_by_role("link", name="Report of autolora")
        assert 0 < link.bounding_box()["y"] - button.bounding_box()["y"] < 100
        with page.expect_popup() as popup:
            link.click()
        popup.value.wait_for_load_state()
        assert "AutoLoRa on digits" in popup.value.title()
        popup.value.close()
        shoot(page, "finished")

        # the saved notebook keeps the pictures, for whoever has no kernel; the link stays, too
        save(page)
        until(lambda: kept_pictures(tmp_path / "lab.ipynb") == 8, 20, "pictures in the notebook")
        assert page.locator(".autolora-kept:visible").count() == 0
        page.reload()
        page.get_by_role("link", name="Report of autolora").wait_for(timeout=90_000)
        until(lambda: sum(points(page)) >= 2, 60, "the pictures after a reload")

        # both as a study, below the runs
        study = create_study(
            tmp_path / "study",
            design(["autolora", "trades"], "digits", None, 1, None, {"limit": 400, "epochs": 2}),
        )
        for cell in study.cells:
            shutil.copytree(
                next(
                    run.path
                    for run in runs(tmp_path)
                    if run.finished and run.config["method"] == cell["arm"]
                ),
                study.run(cell).path,
            )
        field(page, "Open run", study.path)
        page.wait_for_selector("[data-panel=forest_ra] .main-svg", timeout=30_000)
        assert "2 of 2 runs are finished" in page.locator(".autolora-board").inner_text()
        shoot(page, "study")
        # what anywidget says of a widget that closed, or was loaded, late: it hears all the same
        late = "[anywidget] Failed to initialize model."
        assert [words for words in complaints if words != late] == []
    check_code(code, tmp_path)


def kept_pictures(path):
    "How many pictures a page made of the saved notebook at `path` shows."
    import nbformat
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(nbformat.read(path, as_version=4))
    return page.count("src='data:image/png;base64,") + page.count('src="data:image/png;base64,')


def check_code(code, folder):
    """The copied Python and one of the copied shell lines, run as they stand, give what the panel's
    runs gave."""
    made = {run.config["method"]: run for run in runs(folder) if run.finished}
    python, _, shell = code.partition("# the same in a shell:")
    lines = [re.sub("^# ", "", line) for line in shell.strip().splitlines()]
    trades = next(line for line in lines if "trades" in line)  # python does both
    commands = [
        [sys.executable, "-c", python],
        [sys.executable, "-m", "autolora.cli", *trades.split()[1:]],
    ]
    for i, command in enumerate(commands):
        where = folder / f"again{i}"
        where.mkdir()
        subprocess.run(command, cwd=where, check=True, capture_output=True)
    again = [run for i in range(len(commands)) for run in runs(folder / f"again{i}")]
    assert sorted(run.config["method"] for run in again) == ["autolora", "trades", "trades"]
    for run in again:
        panel = made[run.config["method"]]
        assert {k: v for k, v in run.config.items() if k != "versions"} == {
            k: v for k, v in panel.config.items() if k != "versions"
        }
        assert [e["correct"] for e in run.report["evaluations"]] == [
            e["correct"] for e in panel.report["evaluations"]
        ]


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory):
    "A folder with a finished run of each method."
    from autolora import finetune

    folder = tmp_path_factory.mktemp("saved") / "runs"
    for method in ("autolora", "trades"):
        finetune(
            "robust_mini_gray",
            "digits",
            method,
            epochs=3,
            limit=400,
            lr=0.05,
            out=folder / method,
            progress=False,
        )
    return folder


LIGHT = pytest.param("JupyterLab Light", marks=pytest.mark.long)


@pytest.mark.parametrize("theme", ["JupyterLab Dark", LIGHT])
def test_lab_fits_the_page(tmp_path, browser, saved_runs, theme):

    shutil.copytree(saved_runs, tmp_path / "runs")
    for i in range(12):
        made(tmp_path / "runs", i, 3 + i)
    with jupyterlab(tmp_path, theme) as (address, server):
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        open_notebook(page, address, server)
        chosen = page.get_by_label("Runs")
        until(lambda: chosen.locator("option").count() == 17, 30, "saved and recorded runs")
        both = [f"{method} · digits · seed 0 · {method}" for method in ("autolora", "trades")]
        chosen.select_option(label=both)
        until(lambda: sum(points(page)) >= 2, 30, "the replay of saved runs")
        until(lambda: page.locator("[data-panel=scales] .main-svg").count(), 30, "the last panel")
        page.set_viewport_size({"width": 1280, "height": 720})
        assert page.get_by_title(START).bounding_box()["y"] < 400  # no scrolling to it
        for width, height in ((1280, 720), (1280, 900), (800, 900), (400, 800)):
            page.set_viewport_size({"width": width, "height": height})
            if width >= 800:
                until(lambda: clipped(page) == [], 10, f"labels that fit at {width} pixels")
            check_look(page, f"{width}x{height}-{theme.split()[1]}", dark="Dark" in theme)
            check_reach(page)
        page.set_viewport_size({"width": 1280, "height": 900})
        for view in ("Attack it yourself", "Playground 2-D", "Pictures"):
            look_at(page, view)
            page.wait_for_timeout(1500)
            shoot(page, f"{view.split()[0]}-{theme.split()[1]}")
            assert violations(page) == []
        check_keys(page)
        check_twelve(page, chosen, theme.split()[1])


def check_reach(page):
    "Start stays in sight however far the page is scrolled."
    scrolled = page.locator(".jp-WindowedPanel-outer").first
    scrolled.evaluate("e => { e.scrollTop = 900 }")
    page.wait_for_timeout(300)
    box = page.get_by_title(START).bounding_box()
    assert 0 < box["y"] < page.viewport_size["height"], box
    scrolled.evaluate("e => { e.scrollTop = 0 }")


def check_keys(page):
    "What the panel offers is done by keys alone: views, folds, sliders, menus, boxes."

    def does(target, key, seen, what):
        target.focus()
        page.keyboard.press(key)
        until(seen, 30, f"{key} on {what}")

    button = lambda name: page.get_by_role("button", name=name, exact=True)
    shown = lambda view: lambda: page.locator(view).count()
    does(button("Playground 2-D"), "Enter", shown(".autolora-playground:visible"), "a view")
    does(button("Attack it yourself"), "Space", shown(".autolora-attack:visible"), "a view")
    does(button("Pictures"), "Enter", shown(".autolora-plot:visible"), "a view")
    slider = page.get_by_role("slider", name="all pictures up to epoch")
    does(slider, "Home", lambda: max(points(page, "accuracy")) <= 4, "the way back")
    does(slider, "End", lambda: max(points(page, "accuracy")) > 4, "the way back")
    fold = page.locator(".autolora-lab summary", has_text="What was set differently")
    does(fold, "Enter", shown(".autolora-lab details[open] table"), "a fold")
    epochs = page.get_by_label("Epochs", exact=True)
    does(
        page.get_by_label("Begin with"), "ArrowDown", lambda: epochs.input_value() == "12", "a menu"
    )
    box = page.get_by_role("checkbox", name="AutoLoRa", exact=True)
    does(box, "Space", lambda: not box.is_checked(), "a box")
    does(box, "Space", lambda: box.is_checked(), "a box")


def violations(page):
    "What axe-core finds wrong with the lab, in words."
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page, context=".autolora-lab").response["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in found for node in v["nodes"]]


def check_twelve(page, chosen, theme):
    "Twelve runs of other layers each: every picture is there, and no two of its words overlap."
    page.set_viewport_size({"width": 1280, "height": 720})
    names = chosen.locator("option").all_inner_texts()
    chosen.select_option(label=[name for name in names if "unfinished" in name])
    until(lambda: "one of 12 runs" in words(page), 30, "twelve runs")
    page.get_by_label("In front").select_option(index=5)
    until(lambda: "can't be drawn" in words(page) or clipped(page) == [], 20, "labels that fit")
    assert "can't be drawn" not in words(page)
    assert page.locator(".autolora-plot > .plot-container").count() == 8
    under = page.locator("[data-panel=example]").locator(".xtitle, .x2title, .x3title")
    boxes = [under.nth(i).bounding_box() for i in range(under.count())]
    ends = sorted((box["x"], box["x"] + box["width"]) for box in boxes)
    assert len(boxes) == 3 and all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False))
    if SHOTS:
        for part in range(6):
            shoot(page, f"twelve-{theme}-{part}")
            page.locator(".jp-WindowedPanel-outer").first.evaluate("e => { e.scrollTop += 600 }")
            page.wait_for_timeout(300)


def clipped(page):
    "The words that don't fit: of pictures, beyond their edge; of controls, cut off."
    return page.evaluate("""() => {
        const all = (node, what) => [...node.querySelectorAll(what)];
        const out = (r, page) => r.width && (
            r.left < page.left - 1 || r.right > page.right + 1
            || r.top < page.top - 1 || r.bottom > page.bottom + 1);
        const texts = all(document, '.autolora-plot').flatMap(plot => {
            const page = plot.getBoundingClientRect();
            return all(plot, 'text')
                .filter(t => t.textContent.trim() && out(t.getBoundingClientRect(), page));
        });
        const cut = all(document, '.autolora-lab .widget-checkbox label')
            .filter(label => label.scrollWidth > label.clientWidth + 1);
        return texts.concat(cut).map(node => node.textContent);
    }""")


def check_look(page, name, dark):
    """No scrolling sideways, every picture as high as it was made, and colours of the theme; leaves
    screenshots."""
    heights = page.evaluate(
        "[...document.querySelectorAll('.autolora-plot')].map(p => "
        "[p.getBoundingClientRect().height, "
        "p.querySelector('.main-svg').getBoundingClientRect().height])"
    )
    assert heights and all(abs(box - picture) < 2 and picture > 200 for box, picture in heights)
    assert page.locator(".autolora-lab").evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    edges = page.locator(".autolora-lab").evaluate(
        "e => ['.jp-OutputArea-output', '.jp-WindowedPanel-outer'].map(x => "
        "e.closest(x).getBoundingClientRect().right - e.getBoundingClientRect().right)"
    )
    assert min(edges) >= -1, edges
    colours = page.evaluate(
        "[...document.querySelectorAll('.autolora-plot .xtitle, .autolora-plot .ytitle')].map(t => "
        "getComputedStyle(t).fill)"
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) > 382 for colour in colours]
    assert colours and all(b == dark for b in bright)
    if SHOTS:
        page.locator(".jp-WindowedPanel-outer").first.evaluate("e => { e.scrollTop = 0 }")
    for part in range(4 if SHOTS else 0):
        shoot(page, f"{name}-{part}")
        page.locator(".jp-WindowedPanel-outer").first.evaluate("e => { e.scrollTop += 1250 }")
        page.wait_for_timeout(300)


def test_notebook_without_widgets_says_why_and_keeps_a_figure(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    nb = nbformat.read(ROOT / "nbs" / "lab.ipynb", as_version=4)
    NotebookClient(
        nb, store_widget_state=False, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    page, _ = HTMLExporter().from_notebook_node(nb)
    assert "its panel needs a notebook whose front end draws Jupyter widgets" in page
    assert (
        "<polyline" in page
        and "cdn.plot.ly" not in page
        and "Do the two gradients work against each other?" in page
        and "Measured on test images" in page
    )
    assert len(nbformat.writes(nb)) < 200_000


@contextlib.contextmanager
def voila(folder):
    "The lab as a page: `(address, address with its token)`; a kernel of its own for each visit."
    address = f"http://127.0.0.1:{free_port()}"
    place = ["--root", folder / "runs", "--port", address.split(":")[-1], "--browser", "0"]
    command = [sys.executable, "-m", "autolora.cli", "lab", *place]
    with serving(command, f"{address}/voila/static/voila.js", folder):
        said = until(
            lambda: re.search(r"The lab is at (\S+)", (folder / "server.log").read_text()),
            60,
            "the address with its token",
        )
        yield address, said[1]


def visit(browser, address, width=1280, height=1400):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address, timeout=120_000)
    page.wait_for_selector("[data-panel=angles] .main-svg", timeout=120_000)
    return page


def test_lab_as_a_page_of_voila(tmp_path, browser):
    with voila(tmp_path) as (address, with_token):
        page = visit(browser, with_token)
        assert page.locator(".jp-CodeCell .jp-InputArea:visible").count() == 0
        unfold(page)
        field(page, "Images", 400)
        field(page, "Epochs", 300)
        begun(page)
        until(lambda: sum(points(page)) >= 1, 90, "the first angles")
        page.reload(timeout=120_000)  # and so another kernel
        page.wait_for_selector("[data-panel=angles] .main-svg", timeout=120_000)
        until(lambda: "AutoLoRa: running" in words(page), 30, "the training after a reload")
        press(page, STOP)
        until(lambda: words(page).count(": stopped") == 2, 60, "the stop")
        shoot(page, "voila")
    until(lambda: get(address) is None, 20, "the end of the page's server with its command")
    assert [run.finished for run in runs(tmp_path)] == [False]


def waiting(page):
    "What the page says of the line, a text each."
    found = page.locator(".autolora-lab").get_by_text(re.compile(r"asked for at"))
    return found.all_inner_texts()


@pytest.mark.long  # test_turns.py and test_lab_faults.py, with pages
def test_two_pages_share_one_trainer(tmp_path, browser):
    with voila(tmp_path) as (_, with_token):
        first, second = visit(browser, with_token), visit(browser, with_token)
        unfold(first)
        field(first, "Images", 400)
        field(first, "Epochs", 300)
        begun(first)
        for page in (first, second):
            until(lambda page=page: "AutoLoRa: running" in words(page), 90, "one at work in both")
        for page in (first, second):  # at the same time
            press(page, START)
        for page in (first, second):
            until(lambda page=page: len(waiting(page)) == 2, 20, "two that wait, in both")
            assert waiting(page)[0].startswith("next: AutoLoRa, naive RFT (TRADES) on")
            assert waiting(page)[1].startswith("1 ahead: AutoLoRa, naive RFT (TRADES) on")
        shoot(second, "line")
        assert violations(second) == []
        second.get_by_role("button", name="Take out").last.focus()
        second.keyboard.press("Enter")
        for page in (first, second):
            until(lambda page=page: len(waiting(page)) == 1, 20, "one that waits, in both")
        second.reload(timeout=120_000)  # and so another kernel
        second.wait_for_selector("[data-panel=angles] .main-svg", timeout=120_000)
        until(lambda: len(waiting(second)) == 1, 30, "one that waits, after a reload")
        began = {run.path for run in runs(tmp_path)}
        press(second, STOP)
        until(lambda: {run.path for run in runs(tmp_path)} > began, 60, "the next one's turn")
        for page in (first, second):
            said = lambda page=page: "before: AutoLoRa: stopped" in words(page)
            until(said, 30, "what became of the first")
            assert not waiting(page)
        press(first, STOP)
        until(lambda: words(second).count(": stopped") == 4, 60, "the stop")
