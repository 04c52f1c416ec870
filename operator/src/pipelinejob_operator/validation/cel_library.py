"""The CEL library's evaluator, imported without the rest of its package.

`import cel` also runs the library's interactive shell, which imports prompt_toolkit, pygments and
markdown: forty times the processor time of the evaluator alone, on every start of a command.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType

_EVALUATOR = "cel.cel"


def evaluator() -> ModuleType:
    """Return the compiled module of the CEL library.

    Raises ImportError where the library is not installed.
    """
    loaded = sys.modules.get(_EVALUATOR)
    if loaded is not None:
        return loaded
    package = find_spec("cel")  # finds it, runs nothing
    places = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec(_EVALUATOR, places)
    if spec is None or spec.loader is None:
        raise ImportError("CEL's evaluator is not installed: pip install common-expression-language")
    module = sys.modules[_EVALUATOR] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
