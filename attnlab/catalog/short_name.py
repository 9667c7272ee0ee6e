"""Make ``models.NAME`` an alias of ``attnlab.models.NAME`` in a checkout.

``models/__init__.py`` imports this module when it was imported as ``models``. An import below ``models`` then imports
the same module below ``attnlab.models``: both names refer to one module object, so that classes, pickles and
``isinstance`` agree. Modules are imported one by one: an error in one folder does not affect the others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

SHORT, LONG = "models", "attnlab.models"


class _ShortNames(MetaPathFinder, InspectLoader):
    """Finds ``models.NAME`` as ``attnlab.models.NAME``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{SHORT}.") or sys.modules.get(SHORT) is not package:
            return None
        spec = find_spec(_long(fullname))
        if spec is None:
            return None
        is_package = spec.submodule_search_locations is not None
        return ModuleSpec(fullname, self, origin=spec.origin, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(_long(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has replaced it

    # For ``python -m models.NAME``, which runs the code itself

    def get_code(self, fullname: str) -> CodeType | None:
        return _loader(fullname).get_code(_long(fullname))

    def get_source(self, fullname: str) -> str | None:
        return _loader(fullname).get_source(_long(fullname))


def _long(name: str) -> str:
    return LONG + name.removeprefix(SHORT)


def _loader(name: str) -> InspectLoader:
    spec = find_spec(_long(name))
    assert spec is not None
    assert isinstance(spec.loader, InspectLoader)
    return spec.loader


package = import_module(LONG)
sys.modules[SHORT] = package
sys.meta_path.insert(0, _ShortNames())
