"""READMEs and guides: their Python runs and prints what they say, their commands exist with the options they name."""

import re
import shlex
import subprocess
import sys
import tomllib

import pytest

BLOCK = re.compile(r"```(\w+)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "apps/vall-e/README.md",
    *(f"docs/{p}" for p in ("1-first-run", "2-your-recordings", "3-training", "4-speaking", "6-releasing")),
]


def blocks(root, page, language):
    path = root / (page if page.endswith(".md") else f"{page}.md")
    return [(text, printed) for kind, text, printed in BLOCK.findall(path.read_text()) if kind == language]


@pytest.mark.parametrize("page", ["README.md"])
def test_the_python_prints_what_the_page_says(root, page, tmp_path, python):
    for i, (text, printed) in enumerate(blocks(root, page, "python")):
        (tmp_path / f"{i}.py").write_text(text)
        said = python(f"{i}.py", cwd=tmp_path)
        assert said.strip() == printed.strip()
        again = python(f"{i}.py", cwd=tmp_path)
        assert "resumed_from=80" in again


def test_the_python_surface_as_the_guide_has_it(root, tmp_path, python):
    (text, _), *_ = blocks(root, "docs/4-speaking", "python")
    weights = root / "apps/vall-e/tests/golden/tiny/fp32.sft"
    (tmp_path / "fp32.sft").write_bytes(weights.read_bytes())
    (tmp_path / "s.py").write_text(text)
    assert python("s.py", cwd=tmp_path).strip() == "True"


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_the_options_that_pages_name(root, page):
    scripts = tomllib.loads((root / "apps/vall-e/pyproject.toml").read_text())["project"]["scripts"]
    for text, _ in blocks(root, page, "sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            names = [w for w in words if w in scripts]
            if not names:
                continue
            arguments = words[words.index(names[0]) + 1 :]
            module = scripts[names[0]].partition(":")[0]
            shown = _help(module, arguments[:1] if names[0] == "vall-e-data" else [])
            for option in (a for a in arguments if a.startswith("--")):
                assert option in shown, f"{page}: {line}"
            if names[0] == "vall-e-train":
                for key in (a.partition("=")[0] for a in arguments if "=" in a):
                    assert key in shown or key.rpartition(".")[2] in shown, f"{page}: {line}"


def _help(module, arguments, _known={}):  # noqa: B006 - a cache
    key = (module, *arguments)
    if key not in _known:
        command = [sys.executable, "-m", module, *arguments, "--help"]
        _known[key] = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return _known[key]


def test_links_between_pages_lead_somewhere(root):
    patterns = ("*.md", "docs/**/*.md", "packages/*/*.md", "apps/*/*.md")
    for page in (p for pattern in patterns for p in root.glob(pattern)):
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page}: {link}"
