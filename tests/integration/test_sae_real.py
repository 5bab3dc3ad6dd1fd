"""On SmolLM2: the shipped dictionaries fit the model where they say, and not one block beside it."""

import pytest

from gradlens.dictionaries.formats import load_dictionary
from gradlens.model.loading import load_model
from gradlens.sae.verify import verify

pytestmark = pytest.mark.real
TEXT = ["demo:sae-text-heldout"]


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@pytest.mark.parametrize("name", ["smollm2-l15", "smollm2-l27"])
def test_shipped_dictionaries_explain_held_out_activations(smollm2, name):
    dictionary = load_dictionary(name)
    found = verify(dictionary, *smollm2, dictionary.hookpoint, TEXT, tokens=3000)
    assert found.fit == "fits" and found.health.fvu <= 0.25 and 30 < found.health.l0 <= 40
    assert found.health.fvu == pytest.approx(dictionary.metadata["health"]["fvu"], abs=0.05)  # what is recorded is so


@pytest.mark.parametrize("wrong", ["layers.14", "layers.16"])
def test_a_dictionary_off_by_one_block_is_told_where_it_belongs(smollm2, wrong):
    found = verify(load_dictionary("smollm2-l15"), *smollm2, wrong, TEXT, tokens=1500)
    assert found.neighbours["layers.15"] < found.health.fvu / 2
    assert found.fit == "unfit" and f"fits layers.15 (FVU {found.neighbours['layers.15']:.2f}), not {wrong}" in found.advice


def test_a_dictionary_far_from_its_block_is_found_too(smollm2):
    found = verify(load_dictionary("smollm2-l15"), *smollm2, "layers.5", TEXT, tokens=600)
    assert found.fit == "unfit" and "fits layers.15" in found.advice and len(found.neighbours) == 29
