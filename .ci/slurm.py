"""`candlewick submit slurm` under a real Slurm, with the faults that clusters have.

`slurm.py BINARY` brings Debian's Slurm by name, starts it on the loopback with two virtual nodes on this machine, and runs eight
shards: one is killed (SIGKILL), one exits with 3, one is told to stop, one loses its node, one runs past its time limit. Then the line
that the merge names is typed, and the table has to equal that of one plain run in every column. A plan likewise.
Where Slurm cannot be had it says so and passes.
"""

import json
import os
import pathlib
import re
import resource
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
PROGRAMS = ["slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "munged"]
ROOT = pathlib.Path(__file__).resolve().parent.parent
# How many pairs take so many seconds of a core is found by timing some; of the core, because others may be at work too.
TIMED_PAIRS, SECONDS = 192, 30


def main(binary):
    binary = pathlib.Path(binary).resolve()
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path())]
    if missing and not install():
        return skip("Slurm is not here, and cannot be installed")
    if os.geteuid() != 0:
        return skip("a Slurm of one's own needs root here")
    with tempfile.TemporaryDirectory(prefix="candlewick slurm ") as folder:
        folder = pathlib.Path(folder)
        cluster = Cluster()
        try:
            if not cluster.start():
                return skip("Slurm does not start: " + cluster.why())
            work = folder / "it's $work"
            work.mkdir()
            began = time.monotonic()
            eight_shards(binary, work)
            print(f"eight shards with faults: {time.monotonic() - began:.0f} s")
            began = time.monotonic()
            plan(binary, work)
            print(f"a plan of twelve runs: {time.monotonic() - began:.0f} s")
        finally:
            cluster.stop()


def skip(why):
    print(f"SKIPPED: {why}; `candlewick submit slurm` is not tested here")


def path():
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def install():
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return False
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *PACKAGES]):
        if subprocess.run(["apt-get", *command], env=environment, **quiet).returncode:
            print("apt-get", command[0], "failed")
    return all(shutil.which(name, path=path()) for name in PROGRAMS)


class Cluster:
    """slurmctld and two slurmd of one machine, on the loopback, in a folder of their own."""

    def __init__(self):
        # Sockets want short names.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm"))

    def start(self):
        at = self.folder
        for name in ("state", "log", "run", "spool-n1", "spool-n2"):
            (at / name).mkdir()
        key = at / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        base = 20000 + os.getpid() % 20000
        (at / "slurm.conf").write_text(f"""
ClusterName=candlewick
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={base}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={at}/run/munge.socket
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool-%n
SlurmctldPidFile={at}/run/slurmctld.pid
SlurmdPidFile={at}/run/slurmd-%n.pid
SlurmctldLogFile={at}/log/slurmctld.log
SlurmdLogFile={at}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
MailProg=/bin/true
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,requeue_delay=1
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={base + 1} CPUs=1 RealMemory=2000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={base + 2} CPUs=1 RealMemory=2000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
""")
        os.environ["PATH"] = path()
        os.environ["SLURM_CONF"] = str(at / "slurm.conf")
        run, log = at / "run", at / "log"
        self.daemon("munged", "--force", f"--key-file={key}", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid",
                    f"--log-file={log}/munged.log", f"--seed-file={run}/munge.seed")
        self.daemon("slurmctld")
        for node in ("n1", "n2"):
            self.daemon("slurmd", "-N", node)
        for _ in range(100):
            told = tell("sinfo", "-h", "-o", "%T %D", check=False)
            if told.split() == ["idle", "2"]:
                return True
            time.sleep(0.2)
        return False

    def daemon(self, *command):
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def why(self):
        logs = [log.read_text(errors="replace").splitlines()[-3:] for log in (self.folder / "log").glob("*.log")]
        return " | ".join(line for log in logs for line in log)

    def stop(self):
        subprocess.run(["scancel", "--me"], stderr=subprocess.DEVNULL)
        for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged"):
            try:
                os.kill(int((self.folder / "run" / f"{name}.pid").read_text()), signal.SIGTERM)
            except (OSError, ValueError):
                pass
        time.sleep(1)
        # A step whose daemon was killed does not end by itself.
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "cwd").startswith(str(self.folder)):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)


def tell(*command, check=True, **more):
    output = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    if check and output.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))}: exit {output.returncode}\n{output.stdout}{output.stderr}")
    return output.stdout + ("" if check else output.stderr)


def wait(what, done, seconds=240):
    ends = time.monotonic() + seconds
    while not (found := done()):
        if time.monotonic() > ends:
            raise SystemExit(f"waited {seconds} s for {what}\n{tell('squeue', check=False)}")
        time.sleep(0.1)
    return found


def in_queue():
    return tell("squeue", "-h", "-r", "-o", "%F %K %T %N")


def processes(*words):
    """The processes whose command line has these words in a row."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        if line[-len(words):] == [os.fsencode(str(word)) for word in words]:
            found.append(int(entry.parent.name))
    return found


def rows(binary, table):
    """All rows of a table, every column."""
    return tell(binary, "show", table, "--csv")


def merge_log(submission, number):
    return (submission / "logs" / f"merge-{number}.log").read_text()


def resubmit(binary, text, folder):
    """Types the line that a merge names."""
    line = re.search(r"`candlewick (submit slurm .*? --run)` runs exactly these", text)
    assert line, text
    return tell("bash", "-c", f"{shlex.quote(str(binary))} {line[1]}", cwd=folder)


def eight_shards(binary, folder):
    sites = ["patch", "--sites", "z:pos,q:pos,k:pos,v:pos,resid_pre"]
    used = lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    before = used()
    tell(binary, *sites, "--n-pairs", TIMED_PAIRS, "--out", "timed.parquet", cwd=folder)
    pairs = max(16, int(TIMED_PAIRS * SECONDS / (used() - before)))
    command = [*sites, "--n-pairs", pairs]
    plain = subprocess.Popen([binary, "--threads", "1", *map(str, command), "--out", "whole.parquet"], cwd=folder, stdout=subprocess.DEVNULL)

    # Faults are in the template, and act as long as a file is there.
    faults = folder / "faults"
    faults.touch()
    template = folder / "template.sh"
    template.write_text(f"""#!/bin/bash
#SBATCH --comment="faults on purpose"
if [ -e {shlex.quote(str(faults))} ]; then
  case $SLURM_ARRAY_TASK_ID in
    1) trap '' USR1; sleep 600 ;;
    3) exit 3 ;;
  esac
fi
""")
    told = tell(binary, "submit", "slurm", "--shards", 8, "--time", "1", "--mem", "500M", "--cpus", 1, "--template", template,
                "--run", "--", *command, "--out", "merged table.parquet", cwd=folder)
    print(told.strip())
    submission = folder / "merged table.submission"
    job = re.search(r"submitted: job (\d+)", told)[1]
    # A second submission of what is in the queue is refused.
    again = tell(binary, "submit", "slurm", submission, "--run", check=False)
    assert "are in the queue" in again, again

    # One process is killed without a word.
    wait("unit 2", (submission / "units" / "2.json").exists)
    [killed] = processes("unit", "--time-limit", submission, 2)
    os.kill(killed, signal.SIGKILL)
    # One is told that its time is over, by the signal that Slurm sends before the limit: it goes back into the queue.
    [told] = wait("unit 4", lambda: processes("unit", "--time-limit", submission, 4))
    parts = submission / "parts"
    wait("a finished part of unit 4", lambda: list(parts.glob("*.shard-4-of-8.parquet.parts/*/part-*")), 60)
    # It is held until the signal has gone out, so that it does not end before.
    os.kill(told, signal.SIGSTOP)
    # Slurm 22.05 delivers it, and then complains and tries again where other tasks of the array still wait.
    asking = subprocess.Popen(["scancel", "--batch", "--signal=USR1", f"{job}_4"], stderr=subprocess.DEVNULL)
    time.sleep(1)
    asking.kill()
    asking.wait()
    os.kill(told, signal.SIGCONT)
    # One loses its node.
    node = wait("unit 5", lambda: processes("unit", "--time-limit", submission, 5)
                and re.search(rf"^{job} 5 RUNNING (n\d)", in_queue(), re.M))[1]
    tell("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    wait("unit 5 to leave its node", lambda: not re.search(rf"^{job} 5 RUNNING {node}", in_queue(), re.M))
    time.sleep(1)
    # It may have come back by itself.
    tell("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    # What is queued again waits two minutes by default.
    for task in (4, 5):
        tell("scontrol", "update", f"JobId={job}_{task}", "StartTime=now", check=False)
    print(tell(binary, "submit", "status", submission).strip())
    wait("the array and its merge", lambda: not in_queue().strip())

    print(tell(binary, "submit", "status", submission).strip())
    said = merge_log(submission, 1)
    print(said.strip())
    assert "lack units 1, 2, 3;" in said, said
    assert "1/8 is missing (Slurm: TIMEOUT" in said and "2/8 was killed (Slurm: " in said and "exit 3)" in said, said
    assert not (folder / "merged table.parquet").exists()
    restarted = tell("scontrol", "show", "job", f"{job}_4", check=False)
    assert "Restarts=1" in restarted, restarted

    faults.unlink()
    print(resubmit(binary, said, folder).strip())
    wait("the resubmission", lambda: not in_queue().strip())
    said = merge_log(submission, 2)
    assert "merged" in said, said
    assert plain.wait() == 0
    assert rows(binary, folder / "merged table.parquet") == rows(binary, folder / "whole.parquet"), "the tables differ"
    manifest = json.loads((submission / "submission.json").read_text())
    assert manifest["rounds"][1]["units"] == [1, 2, 3], manifest["rounds"]


PLAN = """
models = ["embedded", {model}]
tasks = [
  {{ task = "embedded", name = "first", flags = "--template 0" }},
  {{ task = "embedded", name = "second", flags = "--template 1" }},
  "induction",
]
n_pairs = 4
out = "{out}"
[methods]
heads = "patch --sites z:pos"
writes = "logits --by head"
"""


def plan(binary, folder):
    model = json.dumps(str(ROOT / "models" / "embedded"))
    for name in ("alone", "cluster"):
        (folder / f"{name}.toml").write_text(PLAN.format(model=model, out=name))
    tell(binary, "run", "alone.toml", cwd=folder)
    faults = folder / "faults"
    faults.touch()
    template = folder / "template.sh"
    template.write_text(f"[ -e {shlex.quote(str(faults))} ] && [ $SLURM_ARRAY_TASK_ID = 5 ] && exit 3\n")
    print(tell(binary, "submit", "slurm", "cluster.toml", "--shards", 2, "--time", "5", "--mem", "500M", "--template", template,
               "--run", cwd=folder).strip())
    submission = folder / "cluster.submission"
    wait("the plan and its merge", lambda: not in_queue().strip())
    said = merge_log(submission, 1)
    assert "1 of 12 tables lack units 5;" in said, said
    faults.unlink()
    print(resubmit(binary, said, folder).strip())
    wait("the resubmission", lambda: not in_queue().strip())
    assert "all 12 tables are there" in merge_log(submission, 2), merge_log(submission, 2)
    alone, cluster = folder / "alone", folder / "cluster"
    tables = sorted(table.relative_to(alone) for table in alone.glob("run_model=*/*/*/part-*.parquet"))
    assert len([table for table in tables if len(table.name) == len("part-00000.parquet")]) == 12, tables
    for table in tables:
        assert rows(binary, alone / table) == rows(binary, cluster / table), f"{table} differs"
    assert (cluster / "summary.parquet").is_file()
    # What is there is not run again.
    again = tell(binary, "run", "cluster.toml", cwd=folder)
    assert again.count("was finished") == 12, again


if __name__ == "__main__":
    main(sys.argv[1])
