"""The files by which others join: they parse, and what they name is there."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
YAML = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


def targets(command):
    "The make targets that a command names."
    return re.findall(r"\bmake ([\w./-]+)", command)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_it_parses(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_hooks_run_what_is_there():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert [hook["id"] for hook in repo["hooks"]][-1] == "export"
    for hook in repo["hooks"]:
        command = hook["entry"].split()[0]
        assert (ROOT / command).exists() or targets(hook["entry"]), hook["id"]
        for target in targets(hook["entry"]):
            assert f"\n{target}:" in MAKEFILE


def test_the_workflow_runs_ci_on_every_python():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = flow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12"]
    assert "whl/cpu" in job["env"]["PIP_EXTRA_INDEX_URL"] and "secrets" not in str(flow)
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"] and (ROOT / ".ci" / "run").is_file()


def test_the_container_sets_itself_up():
    command = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    (target,) = targets(command["postCreateCommand"])
    assert f"\n{target}:" in MAKEFILE


def test_the_citation_names_software_and_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == "Apache-2.0" and "version" not in cited
    assert "2310.01818" in json.dumps(cited["references"])
