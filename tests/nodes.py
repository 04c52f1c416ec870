"""A real Kubernetes on this machine: control plane, two nodes of their own containerd and kubelet, kube-proxy, CoreDNS.

    python tests/nodes.py up           # start it and leave it running; again: nothing to do
    export KUBECONFIG=$(python tests/nodes.py kubeconfig)
    python tests/nodes.py down         # end it and give everything back

It needs root, Debian's packages (`tests/install-debian.sh`) and the binaries of
`tests/toolchain.py nodes`. Everything lies in one folder below the cache; a run that was killed is
cleaned up by the next `up` or `down`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import images
import toolchain
from support.api_server.apiserver import ApiServer
from support.local.processes import Process, free_ports, wait_until
from support.real_nodes import hostsetup
from support.real_nodes.node import CLUSTER_DNS, CLUSTER_DOMAIN, Node, Place, Runtime, copy_runtime

_POD_RANGE = "10.85.0.0/16"
_LASTING_IMAGES = (images.PAUSE, images.COREDNS, images.TORCH)


def home() -> Path:
    return toolchain.home() / "e2e"


class Cluster:
    """The cluster while it runs; `server` is its API server, with kubectl and kubeconfig."""

    def __init__(self, folder: Path, *, num_nodes: int = 2) -> None:
        self.folder = folder
        clean(folder)
        folder.mkdir(parents=True)
        places = [Place(number, folder) for number in range(1, num_nodes + 1)]
        self.server = ApiServer(
            folder / "control-plane",
            address=places[0].address,
            users={"system:kube-proxy": "system:authenticated", **{place.user: "system:nodes" for place in places}},
            all_controllers=True,
        )
        self.nodes = [
            Node(place, self.server, sandbox_image=images.PAUSE, labels={"topology.kubernetes.io/zone": "a"})
            for place in places
        ]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()
        self.server.close()
        clean(self.folder)

    def load_images(self, *names: str) -> None:
        """Bring built images to every node; only blobs that a node lacks travel."""
        digests = {name: images.export(name) for name in names}
        for node in self.nodes:
            node.runtime.load(digests)

    def set_gpus(self, node: str, count: int) -> None:
        """Let a node have GPUs that do not exist."""
        self.set_extended_resource(node, "nvidia.com/gpu", count)

    def set_extended_resource(self, node: str, name: str, count: int) -> None:
        """Let a node have a device that does not exist: the kubelet keeps it, the scheduler counts it."""
        patch = [{"op": "add", "path": f"/status/capacity/{name.replace('/', '~1')}", "value": str(count)}]
        self.server.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch))

    def shared_folder(self, name: str) -> Path:
        """Make a folder of this machine that any pod may write: the disk that both nodes share."""
        path = self.folder / "shared" / name
        path.mkdir(parents=True)
        path.chmod(0o777)
        return path

    def start_process(self, name: str, command: list[object]) -> Process:
        """Start a program beside the cluster that ends with it."""
        return self.server.start_component(name, command[1:], binary=Path(str(command[0])))

    def _start(self) -> None:
        template = _template()
        hostsetup.set_kernel(self.folder)
        # The API server's address is that of the first node, so its bridge comes first.
        first = self.nodes[0].place
        hostsetup.add_bridge(first.bridge, f"{first.address}/24")
        self.server.__enter__()
        self.server.start_scheduler()
        self.server.start_controllers(["*"], self._controller_flags())
        for node in self.nodes:
            copy_runtime(template, node.runtime.root)
            node.start()
        self._start_proxy()
        self.server.apply(*_dns())
        for node in self.nodes:
            wait_until(node.is_ready, f"{node.name} is ready", timeout_s=300, poll_s=0.5)
        self.server.kubectl("rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=300s")

    def _controller_flags(self) -> list[str]:
        certificates = self.server.folder / "certificates"
        return [
            f"--root-ca-file={self.server.ca}",
            f"--service-account-private-key-file={certificates / 'service-accounts.key'}",
        ]

    def _start_proxy(self) -> None:
        healthz_port, metrics_port = free_ports(2)
        # One is enough: all nodes share this machine's network, so they share its rules.
        flags = [
            f"--kubeconfig={self.server.kubeconfig_of('system:kube-proxy')}",
            f"--hostname-override={self.nodes[0].name}",
            f"--cluster-cidr={_POD_RANGE}",
            "--proxy-mode=iptables",
            "--oom-score-adj=0",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            f"--healthz-bind-address=127.0.0.1:{healthz_port}",
            f"--metrics-bind-address=127.0.0.1:{metrics_port}",
        ]
        self.server.start_component("kube-proxy", flags)


def clean(folder: Path) -> None:
    """Clean up everything a cluster in `folder` has taken, whatever became of it."""
    if not folder.exists():
        return
    hostsetup.kill_leftovers(folder)
    hostsetup.unmount_below(folder)
    hostsetup.remove_cgroups()
    hostsetup.remove_log_links(folder)
    for place in (Place(number, folder) for number in range(1, 10)):
        hostsetup.remove_bridge(place.bridge)
    with contextlib.suppress(FileNotFoundError):
        subprocess.run([toolchain.find("kube-proxy"), "--cleanup"], capture_output=True, check=False)
    hostsetup.remove_firewall_chains()
    hostsetup.restore_kernel(folder)
    hostsetup.remove_tree(folder)


def build_images() -> None:
    """Build what every cluster starts with: minutes at first, a second when nothing has changed."""
    images.build_base()
    images.build_pause()
    images.build_coredns()
    images.build_torch()


def _template() -> Path:
    """Return the folder of a containerd that holds the images that rarely change; nodes are made by linking to it.

    Unpacking torch takes more than a minute a node; a copy by hard links takes seconds and no
    disk.
    """
    build_images()
    digests = {name: images.export(name) for name in _LASTING_IMAGES}
    key = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
    template = images.folder() / f"containerd-{key}"
    if template.exists():
        return template
    for outdated in images.folder().glob("containerd-*"):
        clean(outdated)
    work = images.folder() / "containerd-new"
    runtime = Runtime(work, sandbox_image=images.PAUSE)
    try:
        runtime.start()
        runtime.load(digests)
        runtime.stop()
        hostsetup.unmount_below(work)
        runtime.root.rename(template)
    finally:
        runtime.stop()
        clean(work)
    images.share_blobs(template / "io.containerd.content.v1.content" / "blobs")
    return template


def _dns() -> Iterator[Mapping[str, Any]]:
    """CoreDNS as a pod, with the API's own view of services."""
    meta = {"namespace": "kube-system", "name": "coredns"}
    corefile = f".:53 {{\n  errors\n  ready\n  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{\n    ttl 1\n  }}\n}}\n"
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    yield {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", **meta}],
    }
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": corefile}}
    container = {
        "name": "coredns",
        "image": images.COREDNS,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    yield {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "coredns"}},
            "template": {
                "metadata": {"labels": {"k8s-app": "coredns"}},
                "spec": {
                    "serviceAccountName": "coredns",
                    "dnsPolicy": "Default",
                    "containers": [container],
                    "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
                },
            },
        },
    }
    ports = [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "kube-system", "name": "kube-dns"},
        "spec": {"selector": {"k8s-app": "coredns"}, "clusterIP": CLUSTER_DNS, "ports": ports},
    }


# ---- by hand


def up() -> None:
    """Start a keeper that outlives this command and holds the cluster; wait until the cluster is ready."""
    state = _keeper_state()
    if _keeper_pid() is not None:
        print(f"already up; KUBECONFIG={_kubeconfig_link()}")
        return
    state.mkdir(parents=True, exist_ok=True)
    (state / "ready").unlink(missing_ok=True)
    log = state / "keeper.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, __file__, "keep"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    while not (state / "ready").exists():
        if keeper.poll() is not None:
            raise SystemExit(f"the cluster did not come up:\n{log.read_text()[-4000:]}")
        time.sleep(0.5)
    print(f"up; KUBECONFIG={_kubeconfig_link()}")


def down() -> None:
    """End the keeper, if there is one, and clean up in any case."""
    pid = _keeper_pid()
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: _keeper_pid() is None, "the keeper ends", timeout_s=60)
    clean(home())
    shutil.rmtree(_keeper_state(), ignore_errors=True)
    print("down")


def keep() -> None:
    """Hold the cluster until told to end (what `up` leaves behind)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with only_one(), Cluster(home()) as cluster:
        _kubeconfig_link().write_text(cluster.server.kubeconfig.read_text())
        (_keeper_state() / "ready").touch()
        while True:
            signal.pause()


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the machine: addresses and bridges are there once, so a second cluster must not start."""
    if os.geteuid() != 0:
        raise RuntimeError("real nodes need root: they mount, make bridges and cgroups")
    lock = toolchain.home() / "e2e.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RuntimeError(
                f"a cluster is running already (process {file.read().strip()}); "
                "`python tests/nodes.py down` ends one that `up` left"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _keeper_state() -> Path:
    return toolchain.home() / "e2e-keeper"


def _kubeconfig_link() -> Path:
    return _keeper_state() / "kubeconfig"


def _keeper_pid() -> int | None:
    """The process that `up` left, if it still lives: it holds the lock and runs this file."""
    try:
        pid = int((toolchain.home() / "e2e.lock").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if b"keep" in words and str(Path(__file__).name).encode() in words[1] else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["up", "down", "kubeconfig", "keep"])
    command = parser.parse_args().command
    if command == "kubeconfig":
        print(_kubeconfig_link())
    else:
        {"up": up, "down": down, "keep": keep}[command]()


if __name__ == "__main__":
    main()
