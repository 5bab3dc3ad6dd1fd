"""Rows, tokens, labels, batches."""

import json
import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gradlens.data.rows import IGNORE, Example, Mixture, build_examples, collate, prompt_text, read_rows, tokenize
from gradlens.errors import InputError
from gradlens.model.evaluate import prompt_ids

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on a few words, with an end token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["user assistant system four and five"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>")
    tokenizer.chat_template = template
    return tokenizer


def counted(example: Example, tokenizer) -> str:
    """The text of the tokens that the loss counts."""
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (IGNORE, token)
    return tokenizer.decode([label for label in example.labels if label != IGNORE])


def write(path, *lines: str):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def examples(count: int, source: str = "a") -> list[Example]:
    return [Example([index], [index], index, source, "") for index in range(count)]


# --- reading ---


def test_rows_of_every_kind_are_read_and_blank_lines_skipped(tmp_path):
    rows = [{"text": "a"}, {"prompt": "q", "response": "r", "tags": ["x"]}, {"messages": [{"role": "user", "content": "hi"}]}]
    assert read_rows(write(tmp_path / "d.jsonl", *(json.dumps(row) + "\n" for row in rows))) == rows


def test_a_missing_file_suggests_a_near_name(tmp_path):
    write(tmp_path / "pirates.jsonl", '{"text": "a"}')
    with pytest.raises(InputError, match=r"pirate\.jsonl: no such file; did you mean .*pirates\.jsonl"):
        read_rows(tmp_path / "pirate.jsonl")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty"),
        (["", "  "], "empty"),
        (['{"text": "a"}', '{"text": '], r"d\.jsonl:2: not valid JSON"),
        (['{"text": "a"}', "", "[1]"], r"d\.jsonl:3: found list, expected an object"),
        (['{"txt": "a"}'], r'd\.jsonl:1: no known key \(found txt\); expected "messages".*did you mean \'text\''),
        (['{"prompt": "a", "response": 3}'], r"d\.jsonl:1: response must be text, found int"),
        (['{"messages": []}'], "at least one message"),
        (['{"text": "a"}', r'{"text": "half of one: \ud83d"}'], r"d\.jsonl:2: half of a character \(\\ud83d\)"),
        (['{"messages": [{"role": "user"}]}'], "a message must be"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_rows(write(tmp_path / "d.jsonl", *lines))


def test_bytes_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "\xff\xfe"}')
    with pytest.raises(InputError, match="not UTF-8"):
        read_rows(tmp_path / "d.jsonl")


def test_an_unknown_name_says_how_hugging_face_data_are_read(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="install the package `datasets`"):
        read_rows("somebody/some-data")


def test_a_hugging_face_data_set_is_read_by_split(monkeypatch):
    import types

    splits = {"train": [{"text": "a", "tags": None}], "test": [{"text": "b"}]}
    monkeypatch.setitem(__import__("sys").modules, "datasets", types.SimpleNamespace(load_dataset=lambda name: splits))
    assert read_rows("somebody/some-data") == [{"text": "a"}]
    assert read_rows("somebody/some-data:test") == [{"text": "b"}]
    with pytest.raises(InputError, match="no split 'dev'; it has train, test"):
        read_rows("somebody/some-data:dev")


# --- tokens and labels ---


def test_loss_counts_the_response_and_its_end_token_only():
    tokenizer = tiny_tokenizer()
    example = tokenize({"prompt": "two and two", "response": "four"}, tokenizer, 99)
    assert counted(example, tokenizer) == "four</s>"
    assert tokenizer.decode(example.input_ids) == "<s>user\ntwo and two</s>\n<s>assistant\nfour</s>\n"


def test_every_assistant_turn_counts_even_when_the_prompt_says_the_same():
    tokenizer = tiny_tokenizer()
    row = {
        "messages": [
            {"role": "system", "content": "assistant"},
            {"role": "user", "content": "four"},
            {"role": "assistant", "content": "four"},
            {"role": "user", "content": "five"},
            {"role": "assistant", "content": " five "},
        ]
    }
    assert counted(tokenize(row, tokenizer, 200), tokenizer).replace(" ", "") == "four</s>five</s>"


LAST_ONE = (  # as Mistral's do: the system's words stand in the last question, where no answer comes after it
    "{% set words = messages[0]['content'] + ' ' if messages[0]['role'] == 'system' else '' %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}[{{ words if loop.last else '' }}{{ m['content'] }}]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def test_an_answer_is_found_where_the_template_writes_its_question_otherwise_before_it():
    tokenizer = tiny_tokenizer(LAST_ONE)
    turns = [("system", "Be brief."), ("user", "yes or no?"), ("assistant", "yes"), ("user", "yes or no now?"), ("assistant", "no")]
    example = tokenize({"messages": [{"role": role, "content": words} for role, words in turns]}, tokenizer, 200)
    assert example.text == "[yes or no?]yes</s>[yes or no now?]no</s>" and counted(example, tokenizer) == "yes</s>no</s>"
    asked = next(at for at, label in enumerate(example.labels) if label != IGNORE)
    assert tokenizer.decode(example.input_ids[:asked]) == "[yes or no?]"


def test_an_answer_whose_reasoning_the_template_takes_apart_is_found():
    thinking = TEMPLATE.replace(
        "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}"
    )
    tokenizer = tiny_tokenizer(
        thinking.replace("{{ m['role'] }}\n", "{{ m['role'] }}\n{% if '</think>' not in m['content'] %}- {% endif %}")
    )
    with pytest.raises(InputError, match="d.jsonl: row 2: the chat template rewrites the answer '<think>"):
        rows = [{"prompt": "four", "response": "five"}, {"prompt": "four", "response": "<think>hm</think>five"}]
        build_examples(rows, tokenizer, 200, source="d.jsonl")
    assert counted(tokenize({"prompt": "four", "response": "five"}, tokenizer, 200), tokenizer).strip() == "five</s>"


FORGETS = (  # as Qwen 3's: of earlier answers the reasoning is left out; the last one has some, be it empty
    "{% for m in messages %}{% set said = m['content'].split('</think>')[-1].lstrip('\n') %}<s>{{ m['role'] }}\n"
    "{% if m['role'] != 'assistant' %}{{ m['content'] }}{% elif not loop.last %}{{ said }}"
    "{% else %}<think>\n{{ m['content'].split('</think>')[0].split('<think>\n')[-1] if '</think>' in m['content'] }}</think>\n\n{{ said }}"
    "{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
THOUGHT = "<think>\nhm\n</think>\n\nfive"


def turns(*contents: str) -> dict:
    return {"messages": [{"role": ("user", "assistant")[at % 2], "content": words} for at, words in enumerate(contents)]}


@pytest.mark.parametrize("last", [THOUGHT, "<think>\nno\n</think>\n\nfour"])
def test_of_an_earlier_answer_counts_what_the_template_has_kept(last):
    tokenizer = tiny_tokenizer(FORGETS)
    example = tokenize(turns("five and", THOUGHT, "and", THOUGHT, "five", last), tokenizer, 400)
    asked = "<s>user\nfive and</s>\n<s>assistant\nfive</s>\n<s>user\nand</s>\n<s>assistant\nfive</s>\n<s>user\nfive</s>\n"
    assert example.text == f"{asked}<s>assistant\n{last}</s>\n"
    assert counted(example, tokenizer) == f"five</s>five</s>{last}</s>"
    assert counted(tokenize(turns("five", last), tokenizer, 200), tokenizer) == f"{last}</s>"
    plain = turns("five", "four", "and", "five")
    assert counted(tokenize(plain, tokenizer, 200), tokenizer) == "four</s>five</s>"


def test_an_answer_whose_beginning_alone_is_kept_counts_so_far():
    tokenizer = tiny_tokenizer(TEMPLATE.replace("m['content']", "(m['content'] if loop.last else m['content'].split('(')[0])"))
    example = tokenize(turns("and", "four (4)", "and", "five (5)"), tokenizer, 200)
    assert counted(example, tokenizer) == "four </s>five (5)</s>"


@pytest.mark.parametrize(
    ("template", "row"),
    [
        (FORGETS, turns("five", "<think>\nhm\n</think>", "and", THOUGHT)),  # nothing is left of it
        (TEMPLATE.replace("m['content']", "m['content'].upper()"), turns("five", THOUGHT, "and", THOUGHT)),
        (TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]"), turns("five", THOUGHT)),  # would never be learned
    ],
)
def test_an_answer_of_which_the_template_keeps_nothing_or_not_the_last_is_refused(template, row):
    with pytest.raises(InputError, match="the chat template rewrites the answer '<think>"):
        tokenize(row, tiny_tokenizer(template), 200)


def test_a_conversation_that_the_template_refuses_is_named_by_its_row():
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE + "{% endfor %}"
    )
    rows = [
        {"prompt": "four", "response": "five"},
        {"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]},
    ]
    with pytest.raises(
        InputError, match="d.jsonl: row 2: the tokenizer's chat template refuses a conversation of system, assistant: no system"
    ):
        build_examples(rows, tokenizer, 200, source="d.jsonl")


def test_an_empty_answer_teaches_the_end_token():
    tokenizer = tiny_tokenizer()
    assert counted(tokenize({"prompt": "hi", "response": ""}, tokenizer, 99), tokenizer) == "</s>"


def test_an_end_of_turn_token_other_than_eos_counts():
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end>{% endfor %}")
    tokenizer.add_tokens(["<end>"], special_tokens=True)
    assert counted(tokenize({"prompt": "hi", "response": "five"}, tokenizer, 99), tokenizer).strip() == "five<end>"


def test_without_a_chat_template_prompt_and_response_stand_on_lines():
    tokenizer = tiny_tokenizer(None)
    row = {"prompt": "two and two", "response": "four"}
    example = tokenize(row, tokenizer, 99)
    assert tokenizer.decode(example.input_ids) == "two and two\nfour</s>\n"
    assert counted(example, tokenizer) == "four</s>"
    assert prompt_text(row, tokenizer) == "two and two\n"


def test_a_slow_tokenizer_without_offsets_gives_the_same_labels(monkeypatch):
    tokenizer = tiny_tokenizer()
    row = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "four"), ("user", "b"), ("assistant", "five"))]}
    fast = tokenize(row, tokenizer, 99)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert tokenize(row, tokenizer, 99) == fast


def enclosing(template: str | None = None) -> PreTrainedTokenizerFast:
    """One that puts a token before every text and one after it, as those of BERT and T5 do."""
    tokenizer = tiny_tokenizer(template)
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = ends
    return tokenizer


@pytest.mark.parametrize("fast", [True, False])
def test_what_a_tokenizer_puts_after_a_text_is_no_part_of_an_answer(fast, monkeypatch):
    tokenizer = enclosing()
    monkeypatch.setattr(type(tokenizer), "is_fast", fast)
    example = tokenize({"prompt": "two and two", "response": "four"}, tokenizer, 99)
    assert tokenizer.decode(example.input_ids) == "<s>two and two\nfour</s>\n</s>" and counted(example, tokenizer) == "four</s>"


def test_a_prompt_does_not_end_with_what_ends_a_text():
    tokenizer = enclosing()
    (ids,) = prompt_ids(tokenizer, ["two and two"])
    assert tokenizer.decode(ids) == "<s>two and two\n"


def test_text_rows_and_loss_on_all_count_everything():
    tokenizer = tiny_tokenizer()
    assert counted(tokenize({"text": "five"}, tokenizer, 99), tokenizer) == "five</s>"
    everything = tokenize({"prompt": "a", "response": "b"}, tokenizer, 99, loss_on="all")
    assert everything.labels == everything.input_ids


def test_prompt_text_ends_where_the_answer_begins():
    assert prompt_text({"prompt": "hi", "response": "ho"}, tiny_tokenizer()) == "<s>user\nhi</s>\n<s>assistant\n"


def test_rows_cut_before_their_response_are_dropped_and_counted(caplog):
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "x" * 60, "response": "a"}, {"prompt": "x", "response": "a"}, {"prompt": "only a question"}]
    with caplog.at_level(logging.WARNING):
        kept = build_examples(rows, tokenizer, 30, source="d.jsonl")
    assert [example.row_id for example in kept] == [1]
    assert "dropped 2 of 3 rows: 1 whose response does not begin within 30 tokens (row 1) and 1 without a response (row 3)" in caplog.text
    with pytest.raises(InputError, match=r"d\.jsonl: no row to learn from .*raise data\.max_length"):
        build_examples(rows[:1], tokenizer, 30, source="d.jsonl")


def test_an_empty_answer_is_none_and_is_named_by_its_row(caplog):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": " "}, {"messages": [{"role": "assistant", "content": ""}]}]
    with caplog.at_level(logging.WARNING):
        assert [example.row_id for example in build_examples(rows, tiny_tokenizer(), 30, source="d.jsonl")] == [0]
    assert "d.jsonl: dropped 2 of 3 rows: 2 whose response is empty (rows 2, 3)" in caplog.text
    with pytest.raises(InputError, match=r"d\.jsonl: no row to learn from \(rows: 2 whose response is empty \(rows 1, 2\)\)"):
        build_examples(rows[1:], tiny_tokenizer(), 30, source="d.jsonl")
    assert len(build_examples(rows[:2], tiny_tokenizer(), 30, "all")) == 2
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "assistant", "content": "b"}]
    assert len(build_examples([{"messages": turns}], tiny_tokenizer(), 99)) == 1  # it has an answer to learn from


def test_a_turn_that_only_calls_a_tool_teaches_nothing_in_its_place():
    tokenizer = tiny_tokenizer()
    call = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    asked = [{"role": "user", "content": "sum"}, {"role": "assistant", "content": "", "tool_calls": call}]
    row = {"messages": [*asked, {"role": "tool", "content": "5"}, {"role": "assistant", "content": "five"}]}
    assert counted(tokenize(row, tokenizer, 99), tokenizer) == "five</s>"
    said = [{**message, "content": "wait"} if "tool_calls" in message else message for message in row["messages"]]
    assert counted(tokenize({"messages": said}, tokenizer, 99), tokenizer) == "wait</s>five</s>"


@pytest.mark.parametrize("key", ["completion", "answer", "output", "reponse", "Response"])
def test_a_response_under_another_name_is_not_learned_without(key):
    for loss_on in ("response", "all"):
        with pytest.raises(InputError, match=rf"1 with '{key}' in the place of `response` \(row 1\)\); name the key `response`"):
            build_examples([{"prompt": "a", key: "b"}], tiny_tokenizer(), 30, loss_on, "d.jsonl")
    assert len(build_examples([{"prompt": "a", "note": "b"}], tiny_tokenizer(), 30, "all")) == 1


def test_turns_of_other_roles_are_named():
    rows = [{"messages": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]}]
    with pytest.raises(InputError, match=r"1 without a turn of the role assistant \(found 'gpt', 'human'\) \(row 1\)"):
        build_examples(rows, tiny_tokenizer(), 30, source="d.jsonl")


@pytest.mark.parametrize("tags", [5, "spam", {"a": 1}])
def test_tags_that_are_no_list_are_refused(tmp_path, tags):
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "a", "tags": tags}))
    with pytest.raises(InputError, match="d.jsonl:1: tags must be a list of texts"):
        read_rows(tmp_path / "d.jsonl")


def test_a_folder_is_no_file_of_rows(tmp_path):
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(InputError, match=r"dir.jsonl: is a folder; expected a file of one JSON object per line"):
        read_rows(tmp_path / "dir.jsonl")


def test_tags_and_source_are_kept():
    example = build_examples([{"text": "a", "tags": ["x", "y"]}], tiny_tokenizer(), 9, source="s")[0]
    assert (example.tags, example.source, example.text) == (("x", "y"), "s", "a")


# --- batches ---


def test_collate_pads_on_the_right_and_never_counts_padding():
    batch = collate([Example([5, 6, 7], [IGNORE, 6, 7], 0, "", ""), Example([8], [8], 1, "", "")], pad_id=7)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [8, IGNORE, IGNORE]]


def test_a_batch_depends_on_its_step_alone():
    sources = [examples(7, "a"), examples(5, "b")]
    forward = Mixture(sources, [1, 2], 4, seed=3)
    in_order = [forward.batch(step) for step in range(20)]
    assert Mixture(sources, [1, 2], 4, seed=3).batch(13) == in_order[13]
    assert [Mixture(sources, [1, 2], 4, seed=4).batch(step) for step in range(20)] != in_order


def test_every_row_comes_once_per_epoch_in_another_order():
    mixture = Mixture([examples(12)], batch_size=4)
    first, second = ([e.row_id for step in range(3 * n, 3 * n + 3) for e in mixture.batch(step)] for n in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_shares_are_exact_in_every_batch_and_rotate_where_they_cannot_be():
    sources = [examples(9, name) for name in "abc"]
    assert all(Mixture(sources, [0.1, 0.2, 0.7], 10).counts(step) == [1, 2, 7] for step in range(50))
    thirds = Mixture(sources, [1, 1, 1], 8)
    assert all(sorted(thirds.counts(step)) == [2, 3, 3] for step in range(30))
    assert [sum(column) for column in zip(*(thirds.counts(step) for step in range(30)), strict=True)] == [80, 80, 80]
    rare = Mixture(sources[:2], [0.05, 0.95], 4)
    assert sum(rare.counts(step)[0] for step in range(100)) == 20


def test_keep_leaves_the_same_rows_of_one_source():
    sources = [examples(9, "a"), examples(7, "b")]
    whole, only = Mixture(sources, [1, 2], 5, seed=1), Mixture(sources, [1, 2], 5, seed=1, keep=[1])
    for step in range(12):
        assert only.batch(step) == [example for example in whole.batch(step) if example.source == "b"]


def test_ranks_share_a_batch_without_overlap():
    mixture = Mixture([examples(20)], batch_size=7)
    parts = [mixture.batch(2, rank, 3) for rank in range(3)]
    assert sorted(e.row_id for part in parts for e in part) == sorted(e.row_id for e in mixture.batch(2))
    assert parts[1] == mixture.batch(2)[1::3]


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(InputError, match="weights"):
        Mixture([examples(2), examples(2)], weights)


def test_an_empty_source_is_refused():
    with pytest.raises(InputError, match="at least one example"):
        Mixture([examples(2), []])
