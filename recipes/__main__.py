"""`python CHECKOUT/recipes`: the command line, with the checkout's packages before all others.

Python puts this folder at the head of its path, never the working directory; its place belongs to
the checkout's root.
"""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    from recipes.arguments import parse

    parse(sys.argv[1:])  # ends here for --help, which works before anything is installed
    from recipes.cli import main

    sys.exit(main())
