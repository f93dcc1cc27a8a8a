"""Makes PEFT know the method, now or as soon as PEFT is imported.

Importing PEFT takes seconds and needs torch. Checking a recipe needs neither, so `import
strlora_tuner` must not import PEFT by itself; but `PeftModel.from_pretrained` must work after it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from strlora_tuner.methods import folders

METHODS = "strlora_tuner.methods"
_OWN = {"config": "Config", "model": "Model"}

# Our modules that import PEFT, and what each defines last.
_NEEDED = {
    "strlora_tuner.methods.strlora.config": "StrLoraConfig",
    "strlora_tuner.core.layer": "RoutedLinear",
    "strlora_tuner.methods.strlora.model": "StrLoraModel",
    "strlora_tuner.core.config": "RoutedConfig",
    "strlora_tuner.core.model": "RoutedModel",
    "strlora_tuner.saved": "not_fitting",
}


def register() -> None:
    """Registers every method with PEFT; a second call does nothing.

    While one of the modules that it needs is still being imported (that one imported PEFT) it
    waits: each of them calls it again at its end.
    """
    others = {f"{METHODS}.{name}.{part}": last for name in folders() for part, last in _OWN.items()}
    for module, last in {**_NEEDED, **others}.items():
        if module in sys.modules and not hasattr(sys.modules[module], last):
            return
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import register_peft_method

    from strlora_tuner.methods import STRLORA, classes_of

    for name in (STRLORA, *folders()):
        config, model = classes_of(name)
        if model not in PEFT_TYPE_TO_TUNER_MAPPING.values():
            register_peft_method(name=name, config_cls=config, model_cls=model, prefix=model.prefix)


class _AfterPeft(importlib.abc.MetaPathFinder):
    """Finds PEFT the ordinary way, once, and registers the method when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module: ModuleType) -> None:
                execute(module)
                register()

            spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


def register_with_peft() -> None:
    """Registers at once when PEFT is loaded, else right after its import."""
    peft = sys.modules.get("peft")
    if peft is None:
        sys.meta_path.insert(0, _AfterPeft())
    elif hasattr(peft, "PeftModel"):
        register()
