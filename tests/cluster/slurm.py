"""A real SLURM on this machine without systemd: one controller, two nodes, everything in one folder.

`python tests/cluster/slurm.py <folder>` starts one for experiments and stops it at Ctrl-C.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NODES = 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONF = """
ClusterName=paft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
KillWait=30
NodeName=paft[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports}] CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=UNLIMITED State=UP
"""


def unavailable() -> str | None:
    """Why SLURM cannot be started here, or None."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    return "SLURM's daemons are started as root here" if os.geteuid() else None


@dataclass(frozen=True)
class Slurm:
    """A running one; its commands find it through `env`."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *words: str) -> str:
        """A SLURM command's output."""
        env = os.environ | self.env
        return subprocess.run(words, env=env, check=True, capture_output=True, text=True, timeout=60).stdout

    def job(self, number: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", number, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, what: str, ready: object, *, seconds: float = 90) -> None:
        """Until `ready()` is true; `TimeoutError` says what was waited for, and what the queue looks like."""
        assert callable(ready)
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come in {seconds} s\n{self.run('squeue', '--long')}")
            time.sleep(0.1)


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """SLURM with idle nodes; jobs that still run are cancelled and all daemons gone at the end."""
    with ExitStack() as stack:
        _configure(folder)
        _start_munge(folder, stack)
        slurm = Slurm(folder)
        _daemon(slurm, "slurmctld", stack)
        for node in range(1, NODES + 1):
            _daemon(slurm, "slurmd", stack, "-N", f"paft{node}")
        stack.callback(slurm.run, "scancel", "--user=root")
        slurm.wait(
            "idle nodes", lambda: slurm.run("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * NODES
        )
        yield slurm


def _configure(folder: Path) -> None:
    controller, *ports = free_ports(1 + NODES)
    host = socket.gethostname().split(".")[0]
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(
        CONF.format(
            host=host, folder=folder, controller=controller, nodes=NODES, ports=",".join(map(str, ports))
        )
    )


def _start_munge(folder: Path, stack: ExitStack) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    names = {
        "socket": "munge.socket",
        "pid-file": "munged.pid",
        "log-file": "munged.log",
        "seed-file": "munge.seed",
    }
    words = [f"--{option}={folder / name}" for option, name in names.items()]
    # the folder of a test is not as closed as munge wants a key's folder to be
    munged = _spawn(folder / "munged.out", "munged", "--foreground", "--force", f"--key-file={key}", *words)
    stack.callback(_stop, munged)
    deadline = time.monotonic() + 30
    while not (folder / "munge.socket").exists():
        if munged.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"munged did not start: {(folder / 'munged.log').read_text()}")
        time.sleep(0.05)


def _daemon(slurm: Slurm, program: str, stack: ExitStack, *words: str) -> None:
    # -D: in the foreground, so that it is our child to stop
    out = slurm.folder / f"{program}{''.join(words)}.out"
    stack.callback(_stop, _spawn(out, program, "-D", *words, **slurm.env))


def _spawn(out: Path, *command: str, **env: str) -> subprocess.Popen[bytes]:
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    with out.open("w") as file:
        return subprocess.Popen(command, env=os.environ | {"PATH": path} | env, stdout=file, stderr=file)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(num: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(num)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    place.mkdir(parents=True)
    with started(place) as running:
        print(f"export SLURM_CONF={running.env['SLURM_CONF']}", flush=True)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: sys.exit())
        signal.pause()
