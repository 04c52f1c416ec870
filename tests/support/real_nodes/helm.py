"""The real helm, against a cluster of the tests."""

from __future__ import annotations

import subprocess

import nodes
import toolchain

_SYSTEM = "pipelinejob-system"


def helm(cluster: nodes.Cluster, *arguments: object) -> str:
    """Run helm and give what it prints.

    Raises RuntimeError with its complaint and the operator's state.
    """
    command = [toolchain.find("helm"), f"--kubeconfig={cluster.server.kubeconfig}", *arguments]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if result.returncode:
        state = cluster.server.kubectl("describe", "pods", "-n", _SYSTEM)
        logs = cluster.server.kubectl("logs", "-n", _SYSTEM, "--all-pods", "-l", "app.kubernetes.io/name", "--tail=40")
        raise RuntimeError(f"helm {' '.join(map(str, arguments))}: {result.stderr}\n{state[-3000:]}\n{logs}")
    return result.stdout
