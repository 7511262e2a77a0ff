"""README and docs are true: every Python block runs, and what a comment says it prints, it prints.

The commands of the README are run by `.ci/run`.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import types
import warnings

import jax
import pytest
from helpers import ROOT

DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
DOCUMENTS.remove("docs/benchmarks.md")  # tables and figures, made by `benchmarks/`
DOCUMENTS.remove("docs/gallery.md")  # the pictures of `docs/examples`, whose scripts `.ci/run` runs


# As a user's process has it. A page may update it; what is compiled knows under which it was.
DEFAULTS = dict(
    jax_enable_x64=False, jax_numpy_rank_promotion="allow", jax_numpy_dtype_promotion="standard"
)


@pytest.fixture
def configuration():
    before = {name: getattr(jax.config, name) for name in DEFAULTS}
    for name, value in DEFAULTS.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax.clear_caches()  # no other page asks for its programs


def _in_a_module_of_its_own(script, monkeypatch):
    """What a script prints. It runs in this process: to import jax takes as long as a page."""
    module = types.ModuleType("snippets")
    monkeypatch.setitem(sys.modules, "snippets", module)  # where a pickle of a function looks
    code = compile(script.read_text(), str(script), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code, vars(module))
        jax.effects_barrier()
    return printed.getvalue()


def _in_a_process_of_its_own(script):
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=script.parent,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_code_of_the_documents_runs(document, tmp_path, monkeypatch, configuration):
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks, "a document without code needs no entry here"
    script = tmp_path / "snippets.py"
    script.write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    # What a page sets for the process, this one cannot take back.
    updates = re.findall(r"config\.update\(\"(\w+)\"", script.read_text())
    if set(updates) <= set(DEFAULTS):
        output = _in_a_module_of_its_own(script, monkeypatch)
    else:
        output = _in_a_process_of_its_own(script)
    printed = _squeeze(output)
    for line in "\n".join(blocks).splitlines():
        if line.startswith("print(") and "  # " in line:
            said = line.split("  # ", 1)[1]
            if re.match(r"[\[(\d-]|True|False|Successful", said):  # an output, not a remark
                assert _squeeze(said) in printed, f"`{line}` printed otherwise:\n{output}"


def _squeeze(text: str) -> str:
    """Without white space, line breaks of arrays, and trailing dots of elided output."""
    text = text.replace("...", "")
    text = re.sub(r"(\d)\.(?=[\s\]])", r"\1", text)
    return re.sub(r"\s+", "", text)


def test_the_readme_commands_are_those_of_ci():
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    assert "python -m pytest -n 2" in readme
    assert "-m pytest -n 2" in ci
    assert "docs/examples/insulin_signalling.py" in readme  # which is one of the tests
    assert "in guarded_neural_ode diagnosing" in ci
