"""The command line with the stand-in host: `python -m tests.recipes.fake_run RECIPE ...`."""

from __future__ import annotations

import sys

from recipes.cli import main
from tests.recipes import fake_host

if __name__ == "__main__":
    fake_host.install()
    sys.exit(main())
