"""What a prompt is made of: a YAML file of a system text, a user template and examples.

Applied to a row, it gives the row Gym wants: `responses_create_params.input` filled in, every
other field kept. Refuses a row that has been prompted already, by its mark, by its input or by
its text, because nobody sees in the figures that a template was applied twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml
from pydantic import model_validator

from rlbridge.config import StrictModel, nearest
from rlbridge.contracts.wire import RESPONSES_CREATE_PARAMS
from rlbridge.errors import ConfigError
from rlbridge.prompts.values import refuse_rendered, text_of
from rlbridge.templates import Template

MARK: Final = "rlbridge_prompt"
"""The field of a prompted row that says by what; its value is `PromptConfig.digest`."""
ASSISTANT: Final = "assistant"
_SYSTEM_ROLES: Final = ("system", "developer")
_BUILT_IN: Final = files("rlbridge.prompts")

Message = dict[str, str]


class PromptConfig(StrictModel):
    """A prompt. Places in `user` and `system` are a row's fields in braces: `{problem}`."""

    user: str
    """The user's message, with places for the row's fields; double braces that are text."""
    system: str = ""
    """The system message, with places too; none if empty."""
    few_shot: tuple[dict[str, Any], ...] = ()
    """Examples, shown as turns before the question: the fields of `user`'s places, and
    `assistant`, the answer, which is taken as it is."""
    row_system: Literal["refuse", "row", "config"] = "refuse"
    """What to do with a row that has a system message, or `instructions`, of its own: refuse it,
    keep the row's, or put the config's in its place. Where the config has none, the row's stays."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file, or one of those that come with rlbridge (`generic/math`).

        Raises:
            ConfigError: there is no such file, or it is no prompt; the message says where.
        """
        source = _BUILT_IN.joinpath(f"{path}.yaml") if _is_built_in(path) else Path(path)
        try:
            data = yaml.safe_load(source.read_text(encoding="utf-8"))
        except OSError as error:
            known = ", ".join(_built_in())
            raise ConfigError(
                f"can't read the prompt {path}: {error.strerror}; built in: {known}"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: a prompt is a mapping with `user`, and `system` if wanted")
        return cls.parse(data, where=str(path))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # pydantic lets only ValueErrors through as mistakes of the config.
        try:
            names = self._user.names
            _ = self._system
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if not names:
            raise ValueError("user: has no place for a field; every row would get one prompt")
        for index, example in enumerate(self.few_shot):
            wanted = {*names, ASSISTANT}
            if set(example) != wanted:
                raise ValueError(
                    f"few_shot.{index}: has {', '.join(sorted(example)) or 'nothing'}; an example "
                    f"has {', '.join(sorted(wanted))}"
                )
            if not isinstance(example[ASSISTANT], str) or not example[ASSISTANT].strip():
                raise ValueError(f"few_shot.{index}.{ASSISTANT}: must be text")
        return self

    @cached_property
    def digest(self) -> str:
        """Names the prompt by its contents: equal for equal prompts, in every process."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def names(self) -> tuple[str, ...]:
        """The fields a row must have."""
        return tuple(dict.fromkeys((*self._user.names, *self._system.names)))

    def messages(self, fields: Mapping[str, Any], *, where: str = "row") -> list[Message]:
        """The Chat messages for a row's fields: system, examples, question.

        Args:
            fields: the row's fields; those without a place are not read.
            where: the row's place, for messages (`file:line`).

        Raises:
            ConfigError: a field is missing or no text, or carries this prompt already.
        """
        system = self._render(self._system, fields, where)
        shown = self._shown(where)
        for name in self.names:
            value = self._value(fields, name, where)
            examples = [text["content"] for text in shown if text["role"] == "user"]
            refuse_rendered(value, (self._user, self._system), examples, f"{where}: {name}")
        user = self._render(self._user, fields, where)
        head = [_message("system", system)] if system else []
        return [*head, *shown, _message("user", user)]

    def apply(
        self,
        row: Mapping[str, Any],
        *,
        where: str = "row",
        prompted: Literal["refuse", "pass"] = "refuse",
    ) -> dict[str, Any]:
        """The row with its prompt in `responses_create_params.input`, and all else as it was.

        Args:
            row: a Gym row without an input, or with system messages alone.
            where: the row's place, for messages (`file:line`).
            prompted: what to do with a row that has a prompt: refuse it, or return it unchanged.

        Raises:
            ConfigError: it has a prompt, lacks a field, or has a system message of its own.
        """
        params = row.get(RESPONSES_CREATE_PARAMS) or {}
        if not isinstance(params, Mapping):
            raise ConfigError(f"{where}: $.{RESPONSES_CREATE_PARAMS} must be an object")
        why = _prompted(row, params)
        if why:
            if prompted == "pass":
                return dict(row)
            raise ConfigError(
                f"{where}: {why}; applying a prompt to it again would template it twice. Leave "
                "the prompt config out, or take rows that hold raw fields"
            )
        messages = self.messages(row, where=where)
        params = dict(params)
        messages = self._with_row_system(messages, params, where)
        params["input"] = messages
        return {**row, RESPONSES_CREATE_PARAMS: params, MARK: self.digest}

    @cached_property
    def _user(self) -> Template:
        return Template(self.user, where="user")

    @cached_property
    def _system(self) -> Template:
        return Template(self.system, where="system")

    def _shown(self, where: str) -> list[Message]:
        shown = []
        for index, example in enumerate(self.few_shot):
            place = f"{where}: few_shot.{index}"
            shown.append(_message("user", self._render(self._user, example, place)))
            shown.append(_message(ASSISTANT, example[ASSISTANT]))
        return shown

    def _render(self, template: Template, fields: Mapping[str, Any], where: str) -> str:
        return template.render({name: self._value(fields, name, where) for name in template.names})

    def _value(self, fields: Mapping[str, Any], name: str, where: str) -> str:
        if name not in fields or fields[name] is None:
            known = [str(key) for key in fields if key not in (RESPONSES_CREATE_PARAMS, MARK)]
            guess = nearest(name, known)
            hint = f"did you mean {guess!r}? " if guess else ""
            has = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"{where}: the prompt needs the field {name!r}, which is missing; "
                f"{hint}its fields: {has}"
            )
        return text_of(fields[name], f"{where}: {name}")

    def _with_row_system(
        self, messages: list[Message], params: dict[str, Any], where: str
    ) -> list[Message]:
        """The messages with the right system message; `params` loses what was put there."""
        given = params.get("input")
        own = [text for item in given or () if (text := _text_in(item["content"]))]
        if not own and not params.get("instructions"):
            return messages
        if not self.system:
            return [*(_message("system", text) for text in own), *messages]
        if self.row_system == "refuse":
            raise ConfigError(
                f"{where}: the row has a system message of its own, and so has the prompt; say "
                "row_system: row or row_system: config to choose one"
            )
        if self.row_system == "config":
            params.pop("instructions", None)
            return messages
        rest = [message for message in messages if message["role"] != "system"]
        return [*(_message("system", text) for text in own), *rest]


def located(prompt: str | Path) -> str:
    """The name of a prompt that means the same in any folder: a built-in's, or an absolute path."""
    return str(prompt) if _is_built_in(prompt) else str(Path(prompt).resolve())


def _is_built_in(prompt: str | Path) -> bool:
    path = Path(prompt)
    here = bool(path.suffix) or path.is_file()
    return not here and _BUILT_IN.joinpath(f"{prompt}.yaml").is_file()


def _prompted(row: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Why the row counts as prompted; empty if it doesn't."""
    if MARK in row:
        return f"it was prompted already (its {MARK} is {row[MARK]!r})"
    given = params.get("input")
    if isinstance(given, Sequence) and not isinstance(given, str):
        plain = all(_is_system(item) for item in given)
        return "" if plain else f"$.{RESPONSES_CREATE_PARAMS}.input holds a prompt already"
    return f"$.{RESPONSES_CREATE_PARAMS}.input holds a prompt already" if given else ""


def _is_system(item: object) -> bool:
    return (
        isinstance(item, Mapping)
        and item.get("role") in _SYSTEM_ROLES
        and _text_in(item.get("content")) is not None
    )


def _text_in(content: object) -> str | None:
    """A message's text, given as such or in parts; None if it holds anything else."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    return None if None in texts else "".join(map(str, texts))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _built_in() -> list[str]:
    root = Path(str(_BUILT_IN))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))
