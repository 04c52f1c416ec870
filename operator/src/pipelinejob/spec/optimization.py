"""What a user writes of how parameters follow gradients: optimiser, learning rate over the steps, parameter groups."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from pipelinejob.base.values import Value
from pipelinejob.spec.rules import Reason, Rule, ruled

MAX_GROUPS = 64


class Optimizer(StrEnum):
    """How parameters follow gradients."""

    ADAMW = "AdamW"
    SGD = "SGD"
    ADAFACTOR = "Adafactor"
    MUON = "Muon"


class AdamWSettings(Value):
    """AdamW's hyper-parameters; with Muon, of the parameters that Muon does not update."""

    beta1: Annotated[float, Field(ge=0, lt=1, description="Decay of the first moment.")] = 0.9
    beta2: Annotated[
        float, Field(ge=0, lt=1, description="Decay of the second moment; 0.999 remembers more steps than 0.95.")
    ] = 0.95
    epsilon: Annotated[float, Field(gt=0, le=1, description="Added to the root of the second moment.")] = 1e-8


class SgdSettings(Value):
    """SGD's hyper-parameters."""

    model_config = ruled(
        Rule(
            rule="!self.nesterov || self.momentum > 0.0",
            message="nesterov needs momentum; set momentum above 0, such as 0.9, or nesterov to false",
            field=".nesterov",
        )
    )

    momentum: Annotated[float, Field(ge=0, lt=1, description="Share of the step before that is added to each.")] = 0.0
    nesterov: Annotated[bool, Field(description="Nesterov's momentum.")] = False


class AdafactorSettings(Value):
    """Adafactor's hyper-parameters, as torch.optim.Adafactor has them."""

    beta2_decay: Annotated[
        float, Field(ge=-1, le=0, description="Second moments of update n keep 1 - n^beta2Decay of themselves.")
    ] = -0.8
    epsilon1: Annotated[
        float | None, Field(ge=0, le=1, description="Least root of a second moment; fp32's epsilon if unset.")
    ] = None
    epsilon2: Annotated[float, Field(ge=0, le=1, description="Least size of a parameter, for its steps.")] = 1e-3
    clip_threshold: Annotated[float, Field(ge=1, le=1e6, description="Bound on an update's root mean square.")] = 1.0


class MuonScale(StrEnum):
    """By what an orthogonal update of a matrix is multiplied."""

    MATCH_ADAMW = "MatchAdamW"
    ORIGINAL = "Original"


class MuonSettings(Value):
    """Muon's hyper-parameters, of the matrices of hidden layers."""

    momentum: Annotated[float, Field(ge=0, lt=1, description="Decay of the running mean of gradients.")] = 0.95
    nesterov: Annotated[bool, Field(description="Nesterov's momentum.")] = True
    steps: Annotated[int, Field(ge=1, le=99, description="Iterations of Newton and Schulz.")] = 5
    scale: Annotated[
        MuonScale,
        Field(
            description="MatchAdamW: updates are as large as AdamW's, so that one learning rate and weight decay serve "
            "both. Original: by the root of rows over columns, at least 1."
        ),
    ] = MuonScale.MATCH_ADAMW


class DecayKind(StrEnum):
    """How the learning rate goes on after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    WSD = "WSD"
    CONSTANT = "Constant"


class Decay(Value):
    """How the learning rate goes on after the warm-up."""

    model_config = ruled(
        Rule(
            rule="self.kind != 'Constant' || !has(self.decaySteps)",
            message="decaySteps goes with Cosine, Linear and WSD; a Constant rate has none; leave it out",
            field=".decaySteps",
            reason=Reason.FORBIDDEN,
        )
    )

    kind: Annotated[
        DecayKind,
        Field(
            description="Cosine, Linear: from the end of the warm-up on. WSD: warm-up, stable, decay, which is linear "
            "and ends with the last step. Constant: never."
        ),
    ] = DecayKind.COSINE
    final_share: Annotated[float, Field(ge=0, le=1, description="Share of the peak rate at the decay's end.")] = 0.1
    decay_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000_000,
            description="Steps of the decay; all after the warm-up if unset, a tenth of them with WSD.",
        ),
    ] = None

    def steps_of(self, after: int) -> int:
        """Return the steps of the decay, of those after the warm-up."""
        if self.decay_steps is not None:
            return self.decay_steps
        return -(-after // 10) if self.kind is DecayKind.WSD else after


class ParameterGroup(Value):
    """Parameters by their names, and how they are trained otherwise than the rest."""

    model_config = ruled(
        Rule(
            rule="self.frozen || has(self.learningRateScale) || has(self.weightDecay)",
            message="a group changes something: give frozen, learningRateScale or weightDecay",
        ),
        Rule(
            rule="!self.frozen || !(has(self.learningRateScale) || has(self.weightDecay))",
            message="frozen parameters have neither a learning rate nor weight decay; leave those out, or frozen",
            field=".frozen",
        ),
    )

    match: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            description="Global names of parameters, such as layers.0.token.weight; * stands for anything, ? for one "
            "character, [ab] for one of them. The first group that matches counts.",
        ),
    ]
    frozen: Annotated[bool, Field(description="Not trained: no gradient, and no state of the optimiser.")] = False
    learning_rate_scale: Annotated[
        float | None, Field(ge=0, le=1e6, description="Times the learning rate; 1 if unset.")
    ] = None
    weight_decay: Annotated[
        float | None,
        Field(ge=0, le=1, description="Weight decay; if unset, that of the training on matrices, 0 on vectors."),
    ] = None


def only_with(field: str, *names: Optimizer) -> Rule:
    """Refuse settings of an optimiser that is not used."""
    listed = ", ".join(f"'{name}'" for name in names)
    return Rule(
        rule=f"!has(self.{field}) || self.optimizer in [{listed}]",
        message=f"{field} goes with optimizer {' or '.join(names)}; leave it out, or use that",
        field=f".{field}",
        reason=Reason.FORBIDDEN,
    )
