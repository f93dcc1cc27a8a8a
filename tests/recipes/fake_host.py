"""A stand-in for `swift sft` and `swift infer`: the same arguments, the same files, in no time.

It is for the tests that kill the orchestrator at many moments: what it "trains" is a hash of the
previous adapter, the chunk and the step, so that the last adapter is right only if every chunk was
trained once, from the right adapter, and resumed at the right step. The real host is
killed in tests/faults/test_kills.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from recipes.processes import host_process
from recipes.processes.command import Command, child_environment
from recipes.processes.host_process import start_process
from recipes.processes.resident.worker import Worker
from recipes.run import evaluation
from strlora_tuner.methods import options_class
from strlora_tuner.methods.slow_weights.both_sets import FILE, STEPS, read_steps
from tests.recipes.fork import Fork, write_to


def step_seconds() -> float:
    """How long a step is to take."""
    return float(os.environ.get("FAKE_STEP_SECONDS", "0.02"))


STEP_SECONDS = step_seconds()


def install() -> None:
    """Makes the orchestrator of this process start the stand-in, as a fork of itself.

    The report would take four fifths of such a run's time; FAKE_REPORT=1 has it written.
    """

    def argv(self: Command) -> list[str]:
        host = [sys.executable, "-m", "tests.recipes.fake_host", self.kind, *self.arguments]
        return (
            [*self.prefix, sys.executable, "-m", "recipes.slurm.task", *host]
            if self.prefix
            else host
        )

    def start(command: Command, log: Path, output: IO[bytes]) -> Fork | subprocess.Popen[bytes]:
        return start_process(command, log, output) if command.prefix else fork(command, log)

    if os.environ.get("FAKE_REPORT") != "1":
        evaluation.write_report = lambda layout, say, last=False: layout.report.touch()
    Command.argv = argv  # type: ignore[method-assign]
    host_process.start_process = start  # type: ignore[assignment]
    Worker.start = lambda self, command, log: fork(command, log)  # type: ignore[method-assign, assignment]


def fork(command: Command, log: Path) -> Fork:
    """Starts the stand-in for a command without importing anything."""

    def life() -> None:
        write_to(log)
        os.environ.clear()
        os.environ.update(environment)
        (train if command.kind == "sft" else answer)(arguments_of(command.arguments))

    environment = child_environment(command)
    return Fork(life)


def arguments_of(argv: Sequence[str]) -> dict[str, str]:
    """--key and its values, joined by blanks; a key without one is refused, as the host does."""
    found: dict[str, list[str]] = {}
    for word in argv:
        if word.startswith("--"):
            assert word not in found, argv
            values = found.setdefault(word, [])
        else:
            values.append(word)
    assert all(found.values()), argv
    return {key.removeprefix("--"): " ".join(values) for key, values in found.items()}


def tensors_of(tuner_type: str) -> list[str]:
    """The tensors that an adapter of a method must hold: empty ones here."""
    options = options_class(tuner_type)
    layer = [f"layer.strlora_mixture.{part}" for part in options.layer_tensors]
    return layer + [f"strlora_statistics.{part}" for part in options.state_tensors]


def write_weights(
    path: Path, content: bytes, dtype: str = "U8", empty: Sequence[str] = (), **metadata: str
) -> None:
    """A safetensors file with one tensor, and empty ones of the names in `empty`."""
    size = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}[dtype]
    shape = [len(content) // size]
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    entries["weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}
    for name in empty:
        entries[name] = {"dtype": dtype, "shape": [0], "data_offsets": [len(content)] * 2}
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)


def read_weights(path: Path) -> bytes:
    """The bytes of that tensor."""
    return path.read_bytes()[-32:]


def write_checkpoint(
    path: Path,
    step: int,
    steps: int,
    weights: bytes,
    empty: Sequence[str] = (),
    tuner_type: str = "lora",
) -> None:
    """A host checkpoint, its files in the host's order with pauses in which a kill can fall."""
    path.mkdir(parents=True, exist_ok=True)
    write_weights(path / "adapter_model.safetensors", weights, empty=empty)
    config = json.dumps({"peft_type": tuner_type.upper()})
    (path / "adapter_config.json").write_text(config, encoding="utf-8")
    time.sleep(STEP_SECONDS / 4)
    ranks = int(os.environ.get("NNODES", "1")) * int(os.environ.get("NPROC_PER_NODE", "1"))
    random = [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else ["rng_state.pth"]
    for name in ("optimizer.pt", "scheduler.pt", *random):
        with zipfile.ZipFile(path / name, "w") as archive:
            archive.writestr("data", b"0")
    time.sleep(STEP_SECONDS / 4)
    history = [{"loss": 1.0 / (n + 1), "step": n + 1} for n in range(step)]
    state = {"global_step": step, "max_steps": steps, "log_history": history}
    (path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


def carry_ewc(checkpoint: Path, weights: bytes, options: str) -> None:
    """What the callback `ewc` leaves, a hash of what the chunk before left and the weights."""
    given = json.loads(options)
    before = b""
    if "ewc_state" in given:
        before = read_weights(Path(given["ewc_state"]) / "ewc.safetensors")
    checkpoint.mkdir(parents=True, exist_ok=True)
    names = ["anchor.weight", *(["fisher.weight"] if given["ewc_fisher"] else [])]
    content = hashlib.sha256(before + weights).digest()
    write_weights(checkpoint / "ewc.safetensors", content, empty=names)


def move_slow(slow: bytes, weights: bytes) -> bytes:
    """What stands for a step of the average: it depends on every step before."""
    return hashlib.sha256(slow + weights).digest()


def train(arguments: dict[str, str]) -> None:
    """`swift sft`."""
    output = Path(arguments["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    if "NODE_RANK" in os.environ:  # several machines: the first one trains, all say who they are
        names = ("NODE_RANK", "NNODES", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT")
        rank = os.environ["NODE_RANK"]
        content = {name: os.environ.get(name) for name in names}
        (output.parent / f"node-{rank}.json").write_text(json.dumps(content), encoding="utf-8")
        if rank != "0":
            return
    data = b"".join(Path(name).read_bytes() for name in arguments["dataset"].split(" "))
    batch = int(arguments["per_device_train_batch_size"])
    steps = -(-data.count(b"\n") // batch)
    first, weights = 0, b"\0" * 32
    if "resume_from_checkpoint" in arguments:
        resumed = Path(arguments["resume_from_checkpoint"])
        first = json.loads((resumed / "trainer_state.json").read_text(encoding="utf-8"))[
            "global_step"
        ]
        weights = read_weights(resumed / "adapter_model.safetensors")
    elif "adapters" in arguments:
        weights = read_weights(Path(arguments["adapters"]) / "adapter_model.safetensors")
    averages = "slow_weights" in arguments["callbacks"].split(" ")
    slow, seen = weights, 0
    if averages and "slow_weights_state" in (given := json.loads(arguments["model_kwargs"])):
        slow = read_weights(Path(given["slow_weights_state"]))
        seen = read_steps(Path(given["slow_weights_state"]))
    if os.environ.get("FAKE_STOP_AT") == "0":
        return
    asked: list[int] = []  # the host's graceful exit: end the step, save, stop
    if "save_and_stop" in arguments.get("callbacks", ""):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda found, frame: asked.append(found))
    for step in range(first + 1, steps + 1):
        time.sleep(STEP_SECONDS)
        if os.environ.get("FAKE_FAIL_AT") == str(step):
            raise ValueError("the loss is not a number")
        router = os.environ.get("FAKE_KILL_ROUTER") and output.name == "router_host" and step == 2
        if os.environ.get("FAKE_KILL_AT") == str(step) or router:
            os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does when memory runs out
        weights = hashlib.sha256(weights + data + bytes([step])).digest()
        slow, seen = move_slow(slow, weights), seen + 1
        row = {"loss": 1.0 / step, "global_step/max_steps": f"{step}/{steps}"}
        with (output / "logging.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if step == steps or step % int(arguments["save_steps"]) == 0 or asked:
            empty = tensors_of(arguments["tuner_type"])
            if step == steps and "ewc" in arguments["callbacks"].split(" "):
                carry_ewc(output / f"checkpoint-{step}", weights, arguments["model_kwargs"])
            checkpoint = output / f"checkpoint-{step}"
            if averages:
                checkpoint.mkdir(parents=True, exist_ok=True)
                write_weights(checkpoint / FILE, slow, empty=empty, **{STEPS: str(seen)})
            write_checkpoint(checkpoint, step, steps, weights, empty, arguments["tuner_type"])
        if os.environ.get("FAKE_STOP_AT") == str(step) or asked:
            return


def routed(draw: int) -> dict[str, Any]:
    """What the plug-in of a pool adds to a result; the adapters must be where its file says."""
    if "MR_LORA_POOL_FILE" not in os.environ:
        return {}
    pool = json.loads(Path(os.environ["MR_LORA_POOL_FILE"]).read_text(encoding="utf-8"))
    expert = pool["experts"][draw % len(pool["experts"])]
    for folder in (expert["adapter"], pool["router"]):
        assert folder is None or (Path(folder) / "adapter_config.json").is_file(), folder
    return {"expert": expert["chunk"], "router_answer": expert["letter"], "routed": True}


def answer(arguments: dict[str, str]) -> None:
    """`swift infer`; of several machines the first answers, and the others say that they ran."""
    if os.environ.get("NODE_RANK", "0") != "0":
        print(f"[rank{os.environ['NODE_RANK']}] nothing left to answer")
        return
    seed = b"base"
    if "adapters" in arguments:
        seed = read_weights(Path(arguments["adapters"]) / "adapter_model.safetensors")
    lines = Path(arguments["val_dataset"]).read_text(encoding="utf-8").splitlines()
    lines = lines[: len(lines) - int(os.environ.get("FAKE_LOST_ANSWERS", "0"))]
    with Path(arguments["result_path"]).open("a", encoding="utf-8") as results:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            digest = hashlib.sha256(seed + line.encode()).digest()[0]
            response = ["red", "green", "blue", "1", "2", "3"][digest % 6]
            turns = [*row["messages"], {"role": "assistant", "content": response}]
            images = [{"bytes": None, "path": image} for image in row["images"]]
            out = {"response": response, "labels": None, "messages": turns, "images": images}
            out["finish_reason"] = "stop"
            out |= routed(digest)
            results.write(json.dumps(out) + "\n")
            results.flush()
            time.sleep(STEP_SECONDS / 8)


def as_torchrun_does(kind: str, words: Sequence[str]) -> int:
    """Runs the host as a worker in a session of its own, which no signal to our group reaches."""
    command = [sys.executable, "-m", "tests.recipes.fake_host", kind, *words]
    environment = {**os.environ, "RANK": os.environ["NODE_RANK"]}
    return subprocess.run(command, env=environment, start_new_session=True).returncode


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if "NODE_RANK" in os.environ and "RANK" not in os.environ:
        sys.exit(as_torchrun_does(kind, rest))
    (train if kind == "sft" else answer)(arguments_of(rest))
