"""One real node: a containerd and a kubelet of its own, with their own folder, network, cgroup and address."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import images
import toolchain
from support.api_server.apiserver import ApiServer
from support.local.processes import Process, free_ports, wait_until
from support.real_nodes import hostsetup

CLUSTER_DNS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
_CNI_PROGRAMS = Path("/usr/lib/cni")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands: its number decides everything that must not clash with another's."""

    number: int
    home: Path

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def folder(self) -> Path:
        return self.home / self.name

    @property
    def subnet(self) -> str:
        return f"10.85.{self.number}.0/24"

    @property
    def address(self) -> str:
        return f"10.85.{self.number}.1"

    @property
    def bridge(self) -> str:
        return f"pje2e{self.number}"

    @property
    def user(self) -> str:
        return f"system:node:{self.name}"


class Runtime:
    """A containerd with everything it writes below `folder`."""

    def __init__(self, folder: Path, *, sandbox_image: str) -> None:
        self._folder = folder
        self.root = folder / "containerd"
        self.socket = folder / "containerd.sock"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "containerd.toml"
        config.write_text(self._config(sandbox_image))
        self.process = Process("containerd", ["containerd", "--config", config], log=folder / "logs" / "containerd.log")

    def start(self) -> None:
        self.process.start()
        wait_until(lambda: self.ctr("version"), f"containerd in {self._folder}", timeout_s=60)

    def stop(self) -> None:
        self.process.stop(signal.SIGTERM, grace_s=20)

    def ctr(self, *arguments: object) -> str:
        command = ["ctr", "--address", self.socket, "--namespace", "k8s.io", *arguments]
        result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"ctr {' '.join(map(str, arguments))}: {result.stderr.strip()}\n{self.process.tail(5)}")
        return result.stdout

    def blobs(self) -> set[str]:
        """The digests that the content store holds."""
        store = self.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
        return {f"sha256:{path.name}" for path in store.iterdir()} if store.exists() else set()

    def load(self, digests: Mapping[str, str]) -> None:
        """Import images (name to manifest digest) out of the layout; blobs that are here already do not travel."""
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", "images", "import", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as importing:
            assert importing.stdin is not None
            images.archive(digests, self.blobs(), importing.stdin)
            importing.stdin.close()
        if importing.returncode:
            raise RuntimeError(f"ctr images import: exit {importing.returncode}\n{self.process.tail(5)}")

    def _config(self, sandbox_image: str) -> str:
        # restrict_oom_score_adj: inside a container without CAP_SYS_RESOURCE every sandbox fails
        # otherwise.
        return f"""
version = 2
root = "{self.root}"
state = "{self._folder / "state"}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
                    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self._folder / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_CNI_PROGRAMS}"
    conf_dir = "{self._folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


class Node:
    """A kubelet on a `Runtime`; `start` gives back at once, `is_ready` tells when the API server calls it ready."""

    def __init__(self, place: Place, server: ApiServer, *, sandbox_image: str, labels: dict[str, str]) -> None:
        self.place = place
        self.name = place.name
        self._server = server
        self._labels = labels
        self.runtime = Runtime(place.folder, sandbox_image=sandbox_image)
        self._kubelet: Process | None = None

    def start(self) -> None:
        place = self.place
        hostsetup.add_bridge(place.bridge, f"{place.address}/24")
        self._write("cni/10-bridge.conflist", _network(place))
        self.runtime.start()
        self._kubelet = Process("kubelet", self._kubelet_command(), log=place.folder / "logs" / "kubelet.log")
        self._kubelet.start()

    def is_ready(self) -> bool:
        if self._kubelet is None or not self._kubelet.alive:
            raise RuntimeError(
                f"kubelet of {self.name} ended:\n{self._kubelet.tail() if self._kubelet else 'not started'}"
            )
        conditions = self._server.get("node", self.name)["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def stop(self) -> None:
        if self._kubelet is not None:
            self._kubelet.stop(signal.SIGKILL)
        self.runtime.stop()

    def _kubelet_command(self) -> Sequence[object]:
        labels = ",".join(f"{key}={value}" for key, value in self._labels.items())
        return [
            toolchain.find("kubelet"),
            f"--config={self._write('kubelet.json', self._kubelet_configuration())}",
            f"--kubeconfig={self._server.kubeconfig_of(self.place.user)}",
            f"--root-dir={self.place.folder / 'kubelet'}",
            f"--cert-dir={self.place.folder / 'pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.place.address}",
            f"--node-labels={labels}",
            "--v=2",
        ]

    def _kubelet_configuration(self) -> dict[str, Any]:
        place, (healthz_port,) = self.place, free_ports(1)
        serving = self._server.authority.issue(place.user, hosts=(place.address, place.name))
        resolver = place.folder / "resolv.conf"
        resolver.write_text(f"nameserver {CLUSTER_DNS}\n")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            # Both kubelets serve the usual port, each on its own address.
            "address": place.address,
            "port": 10250,
            "healthzPort": healthz_port,
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._server.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{self.runtime.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": hostsetup.add_cgroup(place.name),
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": False,
            "clusterDNS": [CLUSTER_DNS],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": str(resolver),
            "podLogsDir": str(place.folder / "pods"),
            "volumePluginDir": str(place.folder / "volume-plugins"),
            "maxPods": 60,
            "nodeStatusUpdateFrequency": "5s",
            # A test machine's disk is small and shared; nothing is evicted or collected for it.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
        }

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        path = self.place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))
        return path


def copy_runtime(template: Path, root: Path) -> None:
    """Return a containerd the images of another, which is not running.

    Blobs and snapshots never change, so they are hard links; the databases do, so they are copies.
    """
    subprocess.run(["cp", "--archive", "--link", template, root], check=True)
    for database in template.rglob("*.db"):
        copy = root / database.relative_to(template)
        copy.unlink()
        shutil.copy2(database, copy)


def _network(place: Place) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": place.bridge,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": place.subnet, "gateway": place.address}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(place.folder / "addresses"),
        },
    }
    return {"cniVersion": "0.4.0", "name": place.bridge, "plugins": [bridge]}
