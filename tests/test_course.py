"""The course: exercises fail as they stand and with wrong answers, and pass with the solutions of
the instructor's page; all other cells run."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from test_notebooks import PROCESSES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from slides import slide_page  # noqa: E402

COURSE = ROOT / "nbs" / "course"
LESSONS = sorted(path for path in COURSE.glob("[0-9]*.ipynb"))
BLOCK = re.compile(r"^```python\n# (Exercise|Wrong) ([\d.]+)(?:: (.+))?\n((?:.*\n)*?)```$", re.M)

lessons = pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])


def instructors_page(path):
    return path.with_name(f"{path.stem.split('_')[0]}_instructor.md").read_text(encoding="utf-8")


def answers(path):
    "The solution of each exercise, and its wrong answers: (what the check should say, code)."
    solutions, wrong = {}, {}
    for kind, name, said, code in BLOCK.findall(instructors_page(path)):
        if kind == "Exercise":
            solutions[name] = code
        else:
            wrong.setdefault(name, []).append((said, code))
    return solutions, wrong


def sources(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def asked(source):
    "The number of the exercise that a cell asks for, and of that which it checks."
    exercise = re.match(r"# Exercise ([\d.]+)", source)
    checked = re.search(r'^@check\("([\d.]+)"\)\ndef (\w+)', source, re.M)
    return exercise and exercise[1].rstrip("."), checked and checked.groups()


def walk(path, log):
    """Run the lesson at `path`; at each check try the blank, the wrong answers and the solution, in
    this order. What isn't as it should be goes to `log`."""
    from execnb.shell import CaptureShell

    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    os.chdir(path.parent)
    solutions, wrong = answers(path)
    shell = CaptureShell(path=path.parent)

    def run(source):
        shell.run(source)
        if shell.exc:
            sys.exit(f"{path.name}\n{source}\n{shell.exc!r}")

    def said(between, check, function):
        for source in [*between, check]:
            run(source)
        return shell.user_ns[function]

    between = None  # the cells from an exercise to its check
    for source in sources(path):
        name, check = asked(source)
        if name:
            exercise, between = name, []
            run(source)
        elif check is None or between is None:
            run(source)
            if between is not None:
                between.append(source)
        else:
            assert check[0] == exercise, f"{check[0]} is checked after {exercise} was asked"
            verdict = said([], source, check[1])
            assert not verdict, f"{exercise} passes as it stands"
            for expected, code in wrong.get(exercise, []):
                run(code)
                verdict = said(between, source, check[1])
                assert not verdict, f"{exercise} passes with a wrong answer ({expected})"
                known = expected.lower() in verdict.wrong.lower()
                assert known, f"{exercise}: '{verdict.wrong}', not '{expected}'"
            run(solutions[exercise])
            verdict = said(between, source, check[1])
            assert verdict, f"{exercise} fails with its solution: {verdict.wrong}"
            between = None


@lessons
def test_exercises(path, tmp_path):
    log = tmp_path / "log"
    process = PROCESSES.Process(target=walk, args=(path, log))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        pytest.fail(f"{path.name} did not end within 300 s")
    assert process.exitcode == 0, log.read_text(errors="replace")[-3000:]


@lessons
def test_every_exercise_has_a_check_a_solution_and_a_trap(path):
    found = [asked(source) for source in sources(path)]
    exercises = [name for name, _ in found if name]
    solutions, wrong = answers(path)
    assert len(exercises) >= 3
    assert exercises == [check[0] for _, check in found if check] == list(solutions)
    assert set(wrong) <= set(exercises) and len(wrong) >= 2
    text = "\n".join(sources(path))
    for code in solutions.values():
        assert code.strip() not in text, "a solution stands in the lesson"


@lessons
def test_a_lesson_teaches(path):
    nb = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    code = [line for source in sources(path) for line in source.splitlines() if line.strip()]
    assert len(prose.split()) > 2 * len([line for line in code if not line.startswith("#")])
    assert "**Predict.**" in prose and "<details>" in prose and "\n> " in prose
    assert "Movable(" in "\n".join(sources(path))
    pictures = [o for cell in nb.cells for o in cell.get("outputs", []) if "image/png" in o.data]
    assert len(pictures) >= 2, "run tools/pictures.py"
    page = instructors_page(path)
    for heading in ("| minutes |", "## What they get wrong", "## Board plan", "## Solutions"):
        assert heading in page


def test_the_glossary_keeps_its_word():
    nb = nbformat.read(COURSE / "glossary.ipynb", as_version=4)
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \| (\d) \|$", nb.cells[0].source, re.M)
    terms = [term for term, _, _ in rows]
    assert len(terms) > 40 and terms == sorted(terms, key=str.lower)
    for term, _, lesson in rows:
        text = "\n".join(cell.source for cell in nbformat.read(LESSONS[int(lesson)], 4).cells)
        assert re.search(rf"\b{re.escape(term)}", text, re.I), f"{term} isn't in lesson {lesson}"


@lessons
def test_slides_need_no_network(path):
    page = slide_page(path)
    assert page.count("<section>") >= 5 and page.count("<img ") >= 2
    assert not re.search(r'(?:src|href)="(?!data:|https?://arxiv)', page)
    assert "<script src" not in page and "<link" not in page
