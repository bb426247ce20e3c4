"""What the README prints is what its code prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_the_readme_and_the_example_print_what_they_say():
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (expected,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    example = (root / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert code.strip() in example
    command = [sys.executable, str(root / "examples" / "quickstart.py")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout == expected
