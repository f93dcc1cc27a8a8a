"""The published UCIT as a stream: six tasks that LLaVA-1.5 has not been trained on.

    python -m data_prep.ucit --source ucit --download                  # its JSON, from the hub
    python -m data_prep.ucit --source ucit --checklist                 # which images are there
    python -m data_prep.ucit --source ucit --out data/ucit

It holds instructions/ArxivQA/train_4w.json, test_3000.json, ... and datasets/ArxivQA/images, ...
"""

from __future__ import annotations

import sys
from functools import partial

from data_prep.published.benchmarks import UCIT
from data_prep.task_files.task_stream import run

main = partial(run, {"UCIT": UCIT}, __doc__)

if __name__ == "__main__":
    sys.exit(main())
