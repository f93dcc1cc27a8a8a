"""Makes our methods known to PEFT: at once where PEFT is loaded, else when it is imported.

`import strlora_tuner` must be enough for `PeftModel.from_pretrained`, in any order with `import
peft`. It must also stay without torch, since checking a recipe needs none. PEFT itself has no place
where other packages could announce a method. So, while nobody has imported PEFT, an import hook
waits for that and then registers: the only way to act on an import that somebody else makes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from strlora_tuner import host_api
from strlora_tuner.methods import METHODS, config_class, folders, has_config


def register() -> None:
    """Imports every method's configuration, whose class makes itself known to PEFT.

    The PEFT model of a method is imported with its first configuration, see RoutedConfig. Of a
    configuration that is being imported right now, because it was the one to import PEFT, nothing
    is asked here: it goes on afterwards.

    Raises:
        ImportError: this version of PEFT lacks a hook that our tuners override.
    """
    host_api.check("peft")
    for name in folders():
        if has_config(name):
            importlib.import_module(f"{METHODS}.{name}.config")
        else:
            config_class(name)


class _AfterPeft(importlib.abc.MetaPathFinder):
    """Finds PEFT the ordinary way, once, and calls :func:`register` when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "peft":
            return None
        # Before the search, which would ask this finder again.
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module: ModuleType) -> None:
                execute(module)
                register()

            spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


def register_when_peft_is_loaded() -> None:
    """Registers now, or leaves it to the import of PEFT."""
    if "peft" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterPeft())
