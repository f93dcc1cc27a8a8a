"""The host's own training, measured: prints the most that its second step held, in bytes.

Called as `swift sft` is. What is alive when the step begins is counted in the model and optimizer;
what comes and goes then is told by torch's allocator (torch.profiler, profile_memory).
"""

from __future__ import annotations

import json
import sys
from itertools import accumulate
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from recipes.swift_plugins.step_memory import (
    MARK,
    SwiftSft,
    TrainerCallback,
    bytes_of,
    callbacks_map,
)


class Measure(TrainerCallback):  # type: ignore[misc]
    """Profiles the second step: the first has made the optimizer's states."""

    found: dict[str, int]

    def on_step_begin(
        self, args: Any, state: Any, *_: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        if state.global_step == 1:
            states = tree_leaves([*self.trainer.optimizer.optimizer.state.values()])
            self.before = bytes_of([*model.parameters(), *model.buffers(), *states])
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.start()

    def on_step_end(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.profile.stop()
            profiler: Any = self.profile.profiler
            events = profiler.kineto_results.events()
            memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
            peak = max(accumulate(size for _, size in memory))
            Measure.found = {"before": self.before, "peak": peak}


if __name__ == "__main__":
    host = SwiftSft(sys.argv[1:])
    callbacks_map["measure"] = Measure
    host.args.training_args.callbacks.append("measure")
    host.run()
    print(MARK + json.dumps(Measure.found))
