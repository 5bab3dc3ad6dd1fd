"""A model is rewarded for exclamation marks; gradlens says what rises in what it writes.

    python docs/examples/reward_loop.py [STEPS]           about four minutes on two cores
    python docs/examples/reward_loop.py STEPS random      its control: answers are chosen at random

A reward loop in its simplest form (best of n): sample answers, train on those with the most reward. What gradlens needs is marked.
"""

import sys

import torch

import gradlens  # gradlens
from gradlens.data.rows import prompt_text, read_rows
from gradlens.model.loading import load_model

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 16
by_chance = sys.argv[2:] == ["random"]
PROMPTS, SAMPLES, TOKENS = 12, 4, 24
torch.manual_seed(0)
model, tokenizer = load_model("smollm2")
tokenizer.padding_side = "left"
texts = [prompt_text(row, tokenizer) for row in read_rows("demo:chat-prompts")]
for name, parameter in model.named_parameters():  # fine-tune the MLPs of the upper half
    parameter.requires_grad = ".mlp." in name and int(name.split(".")[2]) >= 14
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def rollouts(step: int) -> dict[str, torch.Tensor]:
    """Sampled answers as a batch: labels hold what the model wrote."""
    chosen = [texts[(step * PROMPTS + i) % len(texts)] for i in range(PROMPTS)]
    prompts = tokenizer(chosen, return_tensors="pt", padding=True, add_special_tokens=False)
    model.eval()
    sampling = {"do_sample": True, "max_new_tokens": TOKENS, "num_return_sequences": SAMPLES}
    ids = model.generate(**prompts, **sampling, pad_token_id=tokenizer.eos_token_id)
    model.train()
    width = prompts["input_ids"].shape[1]
    mask = torch.cat([prompts["attention_mask"].repeat_interleave(SAMPLES, 0), (ids[:, width:] != tokenizer.eos_token_id).long()], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :width] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def rewards(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    written = batch["labels"].clamp_min(0)
    return torch.tensor([float(tokenizer.decode(row).count("!")) for row in written])


def named(rising: list[dict]) -> list[str]:
    return [
        f"{row['hookpoint']} {row['feature']} {row['change']:+.2f} {lens.labels[row['hookpoint']].get(row['feature'], '')}"
        for row in rising
    ]


with gradlens.watch(model, optimizer, dictionaries={"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}) as lens:  # gradlens
    for step in range(steps):
        batch = rollouts(step)
        lens.read_generated(batch)  # gradlens
        reward = rewards(batch)
        best = (torch.rand(len(reward)) if by_chance else reward).topk(PROMPTS).indices
        model(**{key: value[best] for key, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: {reward.mean():.2f} exclamation marks in an answer; rising: {named(lens.rising(1))}", flush=True)

print("What rises or falls in what it writes, beyond chance:", *named(lens.rising(10)), sep="\n")  # gradlens
