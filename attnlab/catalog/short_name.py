"""Give every ``attnlab.models...`` module its short name ``models...`` too: one code, two names.

``models/__init__.py`` imports this when a checkout's own folder was imported as ``models``. From then on what is
asked for below ``models`` is imported below ``attnlab.models``, and both names lead to the same module objects, so
that classes, pickles and ``isinstance`` agree. Only what is asked for is imported: a folder that is broken closes
no door for its neighbours, and who asks for that very folder gets its own error.
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
    """Finds ``models.NAME`` where ``attnlab.models.NAME`` is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{SHORT}.") or sys.modules.get(SHORT) is not package:
            return None
        found = find_spec(_long(fullname))
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, self, origin=found.origin, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(_long(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system has just put the short one there

    # ``python -m models.NAME...`` runs the code itself

    def get_code(self, fullname: str) -> CodeType | None:
        found = find_spec(_long(fullname))
        assert found is not None
        assert isinstance(found.loader, InspectLoader)
        return found.loader.get_code(_long(fullname))

    def get_source(self, fullname: str) -> str | None:
        found = find_spec(_long(fullname))
        assert found is not None
        assert isinstance(found.loader, InspectLoader)
        return found.loader.get_source(_long(fullname))


def _long(name: str) -> str:
    return LONG + name.removeprefix(SHORT)


package = import_module(LONG)
sys.modules[SHORT] = package
sys.meta_path.insert(0, _ShortNames())
