"""Writes the golden corpus: `python tests/golden/make.py`.

Each case is a rollout as it was captured and, said by hand, what must become of it: which calls
make which sequence, which of them each sequence trains, how each call's prompt drifts from the
one before. The expansion to arrays below uses none of the code under test.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.templates import CHATML, HEADERS, INST, PLAIN, ROLE_ENDS, SPACED, THINK, Style
from benchmarks.tokenizers import KINDS

CASES = Path(__file__).parent / "cases"
CALL = {"id": "call00001", "type": "function",
        "function": {"name": "lookup", "arguments": {"key": "ü"}}}  # fmt: skip


@dataclass
class Case:
    """A rollout under construction.

    `chains` and `trains` are the expectation: turn indices of each sequence, and those of them
    that it trains; `drift` one entry a turn after the first, None for clean.
    """

    name: str
    style: Style
    kind: str = "byte_bpe"
    turns: list[dict[str, Any]] = field(default_factory=list)
    masked: str | None = None

    @property
    def tokenizer(self) -> Any:
        return KINDS[self.kind](self.style)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def chars(self, text: str) -> list[int]:
        return [i for char in text for i in self.ids(char)]

    def render(self, *messages: dict[str, Any]) -> list[int]:
        return self.ids(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        )

    def call(self, prompt: list[int], sampled: list[int], **fields: Any) -> list[int]:
        """Capture a call; returns the prompt and all that was sampled."""
        logprobs: list[float | None] = [-0.125 - (i % 7) / 8 for i in range(len(sampled))]
        for index in fields.pop("lost", ()):
            logprobs[index] = None
        versions = fields.pop("versions", [(len(sampled), None)])
        spans, at = [], 0
        for length, version in versions:
            span: dict[str, Any] = {
                "token_ids": sampled[at : at + length],
                "logprobs": logprobs[at : at + length],
                "provenance": [1 if x is not None else 4 for x in logprobs[at : at + length]],
            }
            spans.append(span | ({} if version is None else {"policy_version": version}))
            at += length
        number = len(self.turns)
        turn = {"prompt": {"token_ids": prompt, "provenance": [0] * len(prompt)},
                "generation": spans, "finish": "stop", "stop_reason": None,
                "sampling": {"temperature": 1.0}, "logprobs_mode": "raw", "encoding": None,
                "call_id": f"{self.name}-{number}"}  # fmt: skip
        self.turns.append(turn | fields)
        return prompt + sampled

    def write(
        self,
        chains: Sequence[Sequence[int]],
        drift: Sequence[str | None],
        *,
        trains: Sequence[Sequence[int]] | None = None,
        dropped: Sequence[int] = (),
    ) -> None:
        """Expand the expectation and write the case."""
        trains = trains or chains
        document = {
            "tokenizer": self.kind,
            "style": self.style.name,
            "rollout": {
                "version": 1, "rollout_id": self.name, "group_id": "golden",
                "masked": self.masked, "metadata": {}, "turns": self.turns,
                "reward": {"valid": True, "value": 1.0},
            },
            "sequences": [self._expand(c, t) for c, t in zip(chains, trains, strict=True)],
            "dropped": list(dropped),
            "drift": list(drift),
        }  # fmt: skip
        path = CASES / f"{self.name}.json"
        path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")

    def _expand(self, chain: Sequence[int], trained: Sequence[int]) -> dict[str, Any]:
        last = self.turns[chain[-1]]
        ids = last["prompt"]["token_ids"] + [i for s in last["generation"] for i in s["token_ids"]]
        logprobs: list[float | None] = [None] * len(ids)
        owners, mask = [-1] * len(ids), [0] * len(ids)
        for number in chain:
            turn = self.turns[number]
            at = len(turn["prompt"]["token_ids"])
            for value in (x for span in turn["generation"] for x in span["logprobs"]):
                logprobs[at], owners[at] = value, number
                keep = number in trained and value is not None and self.masked is None
                mask[at] = int(keep)
                at += 1
        return {"token_ids": ids, "logprobs": logprobs, "mask": mask, "owners": owners}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


CLEAN = {
    CHATML: ("<|im_end|>", "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
    THINK: ("<|im_end|>", "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
    HEADERS: (
        "<|eot|>",
        "<|header|>user<|/header|>\n\n{}<|eot|><|header|>assistant<|/header|>\n\n",
    ),
    INST: ("</s>", "[INST] {} [/INST]"),
    ROLE_ENDS: ("<|user|>", "\n{}<|assistant|>\n"),
    SPACED: ("<|end|>", "\n### user: {} <|end|>\n### assistant:"),
}  # fmt: skip


def clean() -> None:
    """Every prompt begins with the one before and its answer."""
    for kind in KINDS:
        for style, (end, rest) in CLEAN.items():
            case = Case(f"clean_{kind}_{style.name}", style, kind)
            prompt = case.render(user("What is it?"))
            for text in (" long water", " naïve 日本 🙂", " two\nlines", " last"):
                full = case.call(prompt, case.ids(text) + case.ids(end))
                prompt = full + case.ids(rest.format("And then?"))
            case.write([range(4)], [None] * 3)


def rendered_anew() -> None:
    """The agent sends text; the next prompt is a rendering of it."""
    thought = "<think>\nlong time\n</think>\n\nwater"
    json_text = '<tool_call>\n{"name":"lookup","arguments":{"key":"\\u00fc"}}\n</tool_call>'
    odd: dict[str, tuple[Style, Any, dict[str, Any]]] = {
        "merge": (CHATML, lambda c: c.chars("water is long"), said("water is long")),
        # " w" and "eople" in two tokens; the tokenizer, which merges " we" first, needs three.
        "split": (
            CHATML,
            lambda c: c.tokenizer.convert_tokens_to_ids(["\u0120w", "eople"]),
            said(" weople"),
        ),
        "whitespace": (CHATML, lambda c: c.ids("\n\nwater"), said("\n\nwater")),
        "special_token": (
            THINK, lambda c: c.chars("<tool_call>") + c.ids(" b"), said("<tool_call> b")),
        "invalid_utf8": (CHATML, lambda c: c.ids("a🙂")[:2] + c.ids(" b"), said("a\ufffd b")),
        "thinking_stripped": (
            THINK, lambda c: c.ids(thought), said("water", reasoning_content="long time")),
        "tool_json": (THINK, lambda c: c.ids(json_text), said("", tool_calls=[CALL])),
        "text_dropped": (THINK, lambda c: c.ids("water is long"), said("water")),
        "unknown": (CHATML, lambda c: c.ids("water is long"), said("something else")),
    }  # fmt: skip
    for name, (style, sample, message) in odd.items():
        case = Case(f"drift_{name}", style)
        case.call(case.render(user("q")), [*sample(case), *case.ids("<|im_end|>")])
        second = case.render(user("q"), message, user("r"))
        full = case.call(second, case.ids("ok<|im_end|>"))
        rest = "\n<|im_start|>user\ns<|im_end|>\n<|im_start|>assistant\n"
        case.call(full + case.ids(rest), case.ids("done<|im_end|>"))
        case.write([[0], [1, 2]], [name, None])


def rewritten() -> None:
    """The history is another one."""
    for name, kind, history in (
        ("edited_history", "edited_history", [user("another"), said("water"), user("r")]),
        ("compaction", "truncated", [user("r"), said("water"), user("Summary: q was asked.")]),
    ):
        case = Case(name, CHATML)
        first = case.call(case.render(user("q")), case.ids("water<|im_end|>"))
        rest = "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
        case.call(first + case.ids(rest), case.ids("water<|im_end|>"))
        case.call(case.render(*history), case.ids("ok<|im_end|>"))
        case.write([[0, 1], [2]], [None, kind])


def retries_and_branches() -> None:
    rest = "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    case = Case("captured_twice", CHATML)
    first = case.call(case.render(user("q")), case.ids("a<|im_end|>"))
    case.call(case.render(user("q")), case.ids("a<|im_end|>"), call_id="captured_twice-0")
    case.call(first + case.ids(rest), case.ids("b<|im_end|>"))
    case.write([[0, 2]], [None, None], dropped=[1])

    case = Case("retried", CHATML)
    case.call(case.render(user("q")), case.ids("lost<|im_end|>"))
    used = case.call(case.render(user("q")), case.ids("used<|im_end|>"), call_id="retried-0")
    case.call(used + case.ids(rest), case.ids("b<|im_end|>"))
    case.write([[1, 2]], [None, None], dropped=[0])

    case = Case("branches", CHATML)
    start = case.call(case.render(user("q")), case.ids("a<|im_end|>")) + case.ids(rest)
    for way in range(8):
        full = case.call(start, case.ids(f"way {way}<|im_end|>"))
        case.call(full + case.ids(rest), case.ids("end<|im_end|>"))
    chains = [[0, 1 + 2 * way, 2 + 2 * way] for way in range(8)]
    case.write(chains, [None] * 16, trains=[chains[0], *(chain[1:] for chain in chains[1:])])

    case = Case("sub_agent", CHATML)
    first = case.call(case.render(user("q")), case.ids("ask<|im_end|>"))
    system = {"role": "system", "content": "You are a tool."}
    inner = case.call(case.render(system, user("sub")), case.ids("x<|im_end|>"))
    case.call(inner + case.ids(rest), case.ids("y<|im_end|>"))
    case.call(first + case.ids(rest), case.ids("z<|im_end|>"))
    case.write([[1, 2], [0, 3]], ["edited_history", None, None])


def ends() -> None:
    """Turns that end in other ways than the primary EOS."""
    rest = "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    case = Case("truncated_turn", CHATML)
    first = case.call(case.render(user("q")), case.ids("cut sho"), finish="length")
    case.call(first + case.ids("<|im_end|>" + rest), case.ids("b<|im_end|>"))
    case.write([[0, 1]], [None])

    case = Case("secondary_eos", CHATML)
    second = case.ids("<|endoftext|>")
    first = case.call(case.render(user("q")), case.ids("a") + second, stop_reason=second[0])
    case.call(first + case.ids(rest), case.ids("b<|im_end|>"))
    case.write([[0, 1]], [None])

    case = Case("stop_is_not_eos", SPACED)
    first = case.call(case.render(user("q")), case.ids(" a<|end|>"))
    case.call(first + case.ids(CLEAN[SPACED][1].format("r")), case.ids(" b<|end|>"))
    case.write([[0, 1]], [None])

    case = Case("stop_string", PLAIN)
    first = case.call(case.render(user("q")), case.ids(" a\nUser:"), stop_reason="\nUser:")
    case.call(first + case.ids(" r\nAssistant:"), case.ids(" b"))
    case.write([[0, 1]], [None])


def odd_captures() -> None:
    case = Case("lost_logprobs", CHATML)
    case.call(case.render(user("q")), case.ids("water is long<|im_end|>"), lost=(0, 2))
    case.write([[0]], [])

    case = Case("all_logprobs_lost", CHATML)
    ids = case.ids("water<|im_end|>")
    case.call(case.render(user("q")), ids, lost=range(len(ids)))
    case.write([[0]], [])

    case = Case("weights_changed_in_the_middle", CHATML)
    ids = case.ids("water is long<|im_end|>")
    case.call(case.render(user("q")), ids, versions=[(2, 7), (len(ids) - 2, 8)])
    case.write([[0]], [])

    case = Case("masked_rollout", CHATML, masked="environment")
    case.call(case.render(user("q")), case.ids("a<|im_end|>"))
    case.write([[0]], [])

    case = Case("half_characters_kept", CHATML)
    first = case.call(case.render(user("q")), [*case.ids("🙂")[:2], *case.ids("<|im_end|>")])
    rest = "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    case.call(first + case.ids(rest), case.ids("日本<|im_end|>"))
    case.write([[0, 1]], [None])

    case = Case("tools_and_reasoning_kept", THINK)
    text = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "lookup", "arguments": {}}\n</tool_call>'
    first = case.call(case.render(user("q")), case.ids(text + "<|im_end|>"), finish="tool_calls")
    rest = ("\n<|im_start|>user\n<tool_response>\nr\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n")  # fmt: skip
    case.call(first + case.ids(rest), case.ids("<think>\nk\n</think>\n\nok<|im_end|>"))
    case.write([[0, 1]], [None])


def main() -> None:
    CASES.mkdir(exist_ok=True)
    for old in CASES.glob("*.json"):
        old.unlink()
    for make in (clean, rendered_anew, rewritten, retries_and_branches, ends, odd_captures):
        make()
    print(f"{len(list(CASES.glob('*.json')))} cases in {CASES}")


if __name__ == "__main__":
    main()
