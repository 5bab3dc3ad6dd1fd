"""Writing a dictionary in another library's format, and proof that what was written is the same dictionary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.formats import dictionary_learning, load_dictionary, saelens, sparsify
from gradlens.errors import ConfigError, InputError

WRITERS: dict[str, Callable[[Dictionary, Path, torch.dtype], Path]] = {
    "saelens": saelens.write,
    "sparsify": sparsify.write,
    "dictionary_learning": dictionary_learning.write,
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CLOSE = 1e-5  # of the largest value, in float32; narrower types round as they do


def convert(source: str, out: str | Path, to: str = "saelens", dtype: str = "float32", tokens: int = 256) -> dict[str, Any]:
    """Write the dictionary of `source` below `out` and read it back; the folder, and the largest difference of activations and outputs.

    The difference is over random inputs around b_dec, in units of the largest value. Raises `InputError` for what the other format cannot
    say, and where what was read back differs by more than rounding.
    """
    if to not in WRITERS or dtype not in DTYPES:
        raise ConfigError(f"--to {to} --dtype {dtype}: expected one of {', '.join(WRITERS)}, and of {', '.join(DTYPES)}")
    dictionary = load_dictionary(source, dtype=torch.float32)
    folder = WRITERS[to](dictionary, Path(out), DTYPES[dtype])
    again = load_dictionary(folder, dtype=torch.float32)
    x_TD = torch.randn(tokens, dictionary.d_in, generator=torch.Generator().manual_seed(0))
    x_TD = x_TD + (dictionary.b_dec if dictionary.d_in == dictionary.d_out else 0)
    acts, found = dictionary.encode(x_TD), again.encode(x_TD)
    out_TO, found_TO = dictionary.decode(acts, x_TD), again.decode(found, x_TD)
    largest = lambda a, b: float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))  # noqa: E731
    report = {"folder": str(folder), "to": to, "dtype": dtype}
    report |= {"acts_difference": largest(acts, found), "out_difference": largest(out_TO, found_TO)}
    same = again.hookpoint == dictionary.hookpoint and again.hook_in == dictionary.hook_in
    if dtype == "float32" and max(report["acts_difference"], report["out_difference"]) > CLOSE:
        raise InputError(f"{folder}: what was written reads back differently (by {report['out_difference']:.1e}); it is not to be trusted")
    if not same:
        raise InputError(f"{folder}: it reads back at {again.hookpoint or 'no hookpoint'}, not at {dictionary.hookpoint or 'none'}")
    return report
