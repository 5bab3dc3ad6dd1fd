"""gradlens in transformers' Trainer: three added lines, marked with `# gradlens`. Run: python docs/examples/hf_trainer.py [STEPS]"""

import sys
import tempfile

from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import gradlens  # gradlens
from gradlens.data.rows import collate, read_rows, tokenize
from gradlens.model.loading import load_model

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
model, tokenizer = load_model("smollm2")
model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"]))
examples = [tokenize(row, tokenizer, max_length=80) for row in read_rows("demo:pirate-train")[: 4 * steps]]

lens = gradlens.GradLensCallback(dictionaries={"layers.27": "smollm2-l27"}, concepts=["demo:pirate"])  # gradlens
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to=[],
        remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples,
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[lens],
    )
    trainer.train()

print(lens.top(10))  # gradlens
