"""gradlens in Lightning's Trainer: three added lines, marked with `# gradlens`. Run: python docs/examples/lightning_fit.py [STEPS]

Needs `pip install 'gradlens-lab[lightning]'`; run with lightning 2.6.
"""

import sys

import lightning
import torch
from torch.utils.data import DataLoader

import gradlens  # gradlens
from gradlens.data.rows import collate, read_rows, tokenize
from gradlens.model.loading import load_model

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20


class FineTune(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.tokenizer = load_model("smollm2")
        for name, parameter in self.model.named_parameters():  # fine-tune the MLPs of the upper half
            parameter.requires_grad = ".mlp." in name and int(name.split(".")[2]) >= 14

    def training_step(self, batch, index):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-4)


module = FineTune()
examples = [tokenize(row, module.tokenizer, max_length=80) for row in read_rows("demo:pirate-train")[: 4 * steps]]
loader = DataLoader(examples, batch_size=4, collate_fn=lambda part: collate(part, module.tokenizer.pad_token_id))

lens = gradlens.GradLensLightning({"layers.15": "smollm2-l15", "layers.27": "smollm2-l27"}, tokenizer=module.tokenizer)  # gradlens
trainer = lightning.Trainer(
    max_steps=steps, accelerator="cpu", log_every_n_steps=1, callbacks=[lens], logger=False, enable_checkpointing=False,
    enable_progress_bar=False,
)  # fmt: skip
module.model.train()
trainer.fit(module, loader)

print(lens.top(10))  # gradlens
