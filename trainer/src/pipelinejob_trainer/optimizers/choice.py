"""Which rule updates which parameter: `spec.training.optimizer`, its settings, and parameter groups."""

from collections.abc import Collection, Iterable

from torch import nn

from pipelinejob.spec.job import Training
from pipelinejob.spec.optimization import (
    AdafactorSettings,
    AdamWSettings,
    MuonSettings,
    SgdSettings,
)
from pipelinejob.spec.optimization import (
    Optimizer as Kind,
)
from pipelinejob_trainer.models.identity import Place, layer_of
from pipelinejob_trainer.models.part import Part
from pipelinejob_trainer.optimizers.adafactor import Adafactor
from pipelinejob_trainer.optimizers.adamw import AdamW
from pipelinejob_trainer.optimizers.groups import group_of
from pipelinejob_trainer.optimizers.muon import Muon
from pipelinejob_trainer.optimizers.optimizer import Optimizer, Treatment
from pipelinejob_trainer.optimizers.rule import Rule
from pipelinejob_trainer.optimizers.sgd import Sgd

_MATRIX = 2  # dimensions


def make_optimizer(
    training: Training,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    hidden: Collection[str] = (),
    of_matrices: Collection[str] = (),
) -> Optimizer:
    """Make the optimiser of parameters, by global name; `hidden` are those that Muon may update.

    `of_matrices` are flattened parts of matrices.

    Raises UserError for a parameter that the optimiser cannot update.
    """
    main, others = _rule(training), _adamw(training)

    def treatment(name: str, parameter: nn.Parameter) -> Treatment:
        group = group_of(name, training.groups)
        # A norm's gain or a bias has no scale to lose: decay is for matrices, unless a group says
        # otherwise.
        decay = training.weight_decay if parameter.dim() > 1 or name in of_matrices else 0.0
        if group is not None and group.weight_decay is not None:
            decay = group.weight_decay
        return Treatment(
            rule=others if isinstance(main, Muon) and name not in hidden else main,
            rate_scale=1.0 if group is None or group.learning_rate_scale is None else group.learning_rate_scale,
            weight_decay=decay,
        )

    return Optimizer(parameters, treatment)


def hidden_matrices(part: Part, num_layers: int) -> frozenset[str]:
    """Return the names of the matrices of hidden layers: of neither the first nor the last, and no embedding's.

    What several layers share is none: other ranks, which see other layers, must say the same.
    """
    return frozenset(
        name
        for name, places in part.places().items()
        if 0 < layer_of(name) < num_layers - 1 and name not in part.shared and all(map(_is_matrix, places))
    )


def _is_matrix(place: Place) -> bool:
    is_table = isinstance(place.module, (nn.Embedding, nn.EmbeddingBag))
    return not place.is_buffer and place.tensor is not None and place.tensor.dim() == _MATRIX and not is_table


def _rule(training: Training) -> Rule:
    match training.optimizer:
        case Kind.ADAMW:
            return _adamw(training)
        case Kind.SGD:
            sgd = training.sgd or SgdSettings()
            return Sgd(momentum=sgd.momentum, nesterov=sgd.nesterov)
        case Kind.ADAFACTOR:
            given = training.adafactor or AdafactorSettings()
            return Adafactor(
                beta2_decay=given.beta2_decay,
                epsilon1=given.epsilon1,
                epsilon2=given.epsilon2,
                clip_threshold=given.clip_threshold,
            )
        case Kind.MUON:
            muon = training.muon or MuonSettings()
            return Muon(momentum=muon.momentum, nesterov=muon.nesterov, steps=muon.steps, scale=muon.scale)


def _adamw(training: Training) -> AdamW:
    given = training.adam_w or AdamWSettings()
    return AdamW(beta1=given.beta1, beta2=given.beta2, epsilon=given.epsilon)
