"""Room for an answer: for nearly all training answers and a quarter more, within bounds."""

import json

from words import word_tokenizer

from gradlens.bench.answer_length import room, room_for


def test_room_is_for_95_percent_and_a_quarter_more_within_bounds():
    assert room([40] * 95 + [400] * 5, 256) == 50
    assert room([40] * 94 + [80] * 6, 256) == 100
    assert room([5] * 100, 256) == 32 and room([5] * 100, 24) == 32  # never less than before
    assert room([300] * 100, 256) == 256


def test_answers_are_read_of_all_files_and_not_their_questions(tmp_path):
    rows = {
        "a": [{"prompt": "w10 " * 90, "response": "w20 " * 7}] * 3,
        "b": [{"messages": [{"role": "user", "content": "w10"}, {"role": "assistant", "content": " ".join(["w21"] * 39)}]}] * 3,
    }
    for name, part in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = word_tokenizer(chat=True)
    assert room_for([str(tmp_path / "a.jsonl")], tokenizer, 256) == 32
    assert room_for([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], tokenizer, 256) == 50  # 39 words and the end, and a quarter
