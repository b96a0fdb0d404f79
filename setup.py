"""The package's metadata comes from settings.ini, its version from autolora/__init__.py.

No fact stands in two files."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read("settings.ini", encoding="utf-8")
meta = cfg["metadata"]


def lines(key):
    return meta[key].strip().splitlines()


setup(
    version=re.search(r'__version__ = "(.+)"', Path("autolora/__init__.py").read_text()).group(1),
    description=meta["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=meta["author"],
    license=meta["license"],
    keywords=meta["keywords"].split(", "),
    classifiers=lines("classifiers"),
    python_requires=meta["python_requires"],
    install_requires=lines("requirements"),
    extras_require={
        key.removeprefix("extra_"): lines(key) for key in meta if key.startswith("extra_")
    },
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": ["autolora=autolora._modidx:d"],
        "torch.backends": ["autolora=autolora_torch:mend"],
    },
    py_modules=["autolora_torch"],
    packages=find_packages(include=["autolora*"]),
    package_data={
        "": ["*.pyi", "*.npz", "*.js.gz"],
        "autolora": ["*.json", "weights/*", "recorded/*/*", "py.typed"],
    },
)
