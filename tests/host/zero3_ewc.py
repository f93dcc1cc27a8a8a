"""EWC under DeepSpeed ZeRO-3 beside one process: `torchrun --nproc_per_node=2 zero3_ewc.py`.

Three steps with pull, accumulation and clipping, then the Fisher information of five samples, which
two processes cannot share out evenly. Prints a line a process; fails where a number differs.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from strlora_tuner.methods.ewc.ewc import EwcState, FisherEstimate, Penalty, next_state, whole_shape

STEPS, MICRO, EACH = 3, 2, 2
ZERO3 = {
    "train_micro_batch_size_per_gpu": EACH,
    "gradient_accumulation_steps": MICRO,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}


class Net(nn.Module):
    """Two trained layers around a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.frozen(torch.tanh(self.first(x)))))


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(trained(net).values()), lr=0.1)


def main() -> None:
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    one = Net()
    single = trained(one)
    anchor = {name: torch.randn(p.shape) for name, p in single.items()}
    state = EwcState(anchor, {name: torch.rand(p.shape) for name, p in single.items()})
    inputs, targets = torch.randn(STEPS, 8, 3), torch.randint(0, 2, (STEPS, 8))
    net = copy.deepcopy(one)
    engine, *_ = deepspeed.initialize(model=net, config=ZERO3, optimizer=sgd(net))
    pieces = trained(net)
    assert all(p.numel() == 0 and whole_shape(p) == single[n].shape for n, p in pieces.items())

    def whole() -> deepspeed.zero.GatheredParameters:
        return deepspeed.zero.GatheredParameters(list(pieces.values()))

    def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        for name, value in expected.items():
            one_s, ours = value.detach(), found[name].detach()
            torch.testing.assert_close(ours, one_s, rtol=1e-5, atol=1e-7, msg=name)

    pull, reference = Penalty(pieces, state, 3.0, whole), Penalty(single, state, 3.0)
    optimizer = sgd(one)
    for x, y in zip(inputs, targets, strict=True):
        torch.testing.assert_close(pull.begin_step(), reference.begin_step())
        for micro in range(MICRO):
            start = (micro * world + rank) * EACH
            share = slice(start, start + EACH)
            engine.backward(nn.functional.cross_entropy(engine(x[share]), y[share]))
            engine.step()
        optimizer.zero_grad()
        nn.functional.cross_entropy(one(x), y).backward()
        nn.utils.clip_grad_norm_(list(single.values()), 1.0)
        optimizer.step()
        with whole():
            same(pieces, single)
    pull.remove()
    reference.remove()

    estimate, expected = FisherEstimate(pieces), FisherEstimate(single)
    engine.eval()
    own = [(place, True) for place in range(5)][rank::world]
    own += [(0, False)] * (3 - len(own))
    samples, classes = inputs[0], targets[0]
    for place, counts in own:
        row = slice(place, place + 1)
        loss = nn.functional.cross_entropy(engine(samples[row]), classes[row])
        estimate.add_from(partial(engine.backward, loss, scale_wrt_gas=False), counts)
        engine.optimizer.zero_grad()
    for place in range(5):
        row = slice(place, place + 1)
        expected.add(nn.functional.cross_entropy(one(samples[row]), classes[row]))
    fisher = estimate.mean(dist.all_reduce)
    same(fisher, expected.mean())
    assert all(p.numel() == 0 for p in pieces.values()), "DeepSpeed has its pieces back"
    with whole():
        carried = next_state(state, pieces, fisher, decay=0.5)
    same(carried.anchor, single)
    print(f"rank {rank}: as one process", flush=True)


if __name__ == "__main__":
    main()
