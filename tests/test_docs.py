"""README and docs are true: every Python block runs, and what a comment says it prints, it prints.

The commands of the README are run by `.ci/run`.
"""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
DOCUMENTS.remove("docs/benchmarks.md")  # tables and figures, made by `benchmarks/`
DOCUMENTS.remove("docs/gallery.md")  # the pictures of `docs/examples`, whose scripts `.ci/run` runs


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_code_of_the_documents_runs(document, tmp_path):
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks, "a document without code needs no entry here"
    script = tmp_path / "snippets.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = _squeeze(done.stdout)
    for line in "\n".join(blocks).splitlines():
        if line.startswith("print(") and "  # " in line:
            said = line.split("  # ", 1)[1]
            if re.match(r"[\[(\d-]|True|False|Successful", said):  # an output, not a remark
                assert _squeeze(said) in printed, f"`{line}` printed otherwise:\n{done.stdout}"


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
