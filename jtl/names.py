"""Modules resolved by name: a method, a data source, an evaluator is the file that bears its name."""

import importlib
import pkgutil
from types import ModuleType

from jtl.errors import UserError, nearest


def known(package: str) -> list[str]:
    """Names of the modules in a package."""
    path = importlib.import_module(package).__path__
    return [m.name for m in pkgutil.iter_modules(path) if not m.name.startswith('_')]


def module(package: str, name: str, what: str) -> ModuleType:
    """Imports `package.name`; `what` says in the error message where the name was given."""
    if name not in known(package):
        raise UserError(f'{what}: unknown; {nearest(name, known(package))}')
    return importlib.import_module(f'{package}.{name}')
