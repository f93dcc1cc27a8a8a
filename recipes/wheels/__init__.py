"""Wheels for a machine without a network: collected on one that has it, installed on the other.

Needs pip only, so that it runs before anything else is installed.
"""

import sys
from importlib.util import find_spec

# A bare Python has no `packaging` of its own, but pip, which both commands call, brings one.
_pip = find_spec("pip")
if find_spec("packaging") is None and _pip and _pip.submodule_search_locations:
    sys.path.append(f"{_pip.submodule_search_locations[0]}/_vendor")
