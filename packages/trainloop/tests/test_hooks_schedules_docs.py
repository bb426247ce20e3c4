"""The page on schedules prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "packages" / "trainloop-hooks-schedules.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the page is in the repository, not in the package")
@pytest.mark.skipif(find_spec("wrapkit") is None, reason="the page joins trainloop and wrapkit")
def test_the_page_prints_what_it_says(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    printed = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    script = "\nprint('====')\n".join(code)
    out = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split("====\n") == printed
