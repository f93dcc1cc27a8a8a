"""A plug-in for the distributed tests: fails when carried buffers differ between ranks."""

import os

import torch
import torch.distributed as dist
from swift.callbacks import callbacks_map
from swift.callbacks.base import TrainerCallback

if int(os.environ.get("LOCAL_RANK", -1)) != -1 and os.environ.get("RANK_CHECK_DEEPSPEED"):
    # Without an accelerator DeepSpeed's own communication must be up before zero.Init asks for it.
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


class RankCheck(TrainerCallback):
    """Gathers every carried buffer at the end and compares it with rank 0's."""

    def on_train_end(self, args, state, control, **kwargs):
        checked = 0
        for name, buffer in self.trainer.model.named_buffers():
            if "strlora_" not in name:
                continue
            reference = buffer.clone()
            dist.broadcast(reference, 0)
            if not torch.equal(reference, buffer):
                raise RuntimeError(f"rank {dist.get_rank()}: {name} differs from rank 0")
            checked += 1
        print(f"RANK-CHECK rank {dist.get_rank()}: {checked} buffers equal", flush=True)


callbacks_map["rank_check"] = RankCheck
