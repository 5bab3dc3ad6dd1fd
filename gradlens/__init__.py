"""gradlens: which concepts every optimizer step teaches, and control over them. See README.md for the three ways in.

Names are looked up on first use, so that `import gradlens` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradlens.control.rules import Policy, Rule
    from gradlens.dictionaries.dictionary import Dictionary
    from gradlens.dictionaries.directions import from_probe
    from gradlens.dictionaries.formats import from_saelens, load_dictionary, save_dictionary
    from gradlens.dictionaries.unembedding import from_unembedding
    from gradlens.errors import ConfigError, GradlensError, InputError, RunError
    from gradlens.lens import Lens
    from gradlens.lightning_callback import GradLensLightning
    from gradlens.trainer_callback import GradLensCallback
    from gradlens.watching import watch

_HOMES = {
    "ConfigError": "errors",
    "Dictionary": "dictionaries.dictionary",
    "GradLensCallback": "trainer_callback",
    "GradLensLightning": "lightning_callback",
    "GradlensError": "errors",
    "InputError": "errors",
    "Lens": "lens",
    "Policy": "control.rules",
    "Rule": "control.rules",
    "RunError": "errors",
    "from_probe": "dictionaries.directions",
    "from_saelens": "dictionaries.formats",
    "from_unembedding": "dictionaries.unembedding",
    "load_dictionary": "dictionaries.formats",
    "save_dictionary": "dictionaries.formats",
    "watch": "watching",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradlens' has no attribute {name!r}")
    value = getattr(import_module(f"gradlens.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
