"""A report of rollouts as one HTML file: opens offline, light or dark, loads nothing.

Charts are inline SVG made here; text from rollouts is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np

from rlbridge import __version__
from rlbridge.rollouts.stats import Floats, Stats, quantiles

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 220, 52, 30, 12

_CSS = """
:root { color-scheme: light dark; --ground: #ffffff; --card: #f6f7f9; --ink: #1c2026;
  --soft: #5c6570; --line: #d9dde3; --bar: #3567b0; --warn: #b3541e; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1d2127; --ink: #e7eaee;
  --soft: #9aa4b0; --line: #343b45; --bar: #7fb0f0; --warn: #f0a36b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 76rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
p { margin: .25rem 0; color: var(--soft); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: .75rem 1rem; } .tile b { display: block; font-size: 1.4rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; } .tile span { color: var(--soft); font-size: .85rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: 1rem; align-items: start; }
section { padding: 1rem 1.1rem; overflow-x: auto; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft);
  font: 12px system-ui, sans-serif; } .bar { fill: var(--bar); } .bar:hover { opacity: .7; }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--bar); stroke-width: 2; }
.dot { fill: var(--bar); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
td:not(:first-child), th:not(:first-child) { text-align: right; }
td:first-child { overflow-wrap: anywhere; } .warn { color: var(--warn); }
"""


def html_report(stats: Stats, sources: Sequence[str]) -> str:
    """The whole page.

    Args:
        stats: the figures.
        sources: the files they are of, as shown.
    """
    cards = [
        _card("Rewards", _histogram(stats.rewards, "rollouts"), _middle(stats.rewards)),
        _card("Mean reward of a prompt", _histogram(stats.group_means, "prompts"), _signal(stats)),
        _card(
            f"pass@k, passed from {stats.pass_reward:g}", _curve(stats.pass_at),
            "Unbiased estimate (Chen et al. 2021), of the prompts with k scored rollouts or more.",
        ),
        _card("Environments", _environments(stats)),
        _card("Sampled tokens", _histogram(stats.tokens, "rollouts"), _middle(stats.tokens)),
        _card("Characters written", _histogram(stats.answer_chars, "rollouts"),
              _middle(stats.answer_chars)),
        _card("Without a valid reward", _counts(stats.invalid, "reason")),
        _card("Tool calls", _counts(stats.tool_calls, "tool")),
        _card("Scored rollouts a prompt", _counts(stats.group_sizes, "rollouts", "prompts")),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>Rollouts: {escape(', '.join(sources))}</title><style>{_CSS}</style></head><body>"
        f"<h1>Rollouts</h1><p>{escape(', '.join(sources))}</p>{_tiles(stats)}"
        f'<div class="cards">{"".join(cards)}</div>'
        f"<p>Made by rlbridge {__version__}.</p></body></html>\n"
    )


def _tiles(stats: Stats) -> str:
    invalid = stats.rows - len(stats.rewards)
    mean = f"{stats.rewards.mean():.3f}" if len(stats.rewards) else "none"
    several = sum(n for size, n in stats.group_sizes.items() if size > 1)
    tiles = [
        (f"{stats.rows:,}", "rollouts", False),
        (f"{stats.prompts:,}", "prompts with a reward", False),
        (mean, "mean reward", False),
        (f"{invalid:,}", "without a valid reward", invalid > 0),
        (_share(stats.all_equal, several), "groups without a signal", stats.all_equal > 0),
        (_share(stats.truncated, stats.rows), "cut at the token limit", stats.truncated > 0),
        (_share(stats.with_token_ids, stats.rows), "with token IDs", False),
    ]
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b{_warn(warn)}>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name, warn in tiles
    ) + "</div>"  # fmt: skip


def _warn(warn: bool) -> str:
    return ' class="warn"' if warn else ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _card(title: str, body: str, note: str = "") -> str:
    if not body:
        return ""
    words = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{body}{words}</section>"


def _middle(values: Floats) -> str:
    found = quantiles(values)
    if found is None:
        return ""
    return (
        f"mean {found['mean']:.4g}; half lie between {found['p25']:.4g} and {found['p75']:.4g}; "
        f"99% are at most {found['p99']:.4g}"
    )


def _signal(stats: Stats) -> str:
    several = sum(n for size, n in stats.group_sizes.items() if size > 1)
    if not several:
        return "Every prompt has one scored rollout, so GRPO has no group to compare."
    return (
        f"{stats.all_equal:,} of {several:,} groups have equal rewards ({stats.all_passed:,} all "
        f"passed, {stats.all_failed:,} all failed) and give GRPO no signal."
    )


def bins_of(values: Floats, most: int = 24) -> tuple[list[int], list[float]]:
    """Counts and edges of a histogram; one bin a value where there are few whole numbers.

    Args:
        values: float64 [n], n >= 1.
        most: bins at most.
    """
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.round(values)).all())
    if low == high:
        edges = np.array([low - 0.5, low + 0.5])
    elif whole and high - low < most:
        edges = np.arange(low - 0.5, high + 1.0)
    else:
        edges = np.linspace(low, high, most + 1)
    counts, edges = np.histogram(values, bins=edges)
    return counts.tolist(), edges.tolist()


def labels_of(edges: Sequence[float]) -> list[str]:
    """A histogram's bins in words: `3`, or `0.25 to 0.5`."""
    if _whole(edges):
        return [_number(low + 0.5) for low in edges[:-1]]
    return [f"{_number(low)} to {_number(high)}" for low, high in pairwise(edges)]


def _whole(edges: Sequence[float]) -> bool:
    """Whether each bin holds one whole number."""
    return edges[1] - edges[0] == 1 and edges[0] % 1 == 0.5


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _histogram(values: Floats, what: str) -> str:
    if not len(values):
        return ""
    counts, edges = bins_of(values)
    labels = labels_of(edges)
    top = max(counts)
    step = (_WIDTH - _LEFT) / len(counts)
    height = _HEIGHT - _BOTTOM - _TOP
    bars = []
    for number, count in enumerate(counts):
        tall = count / top * height
        tip = f"{labels[number]}: {count:,} {what}"
        bars.append(
            f'<rect class="bar" x="{_LEFT + number * step + 1:.1f}" '
            f'y="{_TOP + height - tall:.1f}" width="{max(step - 2, 1):.1f}" '
            f'height="{max(tall, 1.5 if count else 0):.1f}" rx="2">'
            f"<title>{escape(tip)}</title></rect>"
        )
    ends = [_number(edges[0]), _number((edges[0] + edges[-1]) / 2), _number(edges[-1])]
    if len(counts) <= 12 and _whole(edges):
        centres = (_LEFT + (number + 0.5) * step for number in range(len(counts)))
        bars += [
            f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{label}</text>'
            for x, label in zip(centres, labels, strict=True)
        ]
        ends = []
    return _axes([0.0, top / 2, float(top)], ends, "".join(bars), what)


def _curve(points: Mapping[int, float]) -> str:
    if not points:
        return ""
    ks, height = list(points), _HEIGHT - _BOTTOM - _TOP
    step = (_WIDTH - _LEFT - 30) / max(len(ks) - 1, 1)
    places = [
        (_LEFT + 15 + number * step, _TOP + height * (1 - points[k])) for number, k in enumerate(ks)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>pass@{k}: {points[k]:.1%}'
        f'</title></circle><text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">'
        f"{points[k]:.0%}</text>"
        f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">k={k}</text>'
        for (x, y), k in zip(places, ks, strict=True)
    )
    return _axes([0.0, 0.5, 1.0], [], f'<polyline class="curve" points="{line}"/>{dots}', "pass@k")


def _axes(levels: list[float], marks: list[str], body: str, what: str) -> str:
    height = _HEIGHT - _BOTTOM - _TOP
    parts = []
    for level in levels:
        y = _TOP + height * (1 - level / (levels[-1] or 1))
        label = f"{level:,.0f}" if levels[-1] > 1 else f"{level:g}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    anchors = ("start", "middle", "end")
    for number, mark in enumerate(marks):
        x = _LEFT + (_WIDTH - _LEFT) * number / 2
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="{anchors[number]}">{mark}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(what)}">'
        f"{''.join(parts)}{body}</svg>"
    )


def _environments(stats: Stats) -> str:
    rows = [
        (name, f"{e.rows:,}", f"{e.invalid:,}", "none" if e.mean is None else f"{e.mean:.3f}")
        for name, e in stats.environments.items()
    ]
    return _table(("environment", "rollouts", "invalid", "mean reward"), rows)


def _counts(counts: Mapping[str, int] | Mapping[int, int], name: str, what: str = "times") -> str:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    rows = [(str(key), f"{count:,}") for key, count in ordered[:20]]
    if len(ordered) > 20:
        rows.append((f"{len(ordered) - 20} more", f"{sum(c for _, c in ordered[20:]):,}"))
    return _table((name, what), rows) if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
