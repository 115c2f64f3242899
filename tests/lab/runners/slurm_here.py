"""Slurm on this machine: munged, slurmctld and slurmd with a separate configuration, which end with the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from lab.runners.elsewhere import ended, free_port

_CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Daemons:
    """Slurm's processes, by name."""

    def __init__(self, folder: Path, commands: Mapping[str, Sequence[str]]) -> None:
        self._folder, self._commands = folder, commands
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self) -> None:
        """Start the daemons that do not run; later starts continue from the saved state."""
        for name, command in self._commands.items():
            before = self.running.get(name)
            if before is None or before.poll() is not None:
                words = [word for word in command if before is None or word != "-c"]
                with open(self._folder / f"{name}.out", "a") as log:
                    self.running[name] = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
                time.sleep(1)

    def end(self) -> None:
        for process in reversed(self.running.values()):
            ended(process)


@contextlib.contextmanager
def slurm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Daemons]:
    """Skips with a reason where it is not installed, or this is not root."""
    for program in ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:" + os.environ.get("PATH", "")) is None:
            pytest.skip(f"{program} is not installed: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm is started by root alone")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    text = _CONFIGURATION.format(host=host, folder=folder, controller=free_port(), node=free_port())
    (folder / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", f"/usr/sbin:{os.environ['PATH']}")
    own = {name: str(folder / f"munge.{name}") for name in ("socket", "pid", "log", "seed")}
    files = [f"--key-file={key}", *(f"--{name}-file={own[name]}" for name in ("pid", "log", "seed"))]
    commands = {
        "munged": ["munged", "--foreground", "--force", f"--socket={own['socket']}", *files],
        "slurmctld": ["slurmctld", "-D", "-c"],
        "slurmd": ["slurmd", "-D", "-c", "-N", host],
    }
    daemons = Daemons(folder, commands)
    try:
        daemons.begin()
        _wait_until_idle(folder)
        yield daemons
    finally:
        daemons.end()


def _wait_until_idle(folder: Path) -> None:
    end = time.monotonic() + 90
    while True:
        told = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        if told.stdout.strip() == "idle":
            return
        if time.monotonic() > end:
            logs = "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))
            pytest.fail(f"Slurm did not begin: {told.stdout} {told.stderr}\n{logs}")
        time.sleep(0.5)
