"""A real SLURM of several nodes on one Debian host, for tests and for newcomers.

    eval "$(python -m tests.slurm.cluster start FOLDER --nodes 3 --cpus 2)"
    python -m tests.slurm.cluster status FOLDER
    python -m tests.slurm.cluster stop FOLDER

Its configuration, keys, sockets, logs and pid files lie in FOLDER. Elsewhere it writes only memory
cgroups, where root may make them. Without root it runs the jobs of the user who started it.

What it does as a large cluster would:

1. Each node is a slurmd of its own, with its own CPUs and 2,048 MB of memory a CPU, of which a job
   gets 1,024 MB unless it asks for more. Each has two GPUs, which aren't any.
2. A job that takes more memory than it asked for is killed: by the kernel, as OUT_OF_MEMORY, where
   there are memory cgroups (version 1); else by SLURM, which looks once a second, as FAILED 0:9
   with "exceeded memory limit" in its log.
3. Partition ``low`` gives way to ``high``, the default: its jobs get their ``--signal`` at once,
   five seconds later SIGTERM, two more later SIGKILL, and are queued again.
4. An array's largest index is below MaxArraySize.
5. A node that crashes is noticed 12 seconds later; its jobs are queued again, or with
   ``--no-requeue`` end as NODE_FAIL.

Departures: no accounting database, hence no sacct; a job that is queued again starts six seconds
later instead of two minutes; nodes may promise more memory and CPUs than the host has.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

INSTALL = "apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge"
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch"]
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")
KERNEL_LIMITS_MEMORY = os.access(MEMORY_CGROUPS, os.W_OK)

GPUS = ["/dev/null", "/dev/zero"]  # SLURM takes any devices, and only counts them

# A socket's path has 107 characters; after the folder: /n1f2e-10/n1f2e-10_12345.4294967291
MAX_FOLDER = 70

SLURM_CONF = """\
ClusterName=onehost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is queued again waits until its credential has expired: at least 5 s; 120 by default.
AuthInfo=socket={folder}/munged.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
# The log's folder becomes the working directory of the node's daemons: crash() knows them by it.
SlurmdLogFile={folder}/%n/slurmd.log
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
ProctrackType=proctrack/linuxproc
{memory}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1024
GresTypes=gpu
MaxArraySize={max_array_size}
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
KillWait=2
# After these a node that doesn't answer is down in 12 seconds.
SlurmdTimeout=5
MessageTimeout=3
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=high Nodes=ALL Default=YES PriorityTier=2 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={mb}"
    " Gres=gpu:{gpus}"
)
MEMORY_BY_KERNEL = "TaskPlugin=task/cgroup"
MEMORY_BY_SLURM = "TaskPlugin=task/none\nJobAcctGatherParams=OverMemoryKill"
CGROUP_CONF = f"""\
CgroupPlugin=cgroup/v1
CgroupMountpoint={MEMORY_CGROUPS.parent}
ConstrainRAMSpace=yes
"""


class ClusterError(RuntimeError):
    """The cluster doesn't start, or one of its commands failed; the message is for the reader."""


class Cluster:
    """The SLURM whose files lie in `folder`: running, stopped, or half of it left by a crash.

    Raises ClusterError where SLURM isn't installed or can't do with the folder's name.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]
        if missing:
            raise ClusterError(f"SLURM isn't installed ({', '.join(missing)}). Run: {INSTALL}")
        self.folder = folder.resolve()
        if len(str(self.folder)) > MAX_FOLDER or " " in str(self.folder):
            raise ClusterError(
                f"{self.folder} must have at most {MAX_FOLDER} characters and no spaces."
            )
        self.conf = self.folder / "slurm.conf"
        # An enclosing job's variables would become options of sbatch and srun.
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.env = {**outer, "PATH": SEARCH, "SLURM_CONF": str(self.conf)}

    @property
    def nodes(self) -> list[str]:
        """The nodes' names. They differ between folders, for cgroups are named after them."""
        text = self.conf.read_text() if self.conf.exists() else ""
        return re.findall(r"^NodeName=(\S+)", text, re.MULTILINE)

    @property
    def running(self) -> bool:
        names = ["munged", "slurmctld", *self.nodes]
        return len(names) > 2 and all(self._pid(name) for name in names)

    def start(self, nodes: int = 3, cpus: int = 2, max_array_size: int = 101) -> None:
        """Start with an empty queue, and return when every node is idle.

        First stops what is left of an earlier start. Raises ClusterError where a daemon doesn't
        come up, with what the logs say; then everything is stopped again.
        """
        self.stop()
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        self._configure(nodes, cpus, max_array_size)
        try:
            munge = {f"{kind}-file": kind for kind in ("key", "pid", "log", "seed")}
            munge["socket"] = "socket"
            files = [f"--{option}={self.folder}/munged.{kind}" for option, kind in munge.items()]
            # Without --force it refuses folders below one that others may write, as /tmp is.
            self._daemon("munged", "--force", *files)
            self._daemon("slurmctld", "-c", "-f", str(self.conf))
            for node in self.nodes:
                self.restore(node)
            self.wait(self._idle, "every node is idle")
        except ClusterError as error:
            self.stop()
            raise ClusterError(f"{error}\n{self._last_lines()}") from error

    def stop(self) -> None:
        """End the daemons that the folder's pid files name and the jobs of its nodes, no others."""
        for name in ["slurmctld", *self.nodes, "munged"]:
            self._kill(name)
        for node in self.nodes:
            self._kill_jobs(node)
            for cgroup in sorted(MEMORY_CGROUPS.glob(f"slurm_{node}/**"), reverse=True):
                with suppress(OSError):  # a process that cleared its environment lives on in it
                    cgroup.rmdir()

    def crash(self, node: str) -> None:
        """The node's daemons and jobs are gone at once, with nobody left to report it."""
        self._kill(node)
        self._kill_jobs(node)

    def restore(self, node: str) -> None:
        """Start the node's daemon, as at boot."""
        self._daemon("slurmd", "-f", str(self.conf), "-N", node)

    def crash_controller(self) -> None:
        """Gone at once, it begins again with what it had written: all but the last moments."""
        self._kill("slurmctld")
        self._daemon("slurmctld", "-f", str(self.conf))

    def run(self, *command: str | Path, timeout: float = 60) -> str:
        """What a command of the cluster prints. Raises ClusterError where it fails or hangs."""
        line = " ".join(map(str, command))
        try:
            done = subprocess.run(
                command, env=self.env, timeout=timeout, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{line}: no answer in {timeout:g} s") from error
        if done.returncode:
            raise ClusterError(f"{line}: exit status {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, *options: str, script: str) -> str:
        """Submit a batch script of bash; returns the job's id."""
        log = f"--output={self.folder}/jobs/%j.out"
        return self.run("sbatch", "--parsable", log, *options, "--wrap", script)

    def job(self, job: str) -> dict[str, str]:
        """The fields of ``scontrol show job``; of an ended job for five minutes (MinJobAge)."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait_for(self, job: str, state: str, timeout: float = 300) -> dict[str, str]:
        """The job's fields once it is in this state. Raises ClusterError where it never is."""
        self.wait(
            lambda: self.job(job)["JobState"] == state, f"job {job} is in state {state}", timeout
        )
        return self.job(job)

    def output(self, job: str) -> str:
        file = self.folder / "jobs" / f"{job}.out"
        return file.read_text() if file.exists() else ""

    def node_states(self) -> dict[str, str]:
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=high", "--format=%N %T")
        return dict(line.split() for line in lines.splitlines())

    def wait(self, condition: Callable[[], object], what: str, timeout: float = 300) -> None:
        """Raises ClusterError where `what` still isn't so after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise ClusterError(f"After {timeout:g} s it still isn't so that {what}.")
            time.sleep(0.1)

    def _idle(self) -> bool:
        with suppress(ClusterError):  # the controller doesn't answer yet
            return set(self.node_states().values()) == {"idle"}
        return False

    def _configure(self, nodes: int, cpus: int, max_array_size: int) -> None:
        for name in ("state", "jobs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        host = socket.gethostname().split(".")[0]
        prefix = "n" + hashlib.blake2s(bytes(self.folder), digest_size=2).hexdigest()
        port, *ports = free_ports(1 + nodes)
        lines = []
        for number, node_port in enumerate(ports, start=1):
            name = f"{prefix}-{number}"
            (self.folder / name).mkdir(exist_ok=True)
            size = {"cpus": cpus, "mb": 2048 * cpus, "gpus": len(GPUS)}
            lines.append(NODE.format(name=name, host=host, port=node_port, **size))
        self.conf.write_text(
            SLURM_CONF.format(
                host=host,
                port=port,
                user=pwd.getpwuid(os.getuid()).pw_name,
                folder=self.folder,
                memory=MEMORY_BY_KERNEL if KERNEL_LIMITS_MEMORY else MEMORY_BY_SLURM,
                max_array_size=max_array_size,
                nodes="\n".join(lines),
            )
        )
        (self.folder / "cgroup.conf").write_text(CGROUP_CONF)
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in GPUS))
        (self.folder / "start.log").write_text("")
        key = self.folder / "munged.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _daemon(self, *command: str) -> None:
        # A pipe would stay open as long as the daemon lives.
        with (self.folder / "start.log").open("a") as log:
            code = subprocess.run(command, env=self.env, stdout=log, stderr=log).returncode
        if code:
            raise ClusterError(f"{' '.join(command)}: exit status {code}")

    def _pid(self, name: str) -> int | None:
        """The daemon's process, if it lives: its number in an old pid file may be another's."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / f"{name}.pid").read_text())
            if os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def _kill(self, name: str) -> None:
        if pid := self._pid(name):
            os.kill(pid, signal.SIGKILL)
            self.wait(lambda: self._pid(name) is None, f"{name} has ended")
        (self.folder / f"{name}.pid").unlink(missing_ok=True)

    def _kill_jobs(self, node: str) -> None:
        def ended() -> bool:
            """Again and again: a job that was just beginning has more processes by now."""
            processes = self._job_processes(node)
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not processes

        self.wait(ended, f"the jobs on {node} have ended")

    def _job_processes(self, node: str) -> list[int]:
        """Daemons of job steps, then tasks: a step outliving its task would report its end."""
        marks = {f"SLURM_CONF={self.conf}".encode(), f"SLURMD_NODENAME={node}".encode()}
        steps, tasks = [], []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile, or is another user's
                if (process / "comm").read_text() == "slurmstepd\n":
                    # It overwrites its environment.
                    if (process / "cwd").readlink() == self.folder / node:
                        steps.append(int(process.name))
                elif marks <= set((process / "environ").read_bytes().split(b"\0")):
                    tasks.append(int(process.name))
        return steps + tasks

    def _last_lines(self) -> str:
        logs = [file for kind in ("*.log", "*/*.log") for file in sorted(self.folder.glob(kind))]
        return "\n".join(f"{log}:\n{''.join(log.open().readlines()[-5:])}" for log in logs)


@contextmanager
def cluster(folder: Path, **options: int) -> Iterator[Cluster]:
    """A Cluster, started with these options and stopped at the end."""
    slurm = Cluster(folder)
    try:
        slurm.start(**options)
        yield slurm
    finally:
        slurm.stop()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2, help="of each node")
    parser.add_argument("--max-array-size", type=int, default=101)
    args = parser.parse_args()
    slurm = Cluster(args.folder)
    if args.action == "stop":
        slurm.stop()
    elif args.action == "status":
        print(slurm.run("sinfo") if slurm.running else "not running")
    else:
        if slurm.running:
            print(f"Already running, with {len(slurm.nodes)} nodes.", file=sys.stderr)
        else:
            slurm.start(args.nodes, args.cpus, args.max_array_size)
        programs = Path(str(shutil.which("sbatch", path=SEARCH))).parent
        # Alone on stdout, for eval.
        print(f'export SLURM_CONF="{slurm.conf}" PATH="{programs}:$PATH"')


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(str(error))
