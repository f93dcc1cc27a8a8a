"""The published MLLM-CL as a stream of domains (DCL) or abilities (ACL).

    python -m data_prep.mllm_cl --source DIR --download                 # its JSON, from the hub
    python -m data_prep.mllm_cl --source DIR --benchmark DCL --out data/mllm-cl-dcl

DIR holds a folder a task: RS/train.json, RS/test.json, RS/images; of abilities OCR/train.json and
OCR_test/test.json.
"""

from __future__ import annotations

import sys
from functools import partial

from data_prep.published.benchmarks import MLLM_CL
from data_prep.task_files.task_stream import run

main = partial(run, MLLM_CL, __doc__)

if __name__ == "__main__":
    sys.exit(main())
