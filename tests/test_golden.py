"""What is printed of real steps, character for character; ``python -m tests.golden`` writes the files anew."""

from __future__ import annotations

import pytest

from summarycb import ModelSummary
from summarycb.fold import fold
from summarycb.tree import add
from summarycb.view import Selection, select
from tests.golden import MODELS, cnn, moe, renderings, summary


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_rendering(name: str) -> None:
    for path, text in renderings(name):
        assert text == path.read_text(encoding="utf-8"), f"{path.name} is not what is rendered now"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("width", [100, 80])
def test_no_line_is_wider_than_the_screen(name: str, width: int) -> None:
    for given in ({}, {"depth": None}, {"top": 9}, {"filter": "*1*"}, {"metric": "optimizer_state"}):
        text = summary(name).to_text(width=width, **given)  # type: ignore[arg-type]
        assert max(map(len, text.split("\n"))) <= width


@pytest.mark.parametrize("name", MODELS)
def test_what_is_shown_sums_to_the_step(name: str) -> None:
    """Each module is in one row: what they have by themselves, and what is outside, is all."""
    made = summary(name)
    copies = [copy for item in fold(made.root).walk() for copy in item.copies]
    assert add(*[copy.own.params for copy in copies]) == made.total_params
    assert add(made.outside.forward_macs, *[copy.own.forward_macs for copy in copies]) == made.forward_macs
    saved = add(made.outside.saved_activations, *[copy.own.saved_activations for copy in copies])
    assert saved == made.memory.saved_activations


def rows(made: ModelSummary, depth: int | None = 3) -> int:
    return len(select(made, Selection(depth=depth)).rows)


def test_twelve_layers_are_24_rows_and_500_modules_30() -> None:
    gpt2 = summary("gpt2")
    # 12 layers of 13 modules, of which 4 and 4 in attention and MLP, in a list, with 5 more around it and the root
    assert len(gpt2.modules) == 12 * 13 + 8 == 164
    # the root, transformer, wte, wpe, drop, the list, a layer's 13, ln_f, lm_head, and outside
    assert rows(gpt2, depth=None) == 6 + 13 + 3 <= 24
    for made in (moe(13), cnn(10, 16, 24, 13)):
        assert len(made.modules) > 500
        assert rows(made) <= 30
