"""A real SLURM on this machine: munge, slurmctld and two slurmd on the loopback, for a test."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
MessageTimeout=60
BatchStartTimeout=120
UnkillableStepTimeout=600
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=500
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=500
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why SLURM cannot be tested here; empty when it can."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "the daemons of SLURM need root"


def free_ports(count: int) -> list[int]:
    """Ports that are free now and that the kernel gives to no outgoing connection."""
    found: list[int] = []
    for port in random.sample(range(10000, 20000), 200):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"fewer than {count} free ports between 10000 and 20000")


def parent_of(pid: int) -> int:
    """The parent of a process; 0 once it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def name_of(pid: int) -> str:
    """The name of a process's program; empty once it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Cluster:
    """Two virtual nodes of one core each; `environment` is what its clients need."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(root / "slurm.conf"),
            "PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]),
        }
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        (self.root / "state").mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        port, first, second = free_ports(3)
        text = CONFIG.format(host=host, root=self.root, port=port, first=first, second=second)
        (self.root / "slurm.conf").write_text(text, encoding="utf-8")
        self._munge()
        self._start("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.nodes[node] = self._start("slurmd", "-D", "-c", "-N", node)
        self.wait_until_idle()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
            if daemon.poll() is None:
                daemon.kill()

    def _munge(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        options = [f"--key-file={key}", f"--socket={self.root}/munge.socket", "--force"]
        options += [f"--{kind}-file={self.root}/munge.{kind}" for kind in ("pid", "log", "seed")]
        self._start("munged", "--foreground", *options)
        self.wait_for((self.root / "munge.socket").exists)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.root / f"{len(self._daemons)}-{command[0]}.out").open("wb")
        daemon = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        self._daemons.append(daemon)
        return daemon

    def processes_on(self, node: str) -> list[int]:
        """Processes of jobs on a node; all nodes are this machine, their environment differs."""
        wanted = {f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.root}/slurm.conf"}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted <= set(path.read_text(errors="replace").split("\0")):
                    found.append(int(path.parent.name))
        return found

    def fail_node(self, node: str) -> None:
        """Ends a node as a power cut does: its daemon, the daemons of its jobs, their processes.

        SLURM would notice after SlurmdTimeout (five minutes); here it is told.
        """
        tasks = self.processes_on(node)
        steps = {parent_of(pid) for pid in tasks}
        for pid in [
            self.nodes[node].pid,
            *(p for p in steps if name_of(p) == "slurmstepd"),
            *tasks,
        ]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def repair_node(self, node: str) -> None:
        """Starts a failed node again."""
        self.nodes[node].wait(timeout=60)
        self.nodes[node] = self._start("slurmd", "-D", "-c", "-N", node)
        with suppress(AssertionError):  # refused where its registration has resumed it already
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Waits until both nodes are up and free."""
        self.wait_for(lambda: self.run("sinfo", "-h", "-o", "%T %D").strip() == "idle 2")

    def run(self, *command: str) -> str:
        """The output of a client command."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def wait_for(self, done: Callable[[], bool], seconds: float = 600) -> None:
        """Waits until `done()` is true; fails with the daemons' output."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                if done():
                    return
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {seconds:.0f} s\n{self.logs()}")
            time.sleep(0.3)

    def logs(self) -> str:
        """The end of what the daemons wrote, for the message of a test that fails."""
        paths = sorted([*self.root.glob("*.out"), *self.root.glob("*.log")])
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in paths)

    def wait_until_over(self, job: str) -> None:
        """Waits until no task of the job is queued or running."""
        self.wait_for(lambda: job not in self.run("squeue", "-h", "-o", "%A %F").split())

    def wait_in(self, job: str, done: Callable[[], bool]) -> None:
        """Waits until `done()` is true; fails when the job ends before."""

        def look() -> bool:
            over = not self.state(job)
            if not done() and over:
                pytest.fail(f"job {job} ended before\n{self.logs()}")
            return done()

        self.wait_for(look)

    def start_requeued(self, job: str) -> None:
        """Starts a requeued job before the two minutes are over for which SLURM holds it.

        Not at once: a node refuses what was requeued in the same second, and SLURM ends the job.
        """
        self.wait_for(lambda: self.state(job) == "PENDING")
        self.run("scontrol", "update", f"jobid={job}", "starttime=now+3")

    def state(self, job: str) -> str:
        """A job's state, empty once it has ended.

        COMPLETING while the processes of the start before are being ended.
        """
        jobs = self.run("squeue", "-h", "-o", "%A %T").splitlines()
        return next((words.split()[1] for words in jobs if words.split()[0] == job), "")
