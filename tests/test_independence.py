"""No package needs another, none of them the application, and an import costs nothing that is not used."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("basecfg", "stateio", "samplers", "distkit", "wrapkit", "trainloop")
HEAVY = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "diffusers",
    "matplotlib",
    "peft",
    "prodigyopt",
    "torchao",
    "transformers",
    "wandb",
)


def contracts(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    """import-linter's verdict on the packages below `folder`."""
    command = "import sys; from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", command, "--config", str(config), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_import_contracts_hold(root):
    result = contracts(root, root / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_a_broken_contract_is_found(tmp_path):
    for name, text in (("one", "def late():\n    import two\n"), ("two", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "lint.toml").write_text(
        '[tool.importlinter]\nroot_packages = ["one", "two"]\n'
        '[[tool.importlinter.contracts]]\nname = "apart"\ntype = "independence"\nmodules = ["one", "two"]\n'
    )
    result = contracts(tmp_path, tmp_path / "lint.toml")
    assert result.returncode == 1
    assert "one -> two" in result.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_requires_another(root, package):
    project = tomllib.loads((root / "packages" / package / "pyproject.toml").read_text())["project"]
    optional = project.get("optional-dependencies", {})
    required = [*project["dependencies"], *(r for extra in optional.values() for r in extra)]
    others = set(PACKAGES) - {package}
    assert not [r for r in required if r.split("[")[0].split(">")[0].split("=")[0].strip() in others]


@pytest.mark.parametrize("package", [*PACKAGES, "vall_e"])
def test_importing_loads_nothing_heavy(python, package):
    program = f"import sys, {package}; print(*sorted(set(sys.modules) & set({HEAVY!r}) | {{'end'}}))"
    assert python("-c", program).split() == ["end"]


@pytest.mark.parametrize("package", ["basecfg", "samplers", "wrapkit", "trainloop", "vall_e"])
def test_importing_does_not_load_torch(python, package):
    assert python("-c", f"import sys, {package}; print('torch' in sys.modules)").strip() == "False"


def test_our_names_are_never_taken_from_an_index(root):
    """`basecfg`, `distkit` and `trainloop` are other people's projects on the public index."""
    lock = tomllib.loads((root / "uv.lock").read_text())
    ours = {p["name"]: p["source"] for p in lock["package"] if p["name"] in (*PACKAGES, "vall-e")}
    assert len(ours) == 7
    assert all("editable" in source for source in ours.values()), ours
