"""How many of the last stage's targets counted in its losses."""

import torch

from pipelinejob_trainer.stage.passing import Pass


class TargetCounts:
    """A sum over passes. What was counted on a device stays there until it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counted: list[torch.Tensor] = []
        self._num_counted = 0
        self._num_targets = 0

    def add(self, passing: Pass) -> None:
        """Add a pass's targets, if it came to a loss."""
        if passing.counted is None or passing.targets is None:
            return
        self._num_targets += passing.targets.numel()
        if isinstance(passing.counted, int):
            self._num_counted += passing.counted
        else:
            self._counted.append(passing.counted)

    def take(self) -> tuple[torch.Tensor, int]:
        """Return how much counted since the last call, float64 on the device, and of how many targets."""
        counted = torch.tensor(float(self._num_counted), dtype=torch.float64, device=self._device)
        if self._counted:
            counted += torch.stack(self._counted).double().sum()
        num_targets = self._num_targets
        self._counted, self._num_counted, self._num_targets = [], 0, 0
        return counted, num_targets
