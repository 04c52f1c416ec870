"""What real nodes need of the machine, and how to give it back: bridges, cgroups, kernel settings, mounts, processes.

Everything can be undone without knowing how it came to be: by the folder the nodes live in and by
the names they use. So a run that was killed is cleaned up by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

CGROUP = "pipelinejob-e2e"
_CGROUPS = Path("/sys/fs/cgroup")
_SYSTEM = Path("/proc/sys")

# Pods of different nodes reach each other by routing, services by iptables on bridges.
_NEEDED = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}
_CHANGED_BY_KUBELET = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")


def add_bridge(name: str, address: str) -> None:
    """Make a bridge that has the first address of a node's pods: their gateway, and the node's own address."""
    remove_bridge(name)
    _ip("link", "add", name, "type", "bridge")
    _ip("addr", "add", address, "dev", name)
    _ip("link", "set", name, "up")


def remove_bridge(name: str) -> None:
    subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)


def set_kernel(folder: Path) -> None:
    """Set what the nodes need, and note what it was before."""
    saved = folder / "kernel.json"
    if not saved.exists():
        before = {key: _read(key) for key in (*_NEEDED, *_CHANGED_BY_KUBELET) if (_SYSTEM / key).exists()}
        saved.write_text(json.dumps(before))
    subprocess.run(["modprobe", "-a", "br_netfilter", "overlay"], capture_output=True, check=False)  # often built in
    for key, value in _NEEDED.items():
        if not (_SYSTEM / key).exists():
            raise RuntimeError(f"the kernel has no {key.replace('/', '.')}; real nodes need it (module br_netfilter)")
        if _read(key) != value:
            (_SYSTEM / key).write_text(value)


def restore_kernel(folder: Path) -> None:
    saved = folder / "kernel.json"
    if saved.exists():
        for key, value in json.loads(saved.read_text()).items():
            if _read(key) != value:
                (_SYSTEM / key).write_text(value)
        saved.unlink()


def add_cgroup(name: str) -> str:
    """Make the cgroup below which a node's kubelet keeps its pods; give its name as kubelet wants it."""
    path = Path(CGROUP) / name
    if (_CGROUPS / "cgroup.controllers").exists():
        for parent in (_CGROUPS, _CGROUPS / CGROUP):
            parent.mkdir(exist_ok=True)
            for controller in (parent / "cgroup.controllers").read_text().split():
                with suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        (_CGROUPS / path).mkdir(exist_ok=True)
        return f"/{path}"
    for controller in _v1_controllers():
        for folder in (controller / CGROUP, controller / path):
            folder.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (folder / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())
    return f"/{path}"


def kill_leftovers(folder: Path) -> None:
    """End every process of the nodes in `folder`: containers by their cgroup, the rest by their command line."""
    for attempt in range(50):
        left = {*_in_cgroups(), *_speaking_of(folder)} - {os.getpid(), os.getppid()}
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1 if attempt < 10 else 0.3)  # the kernel takes a moment to bury them
    raise RuntimeError(f"processes {sorted(left)} of {folder} do not end")


def remove_cgroups() -> None:
    for controller in _hierarchies():
        for folder in sorted((controller / CGROUP).rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        with suppress(FileNotFoundError):
            (controller / CGROUP).rmdir()


def remove_firewall_chains() -> None:
    """Remove what `kube-proxy --cleanup` leaves."""
    rules = [("filter", "-D", chain, "-j", "KUBE-FIREWALL") for chain in ("INPUT", "OUTPUT")]
    rules += [("filter", flag, "KUBE-FIREWALL") for flag in ("-F", "-X")]
    rules += [(table, "-X", "KUBE-PROXY-CANARY") for table in ("mangle", "nat", "filter")]
    for table, *rule in rules:
        subprocess.run(["iptables", "--wait", "--table", table, *rule], capture_output=True, check=False)


def unmount_below(folder: Path) -> None:
    """Unmount everything below `folder`, the deepest first."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in sorted((path for path in mounted if path.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", path], capture_output=True, check=False)


def remove_log_links(folder: Path) -> None:
    """Remove the links kubelet makes in /var/log/containers, whose place cannot be chosen."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(folder) in str(link.readlink()):
            link.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder nothing is mounted in.

    Raises RuntimeError if something still is: the files below a mount are somebody else's.
    """
    mounts = Path("/proc/self/mountinfo").read_text()
    if f" {folder}/" in mounts:
        raise RuntimeError(f"something is still mounted below {folder}; see `grep {folder} /proc/self/mountinfo`")
    shutil.rmtree(folder, ignore_errors=True)


def _in_cgroups() -> set[int]:
    pids: set[int] = set()
    for controller in _hierarchies():
        for file in (controller / CGROUP).rglob("cgroup.procs"):
            with suppress(OSError):
                pids.update(map(int, file.read_text().split()))
    return pids


def _speaking_of(folder: Path) -> set[int]:
    """Return the nodes' own processes: shims, kubelets, control plane; all name the folder in their arguments."""
    programs = ("containerd", "kube", "etcd", "prometheus")
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if Path(words[0]).name.startswith(programs) and any(f"{folder}/" in word for word in words):
                    found.add(int(entry.name))
    return found


def _hierarchies() -> list[Path]:
    """All places where cgroups of ours can be: runc makes them beside v1's controllers as well."""
    return [_CGROUPS, *(path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())]


def _v1_controllers() -> Iterable[Path]:
    """The folders in which cgroup v1 mounts its controllers; none on a machine with cgroup v2 alone."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return []
    return [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink() and path.name != "unified"]


def _read(key: str) -> str:
    return (_SYSTEM / key).read_text().strip()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
