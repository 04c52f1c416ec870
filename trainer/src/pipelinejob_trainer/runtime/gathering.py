"""Parameters of which replicas hold a stretch each are gathered layer by layer, when a pass needs them.

A layer's parameters are views of one piece of memory (`sharding.Shard`), which is there only from
the time at which they are gathered until another layer is needed. So a rank has two layers at most
at a time: the one that works, and the one that comes next, which is gathered meanwhile. What
autograd saved of a parameter uses the same memory, and finds its values there again.
"""

from collections.abc import Collection, Mapping, Sequence

import torch

from pipelinejob_trainer.models.part import Part
from pipelinejob_trainer.runtime.reduction import Sum
from pipelinejob_trainer.runtime.sharding import Exchange, Shard, Shards


class Gathering:
    """The shards of a rank's layers, as `stage.weights.Weights`; a shard that layers share is each one's.

    It has to `meet` the other ranks first.
    """

    def __init__(self, of_layers: Mapping[int, Sequence[Shard]]) -> None:
        self._of_layers = of_layers
        self._present: dict[int, Shard] = {}
        self._under_way: dict[int, Sum] = {}
        self._exchange: Exchange | None = None
        self._now: tuple[int, ...] = ()

    def meet(self, exchange: Exchange) -> None:
        """Gather over these groups from now on."""
        self._exchange = exchange

    def need(self, layers: Collection[int], then: int | None = None) -> None:
        """Return when the parameters of layers hold their values; begin to gather those of the layer that comes then.

        Of all others the memory is freed. Raises PeerLostError.
        """
        wanted = {id(shard): shard for layer in layers for shard in self._of_layers.get(layer, ())}
        others = [key for key in self._present if key not in wanted]
        if self._now != tuple(layers):
            self._now = tuple(layers)
            for key in others:
                self._free(key)
            for shard in wanted.values():
                self._begin(shard)
            for key in wanted:
                self._finish(key)
        elif others:
            return  # what comes next is on its way already
        for shard in self._of_layers.get(then, ()) if then is not None else ():
            self._begin(shard)

    def release(self) -> None:
        """Free all that is gathered, as values that an update makes old must be. Raises PeerLostError."""
        self._now = ()
        for key in tuple(self._present):
            self._free(key)

    @torch.no_grad()
    def _begin(self, shard: Shard) -> None:
        key = id(shard)
        if key in self._present:
            return
        assert self._exchange is not None, "who gathers has met the others"
        assert shard.kept is not None, "what is always whole is not gathered"
        shard.flat.untyped_storage().resize_(shard.flat.nbytes)
        self._present[key] = shard
        self._under_way[key] = self._exchange.gather(shard.bucket.share.ranks, shard.flat, shard.kept)

    def _finish(self, key: int) -> None:
        under_way = self._under_way.pop(key, None)
        if under_way is not None:
            under_way.wait()

    def _free(self, key: int) -> None:
        self._finish(key)
        self._present.pop(key).flat.untyped_storage().resize_(0)


def gathered(shards: Shards, part: Part) -> Gathering | None:
    """Return what gathers a rank's layers; None if nothing has to be gathered."""
    layers_of: dict[torch.Tensor, list[int]] = {}  # shared ones are of several
    for layer in part.layers:
        for _, parameter in layer.named_parameters():
            layers_of.setdefault(parameter, []).append(layer.index)
    of_layers: dict[int, list[Shard]] = {}
    for shard in shards.by_bucket.values():
        if shard.kept is not None:
            for index in dict.fromkeys(index for each in shard.bucket.parameters for index in layers_of[each]):
                of_layers.setdefault(index, []).append(shard)
    return Gathering(of_layers) if of_layers else None
