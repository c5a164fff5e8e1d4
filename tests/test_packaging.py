"""The list of packages and of their data is complete: what is missing from it works in editable mode only."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {"celosia": "tools/_root", "celosia.rtl": "rtl", "celosia.sim": "sim", "celosia.tools": "tools", "celosia.boards": "boards"}


def packages_on_disk():
    """Return the folder of each package by its import name."""
    found = {"celosia": ROOT / "tools/_root"}
    for top in ("rtl", "sim", "tools", "boards"):
        for init in (ROOT / top).rglob("__init__.py"):
            folder = init.parent
            if folder != ROOT / "tools/_root":
                found["celosia." + ".".join(folder.relative_to(ROOT).parts)] = folder
    return found


def test_every_package_on_disk_is_listed():
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_on_disk())


def test_folders_are_mapped_to_import_names():
    assert SETUPTOOLS["package-dir"] == FOLDERS


def test_every_python_file_is_in_a_package():
    folders = set(packages_on_disk().values())
    stray = [path for top in ("rtl", "sim", "tools", "boards") for path in (ROOT / top).rglob("*.py") if path.parent not in folders]
    assert not stray


def test_every_other_file_is_package_data():
    listed = SETUPTOOLS["package-data"]
    for name, folder in packages_on_disk().items():
        others = {path for path in folder.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc")}
        kept = {path for pattern in listed.get(name, ()) for path in folder.glob(pattern)}
        assert others <= kept, f"package-data of {name} must list {sorted(path.name for path in others - kept)}"


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_project_pages_exist(name):
    assert (ROOT / name).read_text().strip()


def test_no_folder_shadows_the_import_name():
    assert not (ROOT / "celosia").exists()
