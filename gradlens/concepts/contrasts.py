"""How well each feature tells a concept's examples from others: read once, before training, for random controls, which leave out those
that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.concepts.concept_files import Concept
from gradlens.concepts.fitting import MIN_EXAMPLES, ChoosingHalf, counted_tokens, split_examples
from gradlens.control.random_control import contrast
from gradlens.dictionaries.dictionary import Dictionary
from gradlens.dictionaries.encoding import encode_active
from gradlens.model.capture import inference
from gradlens.model.reading import pad_id_of, read_texts
from gradlens.readings.own import before_training


def contrasts_of(
    concepts: Sequence[Concept], tokenizer: Any, max_length: int, model: nn.Module, dictionaries: dict[str, Dictionary]
) -> Callable[[str | None], dict[str, Tensor]]:
    """`contrasts(name)`: hookpoint -> `random_control.contrast` of its features, `[F]`; none where the concept has no examples, or there is
    no tokenizer. The examples of a concept are read when it is first asked for, by the model before training."""

    @cache
    def contrasts(name: str | None) -> dict[str, Tensor]:
        concept = next((concept for concept in concepts if concept.name == name), None)
        few = concept is None or min(len(concept.rows(kind)) for kind in ("positive", "negative")) < MIN_EXAMPLES
        if few or tokenizer is None:
            return {}
        texts = [text for half in split_examples(concept, tokenizer, max_length) for text in half]
        fired = {name: ChoosingHalf(dictionary.d_sae) for name, dictionary in dictionaries.items()}
        with before_training(model), inference(model):
            for i, h in read_texts(model, dictionaries, [example for example, _ in texts], pad_id_of(tokenizer)):
                counted = counted_tokens(texts[i][0])
                for name, dictionary in dictionaries.items():
                    h_TD = h[name][counted].to(dictionary.W_enc.device, dictionary.work_dtype)
                    fired[name].add(texts[i][1], *encode_active(dictionary, h_TD))
        return {
            name: contrast(*(torch.from_numpy(each.fired[kind]) for kind in (True, False)), (each.tokens[True], each.tokens[False]))
            for name, each in fired.items()
        }

    return contrasts
