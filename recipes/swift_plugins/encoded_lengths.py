"""Prints how many tokens the host makes of each row of its data set: flags as of `swift sft`.

The template and the processor encode as in training, pictures included; no weights are loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from swift.arguments import BaseArguments
from swift.utils import parse_args

MARK = "ANSWER "  # how the line with the answer begins; the host prints others


def counts(argv: Sequence[str]) -> list[int]:
    """The tokens of every row, in the order of the file."""
    arguments, _ = parse_args(BaseArguments, list(argv))  # what is of the trainer's is left over
    template = arguments.get_template(arguments.get_model_processor(load_model=False)[1])
    template.set_mode("train")
    template.max_length = None
    return [len(template.encode(row)["input_ids"]) for row in arguments.load_dataset()[0]]


if __name__ == "__main__":
    found = counts(sys.argv[1:])
    print(MARK + json.dumps(found))
