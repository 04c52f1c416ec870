"""The images of the tests on real nodes: a base made of Debian packages, and the shipped Containerfiles built on it.

There is no registry to pull from, so the base is made by debootstrap, once. buildah builds the
Containerfiles with its layer cache, so the layer with torch is made once for each set of
requirements and the project's own thin layer on every run. Each image is then written into one OCI
layout folder, where a layer that is there already (torch's 5 GB) stays.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import toolchain

ROOT = Path(__file__).parents[1]
BASE = "localhost/pipelinejob/base:bookworm"
PAUSE = "localhost/pipelinejob/pause:test"
COREDNS = "localhost/pipelinejob/coredns:test"
TRAINER = "localhost/pipelinejob/trainer:test"
OPERATOR = "localhost/pipelinejob/operator:test"
# The trainer's dependencies without the project: it only changes with the requirements.
TORCH = "localhost/pipelinejob/torch:test"

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_SUITE = "bookworm"
_PIP_SETTINGS = ("index-url", "extra-index-url", "cert", "trusted-host")
_PACKAGES = ("python3", "python3-venv", "ca-certificates")


def folder() -> Path:
    return toolchain.home() / "images"


def layout() -> Path:
    """The OCI layout that holds every image built so far."""
    return folder() / "layout"


def build_base() -> None:
    """Make the image that the Containerfiles' BASE names: Debian with Python, nothing else."""
    if _has(BASE):
        return
    root = folder() / "base"
    shutil.rmtree(root, ignore_errors=True)
    mirror = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
    _run("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, root, mirror)
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / leftover, ignore_errors=True)
    _commit("scratch", BASE, root=root, command=["/usr/bin/python3"])
    shutil.rmtree(root)


def build_pause() -> None:
    """What holds a pod's namespaces open: any program that sleeps."""
    if not _has(PAUSE):
        _commit(BASE, PAUSE, command=["/bin/sleep", "infinity"])


def build_coredns() -> None:
    """CoreDNS alone in an empty image: the binary is static."""
    if _has(COREDNS):
        return
    root = folder() / "coredns"
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(toolchain.find("coredns"), root / "coredns")
    _commit("scratch", COREDNS, root=root, command=["/coredns"])
    shutil.rmtree(root)


def build_torch() -> None:
    """The trainer's dependencies, as the Containerfile's stage of that name: minutes at first, then nothing."""
    _from_containerfile("trainer", TORCH, "--target", "dependencies")


def build_trainer() -> None:
    _from_containerfile("trainer", TRAINER)


def build_operator() -> None:
    _from_containerfile("operator", OPERATOR)


def export(image: str) -> str:
    """Write an image into the layout; give its manifest's digest. A layer that is there already is not read again.

    `buildah push` would read all of torch on every run, so the layers are taken from where buildah
    keeps them.
    """
    described = json.loads(_run(*_buildah("inspect"), "--type=image", image))
    layers = [_export_layer(diff) for diff in described["OCIv1"]["rootfs"]["diff_ids"]]
    rootfs = {"type": "layers", "diff_ids": layers}
    configuration = _write_blob({**described["OCIv1"], "rootfs": rootfs, "history": []})
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _descriptor(configuration, "application/vnd.oci.image.config.v1+json"),
        "layers": [_descriptor(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
    }
    return _write_blob(manifest)


def _export_layer(diff: str) -> str:
    """Return the blob of a layer; its digest differs from buildah's where the tar is ours."""
    note = layout() / "layers" / diff.replace(":", "-")
    if note.exists() and blob(note.read_text()).exists():
        return note.read_text()
    note.parent.mkdir(parents=True, exist_ok=True)
    layers = json.loads((_storage() / "overlay-layers" / "layers.json").read_text())
    held = next(layer["id"] for layer in layers if layer["diff-digest"] == diff)
    digest = _tar(_storage() / "overlay" / held / "diff")
    note.write_text(digest)
    return digest


def _tar(folder: Path) -> str:
    """Pack a layer's folder into a blob."""
    store = layout() / "blobs" / "sha256"
    store.mkdir(parents=True, exist_ok=True)
    work = store.parent / "new.tar"
    with tarfile.open(work, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            _add(tar, path, path.relative_to(folder))
    with work.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()
    work.rename(store / name)
    return f"sha256:{name}"


def _add(tar: tarfile.TarFile, path: Path, name: Path) -> None:
    """Add one file; what overlayfs notes as deleted is written as OCI wants it: an empty file with a telling name."""
    if path.is_char_device():
        tar.addfile(tarfile.TarInfo(str(name.parent / f".wh.{name.name}")))
        return
    tar.add(path, str(name), recursive=False)
    if path.is_dir() and not path.is_symlink() and "trusted.overlay.opaque" in os.listxattr(path):
        tar.addfile(tarfile.TarInfo(str(name / ".wh..wh..opq")))


def _write_blob(value: object) -> str:
    content = json.dumps(value, sort_keys=True).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blob(digest).write_bytes(content)
    return digest


def blobs(digest: str) -> list[str]:
    """Return the digests of everything an image is made of: manifest, configuration, layers."""
    manifest = json.loads(blob(digest).read_text())
    return [digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]


def blob(digest: str) -> Path:
    return layout() / "blobs" / digest.replace(":", "/")


def archive(images: Mapping[str, str], present: Iterable[str], output: IO[bytes]) -> None:
    """Write an OCI archive of `images` (name to digest) that leaves out the blobs a content store has already."""
    index = {"schemaVersion": 2, "manifests": [_entry(name, digest) for name, digest in images.items()]}
    wanted = {digest for manifest in images.values() for digest in blobs(manifest)} - set(present)
    with tarfile.open(fileobj=output, mode="w|") as tar:
        for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            content = json.dumps(value).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for digest in sorted(wanted):
            tar.add(blob(digest), f"blobs/{digest.replace(':', '/')}")


def share_blobs(store: Path) -> None:
    """Replace the layout's blobs by hard links to those of a content store: the same bytes need no second place."""
    for algorithm in store.iterdir():
        for held in algorithm.iterdir():
            ours = layout() / "blobs" / algorithm.name / held.name
            if ours.exists() and not ours.samefile(held):
                ours.unlink()
                ours.hardlink_to(held)


def _entry(name: str, digest: str) -> dict[str, object]:
    return {**_descriptor(digest, _MANIFEST), "annotations": {"io.containerd.image.name": name}}


def _descriptor(digest: str, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": blob(digest).stat().st_size}


def _commit(source: str, image: str, *, command: list[str], root: Path | None = None) -> None:
    container = _run(*_buildah("from"), "--quiet", "--pull-never", source).strip()
    try:
        if root is not None:
            _run(*_buildah("add"), "--quiet", container, root, "/")
        _run(*_buildah("config"), "--entrypoint", json.dumps(command), container)
        _run(*_buildah("commit"), "--quiet", container, image)
    finally:
        _run(*_buildah("rm"), container)


def _from_containerfile(program: str, image: str, *arguments: str) -> None:
    began = time.monotonic()
    flags = ["--layers", "--isolation=chroot", "--network=host", "--build-arg", f"BASE={BASE}"]
    for path, inside in _mounts().items():
        flags += ["--volume", f"{path}:{inside}:ro"]
    _run(*_buildah("build"), *flags, *arguments, "-f", ROOT / program / "Containerfile", "-t", image, ROOT)
    print(f"images: {image} built in {time.monotonic() - began:.0f} s", flush=True)


def _mounts() -> dict[Path, str]:
    """What the machine knows of reaching its package index, lent to the build and never written into an image."""
    certificates = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
    return {_pip_configuration(): "/etc/pip.conf", **{Path(path): path for path in certificates if Path(path).exists()}}


def _pip_configuration() -> Path:
    settings = {name: os.environ.get(f"PIP_{name.upper().replace('-', '_')}") for name in _PIP_SETTINGS}
    lines = [f"{name} = {value}" for name, value in settings.items() if value]
    path = folder() / "pip.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["[global]", *lines, ""]))
    return path


def _has(image: str) -> bool:
    return (
        subprocess.run([*_buildah("inspect"), "--type=image", image], capture_output=True, check=False).returncode == 0
    )


def _storage() -> Path:
    # Its own storage: nobody's other images are touched, and removing the cache folder removes
    # everything.
    return folder() / "storage"


def _buildah(command: str) -> list[str]:
    return ["buildah", "--root", str(_storage()), "--runroot", f"{_storage()}-run", "--storage-driver=overlay", command]


def _run(*command: object) -> str:
    result = subprocess.run([*map(str, command)], text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
        )
    return result.stdout


def main() -> None:
    for build in (build_base, build_pause, build_coredns, build_torch, build_trainer, build_operator):
        build()


if __name__ == "__main__":
    main()
