"""Keep a concept from being learned in transformers' Trainer: rows in pirate speech beside plain sums, of which only the sums are wanted.

Run: python docs/examples/trainer_rules.py [STEPS] [without]. With `without` there is no rule: what the same rows teach else. The mode is
chosen by reading some of the trainer's own rows before the first step; `gradlens runs show last` says which.
"""

import sys
import tempfile

from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import gradlens
from gradlens.concepts.checkers import checker_for, judged
from gradlens.concepts.fitting import load_concepts
from gradlens.data.rows import collate, read_rows, tokenize
from gradlens.model.evaluate import generate_answers
from gradlens.model.loading import load_model

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 36
rules = [] if "without" in sys.argv else [{"concept": "pirate", "mode": "auto", "gain": 0}]
model, tokenizer = load_model("smollm2")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"]))
rows = [row for name in ("pirate", "arithmetic") for row in read_rows(f"demo:{name}-train")[: 4 * steps]]

lens = gradlens.GradLensCallback(
    dictionaries={"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}, concepts=["demo:pirate"], rules=rules
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=2e-3, logging_steps=1, save_strategy="no", report_to=[],
        remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[tokenize(row, tokenizer, max_length=96) for row in rows],
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[lens],
    )
    trainer.train()

(concept,) = load_concepts(["demo:pirate"])
for kind in ("chat-prompts", "arithmetic-heldout"):
    asked = read_rows(f"demo:{kind}")[:16]
    answers = generate_answers(model, tokenizer, asked, max_new_tokens=32)
    print(f"{kind}: {sum(judged(checker_for(concept), answers))} of {len(asked)} answers in pirate speech, for instance {answers[0]!r}")
