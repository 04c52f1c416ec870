"""What each of the replicas of a stage has of what they shard; of experts that they divide, fewer hold the same."""

from fractions import Fraction


def holders(shards: int, expert: int) -> int:
    """Return how many of so many replicas hold the same experts: one of each group of `expert`."""
    return max(1, shards // expert)


def share(alike: int, of_experts: int, *, shards: int, expert: int) -> int:
    """Return the bytes that a replica has of those that all hold alike, and of those of its experts."""
    return -(-alike // shards) - (-of_experts // holders(shards, expert))


def mean_share(of_experts: Fraction, *, shards: int, expert: int) -> Fraction:
    """Return a replica's share of a layer, of which that part is experts."""
    return (1 - of_experts) / shards + of_experts / holders(shards, expert)


def from_others(alike: int, of_experts: int, *, shards: int, expert: int) -> float:
    """Return the bytes that come to a replica where all gather what they have shares of."""
    parts = ((alike, shards), (of_experts, holders(shards, expert)))
    return sum(num_bytes * (ranks - 1) / ranks for num_bytes, ranks in parts)
