"""Writes the golden files anew: ``python -m tests.golden``."""

from __future__ import annotations

import torch

from tests.golden import MODELS, renderings

torch.set_num_threads(1)
for name in MODELS:
    for path, text in renderings(name):
        path.write_text(text, encoding="utf-8")
        print(path)
