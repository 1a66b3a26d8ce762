"""Flame graphs: stacks and how often they were seen in, a picture that a browser opens out.

Pure. A frame is as wide as the part of the samples that it was in, whatever it called; what it
was called by is below it. Colours tell whose code it is, so that the wire, the store and the
interpreter are told apart at a glance; a click widens a frame, Ctrl-F searches.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

Stacks = Mapping[tuple[str, ...], int]
"""How often each stack was seen, outermost frame first."""

WIDTH, ROW, HEAD = 1400, 17, 46
"""Pixels: of the picture, of a frame's height, of the lines above."""
LEAST = 0.4
"""Frames narrower than so many pixels are left out."""
MAX_DEPTH = 200

OWNERS = (
    ("client", "hillfire/client/", 205),
    ("storage", "hillfire/storage/", 25),
    ("wire", "hillfire/proto/", 140),
    ("meta", "hillfire/meta/", 280),
    ("mount", "hillfire/fuse/", 50),
    ("hillfire", "hillfire/", 0),
)
"""Whose code a frame is: what its file begins with, and its hue."""
_HEADS = (
    "runpy", "(hillfire:", "hillfire/cli/", "hillfire/eventloop.py", "typer/", "click/",
    "asyncio/runners.py", "threading.py", "concurrent/futures/thread.py",
)  # fmt: skip


class Node:
    """A frame in its place."""

    __slots__ = ("below", "count", "own")

    def __init__(self) -> None:
        """Not seen yet."""
        self.count = 0
        self.own = 0
        """how often it was innermost: on the processor itself"""
        self.below: dict[str, Node] = {}


class Hot(NamedTuple):
    """A function and its part of all samples."""

    name: str
    own: float
    whole: float


def parse(text: str, under: str) -> dict[tuple[str, ...], int]:
    """Return the stacks of py-spy's raw format, under the name of their process.

    What every stack begins with (the interpreter's start, the command line) is left out.
    """
    found: dict[tuple[str, ...], int] = {}
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack or not count.isdigit():
            continue
        frames = stack.split(";")
        thread = ""
        if frames[0].startswith("thread ("):
            thread = frames.pop(0).partition(": ")[2]
        start = 0
        while start < len(frames) - 1 and any(head in frames[start] for head in _HEADS):
            start += 1
        at = (under, *([thread] if thread and thread != "MainThread" else []))
        key = (*at, *frames[start:][:MAX_DEPTH])
        found[key] = found.get(key, 0) + int(count)
    return found


def tree(stacks: Stacks) -> Node:
    """Put stacks on top of each other."""
    root = Node()
    for stack, count in stacks.items():
        node = root
        node.count += count
        for frame in stack:
            node = node.below.setdefault(frame, Node())
            node.count += count
        node.own += count
    return root


def hottest(stacks: Stacks, most: int) -> list[Hot]:
    """Return the functions that were innermost most often."""
    own: dict[str, int] = {}
    whole: dict[str, int] = {}
    total = sum(stacks.values()) or 1
    for stack, count in stacks.items():
        own[stack[-1]] = own.get(stack[-1], 0) + count
        for frame in set(stack):
            whole[frame] = whole.get(frame, 0) + count
    ordered = sorted(own, key=lambda frame: (-own[frame], frame))
    return [Hot(frame, own[frame] / total, whole[frame] / total) for frame in ordered[:most]]


def render(stacks: Stacks, title: str) -> str:
    """Return an SVG document."""
    root = tree(stacks)
    boxes: list[str] = []
    depth = _draw(root, 0.0, 0, WIDTH / max(1, root.count), boxes, root.count)
    height = HEAD + (depth + 1) * ROW + 8
    # The root is at the bottom, as flames burn upwards.
    script = files("hillfire.cli").joinpath("flame.js").read_text()
    legend = "".join(
        f'<tspan fill="hsl({hue} 65% 38%)">&#9632; {name}  </tspan>' for name, _, hue in OWNERS
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="monospace" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fdfdfb"/>'
        f'<text x="8" y="18" font-size="15">{escape(title)}</text>'
        f'<text x="8" y="36">{legend}<tspan fill="#777">&#9632; others</tspan></text>'
        f'<text id="found" x="{WIDTH - 8}" y="36" text-anchor="end" fill="#777">click: widen a '
        f"frame; Ctrl-F: search; Esc: all</text>"
        f'<g id="flames" data-total="{root.count}" data-width="{WIDTH}" '
        f'transform="translate(0 {height - ROW - 4}) scale(1 1)">{"".join(boxes)}</g>'
        f"<script><![CDATA[{script}]]></script></svg>"
    )


def _draw(node: Node, left: float, level: int, scale: float, boxes: list[str], total: int) -> int:
    """Append the boxes above a node; return how high they reach."""
    highest, place = level, left
    for frame, child in sorted(node.below.items()):
        width = child.count * scale
        if width >= LEAST:
            boxes.append(_box(frame, child, place, level, width, total))
            highest = max(highest, _draw(child, place, level + 1, scale, boxes, total))
        place += width
    return highest


def _box(frame: str, node: Node, left: float, level: int, width: float, total: int) -> str:
    part = f"{node.count / total:.1%}"
    own = f", {node.own / total:.1%} itself" if node.own else ""
    letters = int((width - 4) / 6.7)
    label = frame if len(frame) <= letters else frame[: letters - 1] + "…" if letters > 3 else ""
    return (
        f'<g class="f" data-n="{escape(frame, True)}" data-x="{left:.2f}" data-w="{width:.2f}" '
        f'data-l="{level}"><title>{escape(frame)}: {part}{own}</title>'
        f'<rect x="{left:.2f}" y="{-level * ROW}" width="{max(0.3, width - 0.5):.2f}" '
        f'height="{ROW - 1}" fill="{colour(frame)}"/>'
        f'<text x="{left + 3:.2f}" y="{-level * ROW + 12}">{escape(label)}</text></g>'
    )


def colour(frame: str) -> str:
    """Return a frame's colour: a hue for whose code it is, a shade for which function."""
    shade = zlib.crc32(frame.encode()) % 12
    for _, begin, hue in OWNERS:
        if f"({begin}" in frame:
            return f"hsl({hue} 70% {70 + shade}%)"
    return f"hsl(60 5% {78 + shade}%)"


def merge(each: Iterable[Stacks]) -> dict[tuple[str, ...], int]:
    """Return all stacks together."""
    found: dict[tuple[str, ...], int] = {}
    for stacks in each:
        for stack, count in stacks.items():
            found[stack] = found.get(stack, 0) + count
    return found


def by_root(stacks: Stacks) -> Sequence[tuple[str, float]]:
    """Return each process's part of all samples, in order of names."""
    total = sum(stacks.values()) or 1
    parts: dict[str, int] = {}
    for stack, count in stacks.items():
        parts[stack[0]] = parts.get(stack[0], 0) + count
    return [(name, parts[name] / total) for name in sorted(parts)]
