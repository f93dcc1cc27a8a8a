"""Lets a CUDA build of torchvision import beside a CPU-only torch.

Installed by recipes/setup.sh, and only when a plain import fails. The wheel's compiled operators
cannot load on a machine without CUDA libraries, and importing it then fails for one reason: it
registers fake kernels for two operators whose schemas were never defined. They are defined here
right before torchvision is imported; its pure-Python parts (transforms) then work, and the compiled
operators stay unavailable and raise when called. With a CUDA build of torch this does nothing.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from types import ModuleType

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


_KEEP: list[object] = []  # the registration lives as long as its library object


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            # A CUDA build loads the operators of the wheel, which define these schemas.
            if torch.version.cuda is None:
                library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in ("nms", "qnms"):
                    library.define(operator + SCHEMA)
                _KEEP.append(library)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
