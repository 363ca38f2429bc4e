"""The lessons in their order: what each is called in the menu, and where pages lie."""

from __future__ import annotations

from pathlib import Path

LESSONS = {
    "grid": "One number on a grid",
    "schemes": "Symmetric or affine",
    "observers": "Observers and outliers",
    "granularity": "Per tensor, channel, group",
    "bits": "What one bit costs",
    "modes": "Dynamic, static, weight-only",
    "folding": "Folding and fusing",
    "integers": "Is it really integer?",
    "boundaries": "Boundaries",
    "straight_through": "QAT and straight-through",
    "few_bits": "Four bits and fewer",
    "not_quantized": "Why is it not quantized?",
    "state_dict": "state_dict did not change",
    "hunt": "Debugging a bad model",
    "myths": "Myths, measured",
}
SECTION, GLOSSARY = "Learn", "glossary"


def menu() -> dict[str, str]:
    """The pages of the section, by file, with what the menu calls them."""
    return {slug: f"{number(slug)} · {title}" for slug, title in LESSONS.items()} | {GLOSSARY: "Glossary"}


def number(slug: str) -> int:
    """The place of a lesson, from 1."""
    return list(LESSONS).index(slug) + 1


def neighbours(slug: str) -> tuple[str | None, str | None]:
    """The lessons before and after this one."""
    order = [None, *LESSONS, None]
    at = order.index(slug)
    return order[at - 1], order[at + 1]


def page(name: str, section: str = "learn") -> Path:
    """The file of a page, as `st.switch_page` and `st.page_link` take it."""
    return Path("pages") / section / f"{name}.py"
