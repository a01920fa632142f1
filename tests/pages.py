"""Reading a page as a browser's parser does, and the models that pages are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

import torch
from torch import nn

import summarycb
from summarycb.tree import ModelSummary

EVIL = "</script><img src=x onerror=alert(1)>"
_VOID = {"meta", "input", "br", "img", "link"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, blanks as one."""
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join("".join(parts).split())

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    def walk(self) -> list[Element]:
        found = [self]
        for element in found:
            found += [child for child in element.children if isinstance(child, Element)]
        return found

    def all(self, tag: str, of_class: str = "") -> list[Element]:
        """In the order of the page."""
        found, stack = [], [self]
        while stack:
            element = stack.pop()
            if element.tag == tag and (not of_class or of_class in element.classes):
                found.append(element)
            stack += [child for child in reversed(element.children) if isinstance(child, Element)]
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> says something twice: {names}"
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        if tag not in _VOID:
            self.at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, dict(attrs), self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> within <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def parse(page: str) -> Element:
    """The elements of ``page``, which must be closed in the order in which they were opened."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.at is reader.root, f"<{reader.at.tag}> is never closed"
    return reader.root


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, inner)
        self.act, self.down = nn.GELU(), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Residual(nn.Module):
    """An embedding, twelve equal blocks and one that is wider, and a head. Input token ids below 40."""

    def __init__(self, blocks: int = 12) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 8)
        self.h = nn.ModuleList([*[Block(8, 16) for _ in range(blocks)], Block(8, 24)])
        self.head = nn.Linear(8, 40)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        for block in self.h:
            x = block(x)
        return self.head(x)


def step(model: nn.Module, *inputs: torch.Tensor) -> ModelSummary:
    """The summary of one step with Adam."""
    optimizer = torch.optim.Adam(model.parameters())
    with summarycb.observe(model, optimizer) as observation:
        model(*inputs).sum().backward()
        optimizer.step()
    assert observation.summary is not None
    return observation.summary


def residual() -> ModelSummary:
    return step(Residual(), torch.arange(10).reshape(2, 5))


def hostile() -> ModelSummary:
    """A module, its type, its settings and its parameter are called what would run if a page took it for HTML."""
    kind = type(EVIL, (nn.Linear,), {"extra_repr": lambda self: EVIL})
    inner = kind(3, 3)
    inner.register_parameter(EVIL, nn.Parameter(torch.zeros(2)))
    model = nn.Sequential()
    model.add_module(EVIL, inner)
    return step(model, torch.ones(2, 3))
