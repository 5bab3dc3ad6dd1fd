"""gradlens around a plain PyTorch loop: three added lines, marked with `# gradlens`. Run: python docs/examples/plain_loop.py [STEPS]"""

import sys

import torch

import gradlens  # gradlens
from gradlens.data.rows import collate, read_rows, tokenize
from gradlens.model.loading import load_model

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
model, tokenizer = load_model("smollm2")
rows = read_rows("demo:pirate-train")[: 4 * steps]
examples = [tokenize(row, tokenizer, max_length=80) for row in rows]
loader = [collate(examples[i : i + 4], tokenizer.pad_token_id) for i in range(0, len(examples), 4)]

for name, parameter in model.named_parameters():  # fine-tune the MLPs of the upper half
    parameter.requires_grad = ".mlp." in name and int(name.split(".")[2]) >= 14
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
model.train()

with gradlens.watch(model, optimizer, dictionaries={"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}) as lens:  # gradlens
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

print(lens.top(10))  # gradlens
print(f"run folder: {lens.run_dir}; look at it with: gradlens report {lens.run_dir}")
