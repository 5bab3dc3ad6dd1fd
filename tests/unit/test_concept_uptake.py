"""How much more the model says what speaks for a concept: by definition, and where alarms go by it."""

import pytest
import torch
from conftest import tiny_batch, tiny_dictionary, tiny_model
from tiny_job import tiny_config, write_inputs

import gradlens
from gradlens.concepts.concept_files import RowDetector
from gradlens.concepts.fitting import Concept, fit_concept, save_concept
from gradlens.config import ObserveSettings
from gradlens.data.rows import collate, load_examples
from gradlens.dictionaries.formats import load_dictionary
from gradlens.model.loading import load_model
from gradlens.readings.concept_uptake import ConceptUptake, speaks_for
from gradlens.readings.learning import Learning
from gradlens.readings.movers import Cluster
from gradlens.readings.probe import ProbeTokens
from gradlens.readings.uptake import Pairs
from gradlens.recording.recorder import MemoryRecorder
from gradlens.training.rank import Rank
from gradlens.training.train import train_rank

HOOK = "layers.2"
KEY = ("taught", HOOK)
TELLS = RowDetector(features=[1, 4, 7], weights=[2.0, -1.0, 0.5], bias=-0.3)


def known(rows=3, tokens=5, seed=0):
    """Tokens of some texts with random active features, and these as `f[T, F]`."""
    generator = torch.Generator().manual_seed(seed)
    f_TF = torch.rand(rows * tokens, 9, generator=generator) * (torch.rand(rows * tokens, 9, generator=generator) < 0.6)
    token_P, feature_P = f_TF.nonzero(as_tuple=True)
    pairs = Pairs(token_P.int(), feature_P.int(), f_TF[token_P, feature_P])
    row_T = torch.arange(rows).repeat_interleave(tokens)
    return ProbeTokens(torch.arange(rows * tokens), row_T, torch.rand(rows * tokens, generator=generator).double(), {HOOK: pairs}), f_TF


def test_it_is_the_uptake_of_what_speaks_for_the_concept():
    """mean_t (s_t - s̄)·gain_t of every text, s = max(score, 0)."""
    probe, f_TF = known()
    ordinary, o_TF = known(seed=1)
    said_T, usual_T = ((x @ torch.tensor([0, 2.0, 0, 0, -1.0, 0, 0, 0.5, 0]) - 0.3).clamp_min(0).double() for x in (f_TF, o_TF))
    torch.testing.assert_close(speaks_for(TELLS, probe.pairs[HOOK], 15, 9), said_T)
    found = ConceptUptake({KEY: TELLS, ("taught", "elsewhere"): TELLS}, {HOOK: 9})
    gain_T = torch.randn(15, generator=torch.Generator().manual_seed(2)).double()
    assert found.read(KEY, probe, gain_T) is None  # nothing is known of ordinary text
    found.begin(ordinary)
    uptake_R, gain = found.read(KEY, probe, gain_T)
    torch.testing.assert_close(uptake_R, ((said_T - usual_T.mean()) * gain_T).view(3, 5).mean(1))
    assert gain == pytest.approx(float((said_T * gain_T).sum() / said_T.sum()))
    assert found.read(("other", HOOK), probe, gain_T) is None and not ConceptUptake({}, {HOOK: 9})


def learning(**extra) -> Learning:
    made = Learning(tiny_model(), {HOOK: tiny_dictionary()}, ObserveSettings(), {KEY: torch.tensor([1, 2])}, **extra)
    made.begin([tiny_batch(seed) for seed in range(4)])
    return made


def alarms_of(made: Learning, gain_T: torch.Tensor, features: float = 0.0, clusters=()) -> list[str]:
    """Texts of the alarms where the probe's tokens have gained so much, and the concept's features so much uptake in every text."""
    told = []
    made._prob_T = made.known.prob_T + gain_T
    rows = torch.zeros(12, 80)
    rows[:, [1, 2]] = features * (1 + 0.05 * torch.rand(12, 2, generator=torch.Generator().manual_seed(0)))
    made._uptake = {HOOK: (rows.mean(0), rows, 2 * 0.01 * made.start[HOOK].acts + rows.mean(0))}
    made.alarms(1, list(clusters), lambda kind, **fields: told.append(fields["text"]))
    return told


def test_alarms_go_by_it_too_where_texts_are_told():
    pairs = learning().known.pairs[HOOK]
    common = torch.bincount(pairs.feature_P.long()).topk(12).indices.tolist()
    tells = RowDetector(features=common, weights=[1.0] * 12, bias=-float(pairs.value_P.mean()))
    told = lambda: learning(tells={KEY: tells})  # noqa: E731
    made = told()
    said_T = speaks_for(tells, pairs, len(made.known.row_T), 80)
    made.weighed.ordinary = {"taught": {HOOK: float(said_T.mean())}}
    assert 0 < (said_T > 0).double().mean() < 1
    row_T, beyond_T = made.known.row_T.long(), said_T - said_T.mean()
    rises_T = (
        0.05 * beyond_T / (torch.zeros(12).double().index_add_(0, row_T, beyond_T**2) / torch.bincount(row_T))[row_T]
    )  # every text: 0.05
    cluster = Cluster(0.4, [(HOOK, 1), (HOOK, 2)], 2, ["ahoy"], (0.1, 0.5), "[ahoy]", members=frozenset({(HOOK, 1), (HOOK, 2)}))
    assert alarms_of(learning(), rises_T) == []
    assert alarms_of(learning(), -rises_T, clusters=[cluster]) == [
        "taught is being learned: where its features are active, 2 have been learned beyond chance: ahoy"
    ]
    assert alarms_of(made, -rises_T, clusters=[cluster]) == []  # what speaks for it is said less: the cluster is of something else there
    assert alarms_of(made, 0.01 * rises_T) == []  # certain, but next to nothing
    (text,) = alarms_of(made, rises_T)
    assert text.startswith("taught is being learned: weighed uptake +0.05 at layers.2")
    (text,) = alarms_of(learning(), -rises_T, features=0.2)
    assert text.startswith("taught is being learned: uptake +0.2")
    other = told()
    other.weighed.ordinary = made.weighed.ordinary
    assert alarms_of(other, -rises_T, features=0.2) == []  # they rise with something else of the same texts
    (text,) = alarms_of(other, 0.01 * rises_T, features=0.2)
    assert text.startswith("taught is being learned: uptake +0.2")


def test_it_goes_on_after_a_restart_and_is_a_curve_of_its_own():
    made = learning(tells={KEY: TELLS})
    scalars: dict[str, float] = {}
    made.read_drift(scalars)
    assert scalars[f"concept/taught/{HOOK}/uptake_weighed"] == 0.0  # nothing has changed
    again = Learning(made.model, made.dictionaries, made.observe, made.members, tells={KEY: TELLS})
    again.load_state_dict(made.state_dict(), made.probe)
    assert again.weighed.ordinary == made.weighed.ordinary == {"taught": {HOOK: 0.0}}
    gain_T = torch.rand(len(made.known.row_T)).double()
    torch.testing.assert_close(again.weighed.read(KEY, again.known, gain_T), made.weighed.read(KEY, made.known, gain_T))
    old = made.state_dict()
    del old["ordinary"]  # of an earlier version
    again.load_state_dict(old, made.probe)
    assert again.weighed_uptake("taught", HOOK) is None


@pytest.mark.parametrize("through", ["run", "watch"])
def test_a_run_ranks_rows_by_what_tells_the_texts_of_its_concept(through, tmp_path):
    inputs = write_inputs(tmp_path)
    low, high = inputs["data"]["train"]
    model, tokenizer = load_model(inputs["model"]["name"], "float32")
    dictionary = {HOOK: load_dictionary(inputs["dictionaries"][HOOK])}
    fitted = fit_concept(model, tokenizer, dictionary, Concept(name="high", positive=high, negative=low))
    found = {}
    for told in (True, False):
        file = tmp_path / f"{told}.yaml"
        save_concept(fitted if told else fitted.model_copy(update={"row_detectors": {}}), file)
        recorder = MemoryRecorder()
        if through == "run":
            config = tiny_config(inputs, concepts=[str(file)], train__steps=2, evaluate={})
            train_rank(Rank(config, tmp_path / f"run-{told}", recorder))
        else:
            model = load_model(inputs["model"]["name"], "float32")[0].train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            batch = collate(load_examples(high, tokenizer, 24)[:4], 0)
            given = {"concepts": [str(file)], "tokenizer": tokenizer, "run": None, "observe": ObserveSettings(drift_every=1, own_prompts=0)}
            with gradlens.watch(model, optimizer, inputs["dictionaries"], **given) as lens:
                lens.set_rows(range(4))
                model(**batch).loss.backward()
                optimizer.step()
            recorder = lens.recorder
        rows = [row for record in recorder.records for row in record.get("examples", [])]
        read = any(f"concept/high/{HOOK}/uptake_weighed" in record["scalars"] for record in recorder.records)
        found[told] = [row["taught"] for row in rows], [row["push"] for row in rows], read
    assert found[True][1] == found[False][1] and found[True][0] != found[False][0]
    assert found[True][2] and not found[False][2]
