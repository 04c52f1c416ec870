"""Where tests fork processes from: a server that has imported what takes seconds, started once for all of them."""

import multiprocessing
from multiprocessing.context import ForkServerContext

_SLOW = [
    "torch",
    "torch.distributed",
    "pipelinejob_trainer.training.recovering",
    "pipelinejob_trainer.data.prepare.prepare",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
    "transformers.utils.chat_template_utils",
]


def forking_context() -> ForkServerContext:
    """Return the context of processes that begin with those modules imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SLOW)
    return context
