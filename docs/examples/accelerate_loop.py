"""gradlens in an Accelerate loop: three added lines, marked with `# gradlens`. Run: python docs/examples/accelerate_loop.py [STEPS]

Run with accelerate 1.15. `accelerate launch --num_processes 2 docs/examples/accelerate_loop.py` does the same on two processes.
"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import gradlens  # gradlens
from gradlens.data.rows import collate, read_rows, tokenize
from gradlens.model.loading import load_model

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
model, tokenizer = load_model("smollm2")
for name, parameter in model.named_parameters():  # fine-tune the MLPs of the upper half
    parameter.requires_grad = ".mlp." in name and int(name.split(".")[2]) >= 14
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
rows = read_rows("demo:pirate-train")[: 4 * steps]
examples = [tokenize(row, tokenizer, max_length=80) for row in rows]
loader = DataLoader(examples, batch_size=2, collate_fn=lambda part: collate(part, tokenizer.pad_token_id))
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
model.train()

with gradlens.watch(model, optimizer, {"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}, tokenizer=tokenizer) as lens:  # gradlens
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()

accelerator.print(lens.top(10))  # gradlens
