"""A real etcd and kube-apiserver on loopback, in seconds; by choice with scheduler and controller-manager.

with ApiServer(folder) as server:
    server.kubectl("get", "namespaces")
    server.stop(); server.start()      # an outage: same port, same data
"""

from __future__ import annotations

import http
import http.client
import json
import secrets
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import toolchain
from support.api_server.certificates import Authority
from support.local.processes import Process, free_ports, wait_until

ADMIN = "admin"
_SERVICE_RANGE = "10.96.0.0/16"
_SERVICE_IP = "10.96.0.1"

# Without kubelets only these loops matter: deletion of namespaces and of what has lost its owner.
# Admission that relies on a controller: to make default accounts, and to take a new node's taint
# off.
_NEEDING_CONTROLLERS = ("ServiceAccount", "TaintNodesByCondition")
DELETING_CONTROLLERS = ("namespace-controller", "garbage-collector-controller")


class ApiServer:
    """One etcd and one kube-apiserver, with an administrator's token and kubeconfig.

    `users` maps further user names to their groups; `kubeconfig_of` gives them a kubeconfig.
    `address` is where the server listens besides loopback, for clusters whose pods must reach it.
    `all_controllers` says that the whole controller-manager will run, as on a real cluster.
    """

    def __init__(
        self,
        folder: Path,
        *,
        arguments: Iterable[str] = (),
        users: Mapping[str, str] | None = None,
        address: str = "127.0.0.1",
        all_controllers: bool = False,
    ) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.address = address
        self.port, self._etcd_port, self._peer_port = free_ports(3)
        self.authority = Authority(folder / "certificates")
        self._users = {ADMIN: "system:masters", **(users or {})}
        self._tokens = {user: secrets.token_hex(16) for user in self._users}
        disabled = [] if all_controllers else [f"--disable-admission-plugins={','.join(_NEEDING_CONTROLLERS)}"]
        self._arguments = [*arguments, *disabled]
        self._write_credentials()
        self._etcd = self._process("etcd", self._etcd_flags())
        self._server = self._process("kube-apiserver", self._server_flags())
        self._components: dict[str, Process] = {}

    # ---- what a client needs

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    @property
    def token(self) -> str:
        return self._tokens[ADMIN]

    @property
    def ca(self) -> Path:
        return self.authority.file

    @property
    def kubeconfig(self) -> Path:
        return self.kubeconfig_of(ADMIN)

    def kubeconfig_of(self, user: str, *, url: str | None = None) -> Path:
        """Write and give the kubeconfig of a user; `url` leads through a proxy in front of the server."""
        path = (
            self.folder / "kubeconfigs" / f"{user.replace(':', '-')}{'' if url is None else '-' + url.split(':')[-1]}"
        )
        path.parent.mkdir(exist_ok=True)
        # Whole or not at all: another thread's kubectl may be reading it, and would ask localhost
        # if it were empty.
        beside = path.with_name(f"{path.name}.{threading.get_ident()}")
        beside.write_text(json.dumps(_kubeconfig(url or self.url, self.ca, user, self._tokens[user])))
        beside.replace(path)
        return path

    def kubectl(self, *arguments: object, stdin: str = "") -> str:
        """Run kubectl as administrator and give what it prints.

        Raises RuntimeError with its complaint.
        """
        command = [toolchain.find("kubectl"), f"--kubeconfig={self.kubeconfig}", *map(str, arguments)]
        result = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
        if result.returncode:
            raise RuntimeError(f"kubectl {' '.join(map(str, arguments))}: {result.stderr.strip()}")
        return result.stdout

    def get(self, *arguments: object) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=_list(objects))

    # ---- life

    def __enter__(self) -> Self:
        try:
            self._etcd.start()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, *, timeout_s: float = 60) -> None:
        """Start the API server, again after `stop`, on the same port; give back once it is ready."""
        self._server.start()
        try:
            wait_until(self._is_ready, "kube-apiserver ready", timeout_s=timeout_s, poll_s=0.05)
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self._server.tail()}\n{self._etcd.tail(5)}") from error

    def stop(self) -> None:
        """End the API server alone, at once, as a crash would: connections break, etcd keeps the data."""
        self._server.stop(signal.SIGKILL)

    def close(self) -> None:
        for component in self._components.values():
            component.stop(signal.SIGKILL)
        self.stop()
        self._etcd.stop(signal.SIGKILL)

    # ---- further components

    def start_scheduler(self) -> None:
        self.start_component(
            "kube-scheduler", [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
        )

    def start_controllers(
        self, controllers: Iterable[str] = DELETING_CONTROLLERS, arguments: Iterable[str] = ()
    ) -> None:
        flags = [
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            f"--controllers={','.join(controllers)}",
            "--use-service-account-credentials=false",
            *arguments,
        ]
        self.start_component("kube-controller-manager", flags)

    def start_component(self, name: str, flags: Iterable[object], *, binary: Path | None = None) -> Process:
        """Start a process that ends with this server; its log lies beside the server's."""
        component = self._components.setdefault(name, self._process(name, flags, binary=binary))
        component.start()
        return component

    def component(self, name: str) -> Process:
        return self._components[name]

    # ---- below: how the two are told what to do

    def _process(self, name: str, flags: Iterable[object], *, binary: Path | None = None) -> Process:
        command = [binary or toolchain.find(name), *flags]
        return Process(name, command, log=self.folder / "logs" / f"{name}.log")

    def _etcd_flags(self) -> list[str]:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _server_flags(self) -> list[str]:
        hosts = ("127.0.0.1", "localhost", self.address, _SERVICE_IP, "kubernetes", "kubernetes.default.svc")
        serving = self.authority.issue("kube-apiserver", hosts=tuple(dict.fromkeys(hosts)))
        tokens = self.authority.issue("service-accounts")
        to_kubelets = self.authority.issue("kube-apiserver-to-kubelets", organization="system:masters")
        reachable = self.address != "127.0.0.1"
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--bind-address={'0.0.0.0' if reachable else '127.0.0.1'}",
            f"--advertise-address={self.address}",
            # A loopback address is no valid endpoint of the service `kubernetes`, and nobody would
            # use it.
            *([] if reachable else ["--endpoint-reconciler-type=none"]),
            f"--secure-port={self.port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.file}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            # OpenShift's, and whoever turns it on: who makes an owned object needs a right to its
            # owner's finalizers.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={tokens.certificate}",
            f"--service-account-signing-key-file={tokens.key}",
            f"--service-cluster-ip-range={_SERVICE_RANGE}",
            "--profiling=false",
            # `kubectl logs` and `exec`, where there are kubelets.
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={self.authority.file}",
            f"--kubelet-client-certificate={to_kubelets.certificate}",
            f"--kubelet-client-key={to_kubelets.key}",
            # Pod Security decides who may be privileged, not this switch.
            "--allow-privileged=true",
            *self._arguments,
        ]

    def _write_credentials(self) -> None:
        rows = [f'{self._tokens[user]},{user},{user},"{groups}"' for user, groups in self._users.items()]
        path = self.folder / "tokens.csv"
        path.touch(mode=0o600)
        path.write_text("\n".join(rows) + "\n")

    def _is_ready(self) -> bool:
        if not self._server.alive:
            raise RuntimeError(f"kube-apiserver ended: {self._server.tail()}")
        context = ssl.create_default_context(cafile=str(self.ca))
        headers = {"Authorization": f"Bearer {self.token}"}
        for path in ("/readyz", "/api/v1/namespaces/default"):
            with closing(http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=5)) as connection:
                connection.request("GET", path, headers=headers)
                if connection.getresponse().status != http.HTTPStatus.OK:
                    return False
        return True


def _kubeconfig(url: str, ca: Path, user: str, token: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    }


def _list(objects: Iterable[Mapping[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
