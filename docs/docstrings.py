"""Docstrings as Markdown: roles such as ``:func:`` become links where the site has their target, stars stay stars.

Comments that begin with ``#:`` are docstrings of what they stand above.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([\w.]+)`")


def markdown(text: str) -> str:
    def link(match: re.Match[str]) -> str:
        name = match[1]
        target = name if "." in name else f"segops.{name}"
        return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'

    return re.sub(r"(?<![`*\w])\*(?=\w+\])", r"\\*", ROLE.sub(link, text))


def comment_above(obj: griffe.Object) -> str:
    """The lines that begin with ``#:`` right above a module's variable."""
    lines = obj.lines_collection[obj.filepath][: (obj.lineno or 1) - 1]
    found = [line[2:].strip() for line in takewhile(lambda line: line.startswith("#:"), reversed(lines))]
    return "\n".join(reversed(found))


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.is_attribute and not obj.docstring and (comment := comment_above(obj)):
            obj.docstring = griffe.Docstring(comment, parent=obj)
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
