"""The published CoIN as a stream: eight tasks from science questions to book covers.

    python -m data_prep.coin --source coin --download                  # its JSON, from the hub
    python -m data_prep.coin --source coin --images cl_dataset --checklist
    python -m data_prep.coin --source coin --images cl_dataset --out data/coin

The source holds Instructions_Original/ScienceQA/train.json, test.json, ...; for another set of
instructions give its folder: --source coin/Instructions_Diverse.
"""

from __future__ import annotations

import sys
from functools import partial

from data_prep.published.benchmarks import COIN
from data_prep.task_files.task_stream import run

main = partial(run, {"CoIN": COIN}, __doc__)

if __name__ == "__main__":
    sys.exit(main())
