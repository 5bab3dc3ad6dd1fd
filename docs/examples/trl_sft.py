"""gradlens in a stock TRL SFT script with LoRA: three added lines, marked with `# gradlens`. Run: python docs/examples/trl_sft.py [STEPS]

Needs `pip install 'gradlens-lab[trl]'`; run with trl 1.16, transformers 5.23, peft 0.21, datasets 5.2. Curves: W&B (offline here), in the
trainer's own run on its axis `train/global_step`; the run folder under runs/.
"""

import os
import sys

os.environ.setdefault("WANDB_MODE", "offline")

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import gradlens  # gradlens
from gradlens.data.rows import read_rows
from gradlens.model.loading import resolve_model

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
rows = read_rows("demo:pirate-train")[: 4 * steps]
chat = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}] for row in rows]
dataset = Dataset.from_list([{"prompt": messages[:1], "completion": messages[1:]} for messages in chat])

lens = gradlens.GradLensCallback(
    dictionaries={"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}, concepts=["demo:pirate"]
)  # gradlens
trainer = SFTTrainer(
    resolve_model("smollm2"),
    args=SFTConfig(
        "trl-output", max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, save_strategy="no",
        report_to=["wandb"], use_cpu=True, bf16=False, gradient_checkpointing=False,
    ),
    train_dataset=dataset,
    peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"]),
    callbacks=[lens],
)  # fmt: skip
trainer.train()

print(lens.top(10))  # gradlens
