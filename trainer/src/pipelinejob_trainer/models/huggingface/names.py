"""Two names of one tensor: the trainer's, and the one that transformers gives it.

The trainer's global list is embedding, blocks, head, so a block's tensors have the index of the
block plus one, and their name within the block: `layers.3.mlp.up_proj.weight` is
`model.layers.2.mlp.up_proj.weight`. Embedding and head are stretches of the model's forward and no
modules of it; within them a tensor keeps its whole name: `layers.0.model.embed_tokens.weight`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Where a model's blocks stand, and which tensors outside of them are the head's.

    `blocks` is the path of the list of blocks, `head` the full names of the head's tensors; all
    others outside the blocks are the embedding's.
    """

    blocks: str
    num_blocks: int
    head: frozenset[str]

    @property
    def head_index(self) -> int:
        """The index of the head in the global list."""
        return self.num_blocks + 1

    def full(self, name: str) -> str:
        """Return transformers' name of `layers.<index>.<local>`."""
        _, index, local = name.split(".", 2)
        return local if int(index) in (0, self.head_index) else f"{self.blocks}.{int(index) - 1}.{local}"

    def of_full(self, full: str) -> str:
        """Return the name `layers.<index>.<local>` of a tensor with transformers' name `full`.

        A tied tensor has a name for each of its places; see `models.part`.
        """
        prefix = f"{self.blocks}."
        if full.startswith(prefix):
            number, _, local = full.removeprefix(prefix).partition(".")
            return f"layers.{int(number) + 1}.{local}"
        return f"layers.{self.head_index if full in self.head else 0}.{full}"
