"""One code, two names: in a bare checkout, installed editable and from the wheel.

Every case runs in a process of its own. ``-S`` keeps this environment's own attnlab out of it; torch and the other
requirements are reached by PYTHONPATH, so that nothing is installed and no network is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("names")]

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "dist", "__pycache__", "*.egg-info")
SITE = os.pathsep.join(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))

SAME = """
import pickle
import attnlab.models.multihead
import models.multihead
from models.multihead.multihead import MultiAttention
from models.selfhead import SelfAttention

from attnlab.catalog import registry

assert registry.checkout() is not None
assert models.multihead is attnlab.models.multihead
assert models.multihead.MultiAttention is attnlab.models.multihead.MultiAttention is MultiAttention
assert models.multihead.multihead is attnlab.models.multihead.multihead
import models.multihead.reference  # not imported by anybody before
assert models.multihead.reference is sys.modules["attnlab.models.multihead.reference"]
for name, module in sorted(sys.modules.items()):
    if name == "models" or name.startswith("models."):
        assert module is sys.modules[f"attnlab.{name}"], name
        assert module.__name__ == module.__spec__.name == f"attnlab.{name}", module.__spec__

layer = MultiAttention(8, 2)
assert type(pickle.loads(pickle.dumps(layer))) is MultiAttention
assert pickle.loads(pickle.dumps(MultiAttention)) is MultiAttention
assert isinstance(layer, attnlab.models.multihead.MultiAttention)
assert pickle.loads(b"cmodels.multihead.multihead\\nMultiAttention\\n.") is MultiAttention
"""
LONG_FIRST = "import attnlab.models.multihead, attnlab.models.selfhead.reference\n" + SAME
SHORT_FIRST = "import models.selfhead.reference, models.multihead\n" + SAME


def succeeds(code: str, *paths: Path, cwd: Path, site: bool = False) -> None:
    """``code`` succeeds in a fresh process that finds ``paths`` and this environment's requirements only."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not site:
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, paths), SITE])
    done = subprocess.run(
        [sys.executable, "-W", "error", *([] if site else ["-S"]), "-c", "import sys\n" + code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, as a clone would be."""
    copy = tmp_path_factory.mktemp("checkout") / "attnlab-clone"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
    shutil.copy(ROOT / ".gitignore", copy)
    return copy


def built(checkout: Path, target: str, folder: Path) -> Path:
    """The wheel, built without an environment of its own, and unpacked."""
    pytest.importorskip("hatchling")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder / "wheel")],
        capture_output=True,
        text=True,
        cwd=checkout,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


def test_a_bare_checkout(checkout: Path) -> None:
    here = f"import attnlab; assert attnlab.__file__.startswith({str(checkout)!r}), attnlab.__file__"
    succeeds(SHORT_FIRST + here, cwd=checkout, site=True)  # the current folder comes before anything installed


def test_installed_editable(checkout: Path, tmp_path: Path) -> None:
    site = built(checkout, "wheel:editable", tmp_path)
    assert not list(site.glob("*/*.py")), "an editable install copies no code"
    reached = f"import site; site.addsitedir({str(site)!r})\n"
    here = f"\nassert attnlab.__file__.startswith({str(checkout)!r}), attnlab.__file__"
    succeeds(reached + LONG_FIRST + here, cwd=tmp_path)


def test_the_wheel_holds_everything(checkout: Path, wheel: Path) -> None:
    assert not [path for path in checkout.rglob("*") if path.is_symlink()], "no symbolic links are needed"
    held = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    code = {path.relative_to(checkout).as_posix() for path in (checkout / "attnlab").rglob("*") if path.is_file()}
    lessons = {path for path in (checkout / "models").rglob("*") if path.suffix in (".py", ".md")}
    wanted = code | {f"attnlab/{path.relative_to(checkout).as_posix()}" for path in lessons}
    assert wanted <= held
    assert {"attnlab/py.typed", "attnlab/models/multihead/reference.py"} <= held
    assert {path.split("/")[0].split("-")[0] for path in held} == {"attnlab"}, "nothing else lands in site-packages"
    assert not [path for path in held if path.endswith((".png", ".svg"))]


def test_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    succeeds(
        f"""
from attnlab.catalog import registry
from attnlab.models.multihead import MultiAttention
import attnlab, pickle
assert attnlab.__file__.startswith({str(wheel)!r}), attnlab.__file__
assert registry.folder().is_relative_to({str(wheel)!r})
assert registry.checkout() is None
assert len(registry.names()) >= 2
for name in registry.names():
    assert registry.load(name).card == registry.entry(name).card
assert pickle.loads(pickle.dumps(MultiAttention)) is MultiAttention
assert "models" not in sys.modules
import importlib.util
assert importlib.util.find_spec("models") is None, "a top-level models was installed"
""",
        wheel,
        cwd=tmp_path,
    )


@pytest.mark.parametrize(
    ("first", "package"), [("models.mine", True), ("attnlab.models.multihead", False)], ids=["package", "namespace"]
)
def test_a_users_own_models_work_beside_the_wheel(wheel: Path, tmp_path: Path, first: str, package: bool) -> None:
    (tmp_path / "models").mkdir()
    if package:
        (tmp_path / "models" / "__init__.py").write_text("own = True\n")
    (tmp_path / "models" / "mine.py").write_text("from attnlab.models.multihead import MultiAttention as Mine\n")
    succeeds(
        f"""
import {first}
import models.mine, attnlab.models.multihead
assert models.mine.Mine is attnlab.models.multihead.MultiAttention
assert {str(tmp_path)!r} in str(models.__path__)
assert not hasattr(models, "multihead")
""",
        wheel,
        cwd=tmp_path,
    )


BROKEN = {
    "missing": ("import nowhere_at_all\n", "ModuleNotFoundError"),
    "malformed": ("def (:\n", "SyntaxError"),
    "failing": ("1 / 0\n", "ZeroDivisionError"),
}


def test_broken_mechanisms_do_not_affect_the_others(checkout: Path) -> None:
    try:
        for name, (text, _) in BROKEN.items():
            (checkout / "models" / name).mkdir()
            (checkout / "models" / name / "__init__.py").write_text(f"from .{name} import Broken as Broken\n")
            (checkout / "models" / name / f"{name}.py").write_text(text)
        raises = "".join(
            f"""
for name in ("models.{name}", "attnlab.models.{name}", "models.{name}"):
    try:
        __import__(name)
    except {error}:
        continue
    raise AssertionError(name)
assert "models.{name}" not in sys.modules
"""
            for name, (_, error) in BROKEN.items()
        )
        succeeds(raises + SAME + raises, cwd=checkout, site=True)
        command = [sys.executable, "-m", "attnlab", "models"]
        listed = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
        assert listed.returncode == 0
        assert "multihead" in listed.stdout
        assert "left out: " in listed.stderr
    finally:
        for name in BROKEN:
            shutil.rmtree(checkout / "models" / name, ignore_errors=True)


def test_a_module_runs_under_its_short_name(checkout: Path) -> None:
    path = checkout / "models" / "selfhead" / "shown.py"
    path.write_text("from .selfhead import SelfAttention\nprint(__name__, __file__, SelfAttention.__module__)\n")
    command = [sys.executable, "-W", "error", "-m", "models.selfhead.shown"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["__main__", str(path), "attnlab.models.selfhead.selfhead"]
