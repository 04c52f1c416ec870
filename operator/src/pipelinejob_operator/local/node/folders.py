"""The folders and files that a pod sees on this machine: its volumes, its log, its last words."""

from collections.abc import Mapping
from pathlib import Path

from pipelinejob.base import names
from pipelinejob_operator.cluster import InvalidError, Object
from pipelinejob_operator.local.node import pod as local_pod
from pipelinejob_operator.local.runfolder import RunFolder

ConfigMaps = Mapping[tuple[str, str, str], Object]  # by kind, namespace and name, other kinds among them

_MAX_MESSAGE_BYTES = 4096  # as the kubelet truncates a termination message
_FALLBACK_LOG_BYTES = 2048


class PodFolders:
    """What pods see of a run's folder."""

    def __init__(self, folder: RunFolder, config_maps: ConfigMaps) -> None:
        self._folder = folder
        self._config_maps = config_maps

    def mounts(self, pod: Object) -> dict[str, Path]:
        """Return the folder here of each mount path of the pod that is not this machine's own."""
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        mounts: dict[str, Path] = {}
        for mount in local_pod.trainer(pod).get("volumeMounts", ()):
            volume = volumes.get(mount["name"], {})
            if "hostPath" in volume:
                mounts[mount["mountPath"]] = Path(volume["hostPath"]["path"])
            elif "configMap" in volume:
                mounts[mount["mountPath"]] = self._config_folder(pod, volume["configMap"]["name"])
            elif "downwardAPI" in volume:
                mounts[mount["mountPath"]] = self._own_folder(pod, mount["name"])
            elif not Path(mount["mountPath"]).is_dir():  # of /tmp, /dev/shm, /data this machine has its own
                mounts[mount["mountPath"]] = self.root / "volumes" / mount["name"]
        mounts[names.CHECKPOINT_MOUNT] = self._folder.checkpoints.resolve()
        return mounts

    def check_config_maps(self, pod: Object) -> None:
        """Refuse a pod with a volume that nobody has written. Raises InvalidError."""
        for volume in pod["spec"].get("volumes", ()):
            name = volume.get("configMap", {}).get("name")
            if name and ("ConfigMap", pod["metadata"]["namespace"], name) not in self._config_maps:
                raise InvalidError(f"volume {volume['name']}: there is no config map {name} without a cluster")

    def write_mounted_files(self, pod: Object) -> None:
        """Write what the pod's volumes hold. Raises OSError."""
        for volume in pod["spec"].get("volumes", ()):
            if "configMap" not in volume:
                continue
            name = volume["configMap"]["name"]
            config = self._config_maps[("ConfigMap", pod["metadata"]["namespace"], name)]
            folder = self._config_folder(pod, name)
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in config.get("data", {}).items():
                self._folder.write(folder / file, content)
        self.write_own_fields(pod)
        for folder in self.mounts(pod).values():
            folder.mkdir(parents=True, exist_ok=True)

    def write_own_fields(self, pod: Object) -> None:
        """Write the files that show the pod's own fields, as they are now. Raises OSError."""
        for volume in pod["spec"].get("volumes", ()):
            if "downwardAPI" in volume:
                folder = self._own_folder(pod, volume["name"])
                folder.mkdir(parents=True, exist_ok=True)
                for file, content in local_pod.field_files(pod, volume).items():
                    self._folder.write(folder / file, content)

    def log(self, pod: Object) -> Path:
        """Return the file that the pod's process writes its lines to."""
        return self._folder.logs / f"{pod['metadata']['name']}.{local_pod.attempt(pod)}.log"

    def termination_log(self, pod: Object) -> Path:
        """Return the file that the pod's process writes its last words to."""
        name = f"{pod['metadata']['name']}.{local_pod.attempt(pod)}.termination.json"
        return self._folder.logs.resolve() / name

    def last_words(self, pod: Object, code: int) -> str:
        """Return what a process that ended with this code said last: its own words, else the end of its log."""
        file = self.termination_log(pod)
        words = file.read_text(errors="replace")[-_MAX_MESSAGE_BYTES:] if file.exists() else ""
        if words or code == 0:
            return words
        return self.log(pod).read_bytes()[-_FALLBACK_LOG_BYTES:].decode(errors="replace").strip()

    @property
    def root(self) -> Path:
        """The run's folder."""
        return self._folder.root.resolve()

    def _config_folder(self, pod: Object, name: str) -> Path:
        # The plan is what a person looks for, so it lies at the top.
        is_plan = name == names.plan_name(pod["metadata"].get("labels", {}).get(names.LABEL_JOB, ""))
        return self.root if is_plan and not local_pod.is_one_of_several(pod) else self.root / "volumes" / name

    def _own_folder(self, pod: Object, volume: str) -> Path:
        return self.root / "volumes" / str(pod["metadata"]["name"]) / volume
