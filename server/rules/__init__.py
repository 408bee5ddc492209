"""Merge rules by name. A rule is one file here: pure arithmetic on flat float32 vectors plus its declared state.

Adding a rule is adding its file: every module of this package that has a class marked with `@rule` is found.
"""

import importlib
import pkgutil

from server.rules.rule import MergeRule, rules

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["MergeRule", "rules"]
