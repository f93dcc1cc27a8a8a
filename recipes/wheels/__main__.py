"""Called by recipes/setup.sh: `collect FOLDER` and `install FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.wheels.collect import WheelError, collect, read_beside, say


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="recipes.wheels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("folder", type=Path)
    collecting.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}")
    collecting.add_argument("--beside", default="torch,torchvision")
    installing = commands.add_parser("install")
    installing.add_argument("folder", type=Path)
    installing.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    try:
        if options.command == "collect":
            whole = Path(options.beside).is_file()
            collect(options.folder, options.python, read_beside(options.beside), whole)
        else:
            from recipes.wheels.install import install

            install(options.folder, options.into)
    except (WheelError, OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
