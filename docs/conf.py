"How Sphinx builds the site of `make docs`; `tools/docs.py` lays out its pages."

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "autolora"
copyright = "the autolora contributors"  # noqa: A001, Sphinx's own name
extensions = ["myst_nb", "sphinx.ext.autodoc"]

html_theme = "furo"
html_title = "autolora"
html_extra_path = ["llms.txt"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"

nb_execution_mode = "off"  # they are run by the tests; the site shows what is stored
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "myst.strikethrough"]
suppress_warnings += ["misc.highlighting_failure"]  # a shell command in a notebook

autodoc_typehints = "signature"
autodoc_member_order = "bysource"


def _mathml(node, as_block):
    """A formula as MathML, which browsers draw without a script. Its delimiters grow by themselves,
    so the commands that size them are left out."""
    return tex2mathml(re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])", "", node.astext()), as_block=as_block)


def _inline(self, node):
    self.body.append(_mathml(node, False))
    raise nodes.SkipNode


def _display(self, node):
    self.body.append(f'<div class="math">{_mathml(node, True)}</div>')
    raise nodes.SkipNode


def _as_rst(app, what, name, obj, options, lines):
    "Our docstrings mark code with one backtick, as Markdown does, and know no other markup."
    text = "\n".join(lines)
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"([*|_\\])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", _as_rst)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
