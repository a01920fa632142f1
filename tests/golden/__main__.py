"""Writes the golden files anew: ``python -m tests.golden``."""

from __future__ import annotations

import torch

from tests.golden import COMPARED, MODELS, comparisons, renderings

torch.set_num_threads(1)
for name in MODELS:
    for path, text in renderings(name):
        path.write_text(text, encoding="utf-8")
        print(path)
COMPARED.write_text("".join(f"== {name}\n{text()}\n" for name, text in comparisons()[1].items()), encoding="utf-8")
print(COMPARED)
