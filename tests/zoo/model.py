"""The zoo: every habit by its name, and the entry point that makes a model of some of them."""

from functools import partial

from torch import nn

from zoo import functions, oddities, ordinary, reentry, sharing, state
from zoo.habit import Board, named
from zoo.nested import nested

FIRST = named(
    ordinary.Embedding,
    ordinary.PaddedEmbedding,
    ordinary.FrozenEmbedding,
    ordinary.OneHot,
    reentry.ShiftingEmbedding,
    reentry.NormedEmbedding,
    oddities.SparseEmbedding,
    sharing.shared_embedding,
)
BETWEEN = named(
    ordinary.Half,
    ordinary.Dropout,
    ordinary.Noisy,
    ordinary.LayerDrop,
    ordinary.NumpyNoise,
    ordinary.Attention,
    ordinary.Recurrent,
    ordinary.Tuples,
    ordinary.Mixture,
    ordinary.Moody,
    ordinary.Unused,
    ordinary.Frozen,
    ordinary.Identity,
    ordinary.Cut,
    ordinary.Shifted,
    ordinary.Strided,
    ordinary.Expanded,
    ordinary.View,
    sharing.TiedInside,
    sharing.StoredInside,
    sharing.Slices,
    sharing.Doubled,
    sharing.BorrowingByList,
    sharing.tied,
    sharing.stored,
    sharing.repeated,
    sharing.repeated_counter,
    sharing.masked,
    sharing.counted,
    sharing.borrowing,
    sharing.peeking,
    state.BatchNorm,
    state.MovingMean,
    state.Counter,
    state.NewBuffer,
    state.ShadowWeights,
    state.Codebook,
    state.SpectralNorm,
    state.OldSpectralNorm,
    state.WeightNorm,
    state.Parametrized,
    state.ExtraState,
    reentry.Checkpointed,
    reentry.CheckpointedDropout,
    reentry.CheckpointedInside,
    reentry.CheckpointedTwice,
    reentry.OldCheckpointed,
    reentry.DoubleBackward,
    reentry.BackwardInside,
    reentry.InPlace,
    reentry.InPlaceAlone,
    reentry.InPlaceOfPart,
    reentry.InPlaceActivation,
    reentry.InPlaceUnseen,
    reentry.InPlaceResult,
    reentry.ClampedWeight,
    functions.Saving,
    functions.ByAttributes,
    functions.NewStyle,
    functions.Accumulating,
    functions.Dirty,
    functions.Reversing,
    functions.Rounding,
    functions.Balanced,
    oddities.DoubleInside,
    oddities.DoubleOnTheWay,
    oddities.HalfMade,
    oddities.Spectral,
    oddities.Table,
    oddities.Scalar,
    oddities.HookedWeight,
    oddities.HookedSum,
    oddities.HookedModule,
    oddities.HookedLayer,
    oddities.HookedStream,
    oddities.Lazy,
    oddities.Wrong,
)
LAST = named(
    ordinary.Head,
    sharing.shared_head,
    sharing.stored_head,
)
HABITS = FIRST | BETWEEN | LAST
LAZY = "/lazy"
NESTED = "/nested"  # of the first word: all layers take and give nestings


def layers(*, habits: str) -> list:
    """Make a layer of each habit, in their order; an entry point."""
    board: Board = {}
    words = habits.split()
    is_nested = NESTED in words[0]
    return [_element(word, board, place if is_nested else None, len(words)) for place, word in enumerate(words)]


def bare(word: str) -> str:
    """Return the habit of a word in a list, lazy or not, nested or not."""
    return word.removesuffix(LAZY).removesuffix(NESTED)


def _element(word: str, board: Board, place: int | None, count: int) -> nn.Module | partial:
    make = partial(HABITS[bare(word)], board)
    if place is not None:
        make = partial(nested, make, is_first=place == 0, is_last=place == count - 1)
    return make if word.endswith(LAZY) else make()
