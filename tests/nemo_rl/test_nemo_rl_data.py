"""Rows on their way into NeMo-RL: its real set-up, processors, tokenizer. Every field arrives."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlbridge.errors import ConfigError
from rlbridge.prompts import MARK, PromptConfig
from rlbridge.testing import make_row
from tests.nemo_rl.conftest import ROOT

pytestmark = pytest.mark.nemo_rl

LENGTH = 300
PROMPT = """\
user: "Solve, and put the answer in \\\\boxed{{}}: {problem}"
few_shot:
  - {problem: "What is 1 + 1?", assistant: "\\\\boxed{2}"}
"""
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}
# What tables, templates and wires are known to change.
FIELDS: dict[str, Any] = {
    "answers": [None, {"a": None, "b": []}, [1, "1", 1.0, True]],
    "seed": 2**64 - 1,
    "least": -(2**63),
    "ratio": 0.1 + 0.2,
    "tiny": 5e-324,
    "text": 'é\u2028🙂 {x} {{y}} {0} "\\n',
    "": "a field without a name",
}


def raw(problem: str, **fields: Any) -> dict[str, Any]:
    return {"problem": problem, **FIELDS, **fields}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def prompt(tmp_path: Path) -> str:
    path = tmp_path / "prompt.yaml"
    path.write_text(PROMPT)
    return str(path)


def set_up(tokenizer: Any, env: Any = None, **data: Any) -> Any:
    """NeMo-RL's own `setup_response_data` on a data section as docs/nemo_rl.md has it."""
    from nemo_rl.data.utils import setup_response_data

    from rlbridge_nemo_rl import register

    register()
    files = {"dataset_name": "rlbridge_nemo_rl.GymDataset"}
    for split in {"train", "validation"} & set(data):
        given = data[split] if isinstance(data[split], list) else [data[split]]
        data[split] = [{**files, "split": split, **one} for one in given]
    default = {"env_name": "rlbridge_gym", "processor": "rlbridge_gym"} | data.pop("default", {})
    section = {"max_input_seq_length": LENGTH, "default": default, **data}
    return setup_response_data(tokenizer, section, env and {"rlbridge_gym": env})


def rolled_out(dataset: Any, env: Any, tokenizer: Any) -> Any:
    """NeMo-RL's own rollout over all of a dataset."""
    from nemo_rl.algorithms import grpo
    from nemo_rl.data.collate_fn import rl_collate_fn

    from tests.nemo_rl.policies import scripted

    batch = rl_collate_fn([dataset[index] for index in range(len(dataset))])
    policy = scripted(tokenizer, lambda *_: "\\boxed{1}")
    out, _ = grpo.run_multi_turn_rollout(policy, batch, tokenizer, env, max_seq_len=4 * LENGTH)
    return out


def judged(server: Any) -> list[dict[str, Any]]:
    return [body for route, body in server.behaviour.requests if route == "/verify"]


@pytest.mark.usefixtures("registered")
def test_rows_of_several_environments_reach_their_verifiers_whole(
    tokenizer: Any, tmp_path: Path, prompt: str, gym: Callable[..., Any]
) -> None:
    servers = {name: gym(rewards=1.0) for name in ("math", "trivia", "other")}
    rows = [raw(f"{n}?", agent_ref={"name": name}) for n, name in enumerate(servers)]
    validation = raw("v?", split=None)
    env = {
        "url": servers["other"].url,
        "servers": {name: servers[name].url for name in ("math", "trivia")},
    }
    train, val, task_to_env, val_task_to_env = set_up(
        tokenizer,
        env,
        train={"data_path": written(tmp_path / "train.jsonl", rows)},
        validation={"data_path": written(tmp_path / "val.jsonl", [validation])},
        default={"prompt": prompt},
    )
    out = rolled_out(train, task_to_env, tokenizer)
    assert out["total_reward"].tolist() == [1.0] * 3
    rolled_out(val, val_task_to_env, tokenizer)
    made = PromptConfig.load(prompt)
    for name, row in zip(servers, rows, strict=True):
        sent = judged(servers[name])
        assert sent[0].pop("response")["output"]
        assert json.dumps(sent[0], sort_keys=True) == json.dumps(made.apply(row), sort_keys=True)
    assert [len(judged(server)) for server in servers.values()] == [1, 1, 2]
    last = judged(servers["other"])[-1]
    assert last[MARK] == made.digest
    assert json.dumps({key: last[key] for key in validation}) == json.dumps(validation)


def test_a_prompt_is_rendered_once_with_system_examples_and_tools(
    tokenizer: Any, tmp_path: Path, prompt: str
) -> None:
    rows = [
        raw("{0} é🙂 {{x}}", responses_create_params={"instructions": "Be brief."}),
        raw("b", responses_create_params={"input": [{"role": "developer", "content": "Dev."}]}),
        raw("c", responses_create_params={"tools": [TOOL]}),
    ]
    path = written(tmp_path / "rows.jsonl", rows)
    train, _ = set_up(tokenizer, train={"data_path": path, "prompt": prompt})
    texts = [train[index]["message_log"][0]["content"] for index in range(3)]
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    asked = "Solve, and put the answer in \\boxed{{}}: {}".format
    shown = turn("user", asked("What is 1 + 1?")) + turn("assistant", "\\boxed{2}")
    end = "<|im_start|>assistant\n"
    brief, dev = turn("system", "Be brief."), turn("system", "Dev.")
    assert texts[0] == brief + shown + turn("user", asked("{0} é🙂 {{x}}")) + end
    assert texts[1] == dev + shown + turn("user", asked("b")) + end
    assert texts[2].startswith("<|im_start|>system\nTools:\n")
    assert texts[2].endswith(shown + turn("user", asked("c")) + end)
    for index, text in enumerate(texts):
        ids = train[index]["message_log"][0]["token_ids"].tolist()
        assert tokenizer.decode(ids) == text
        assert train[index]["length"] == len(ids)


def test_a_row_with_a_prompt_is_refused_by_line_where_a_config_is_to_make_it(
    tokenizer: Any, tmp_path: Path, prompt: str
) -> None:
    path = written(tmp_path / "rows.jsonl", [raw("a"), make_row("b", problem="b")])
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: .*holds a prompt already"):
        set_up(tokenizer, train={"data_path": path, "prompt": prompt})


@pytest.mark.parametrize("key", ["prompt_file", "system_prompt_file"])
def test_nemo_rls_prompt_files_do_not_come_on_top_of_a_prompt_config(
    key: str, tokenizer: Any, tmp_path: Path, prompt: str
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Think. {}")
    given = {"default": {key: str(own)}}
    made = PromptConfig.load(prompt)
    before = written(tmp_path / "before.jsonl", [make_row("a"), made.apply(raw("b"))])
    refused = rf"made this row's prompt, and {key} would template it again"
    with pytest.raises(ConfigError, match=rf"before\.jsonl:2: .*{refused}"):
        set_up(tokenizer, train={"data_path": before}, **given)
    raws = written(tmp_path / "raw.jsonl", [raw("b")])
    with pytest.raises(ConfigError, match=rf"raw\.jsonl:1: .*{refused}"):
        set_up(tokenizer, train={"data_path": raws, "prompt": prompt}, **given)
    # Rows that have their prompts may have NeMo-RL's files, as its own datasets do.
    plain = written(tmp_path / "plain.jsonl", [make_row("a {}")])
    train, _ = set_up(tokenizer, train={"data_path": plain}, **given)
    text = train[0]["message_log"][0]["content"]
    assert ("Think. a {}" if key == "prompt_file" else "system\nThink. {}") in text


def test_each_mixed_file_has_its_own_prompt_and_its_rows_their_own_places(
    tokenizer: Any, tmp_path: Path, prompt: str
) -> None:
    other = [make_row("has its prompt", agent_ref={"name": "other"})]
    first = written(tmp_path / "raw.jsonl", [raw("a"), raw("b")])
    mix = [{"data_path": written(tmp_path / "other.jsonl", other), "weight": 1.0}]
    train, _ = set_up(tokenizer, train={"data_path": first, "prompt": prompt, "mix": mix})
    infos = [train[index]["extra_env_info"] for index in range(len(train))]
    assert [Path(info["where"]).name for info in infos] == [
        "raw.jsonl:1",
        "raw.jsonl:2",
        "other.jsonl:1",
        "other.jsonl:1",
    ]
    assert [info["row_index"] for info in infos] == [0, 1, 2, 2]
    assert [MARK in info["row"] for info in infos] == [True, True, False, False]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"promt": "generic/math"}, r"unknown key 'promt' .*did you mean 'prompt'"),
        ({"split_validation_size": 0.1}, r"give validation rows a file of their own"),
        ({"mix": [{"data_path": "x", "wieght": 2}]}, r"a file has data_path, weight, prompt"),
    ],
)
def test_keys_that_would_be_dropped_are_refused(
    extra: dict[str, Any], words: str, tokenizer: Any, tmp_path: Path
) -> None:
    path = written(tmp_path / "rows.jsonl", [make_row("a")])
    with pytest.raises(ConfigError, match=words):
        set_up(tokenizer, train={"data_path": path, **extra})


def test_overlong_rows_are_masked_and_a_launched_run_refuses_them(
    tokenizer: Any, tmp_path: Path
) -> None:
    from rlbridge_nemo_rl.prompt_check import check_prompts

    path = written(tmp_path / "rows.jsonl", [make_row("a"), make_row("é " * LENGTH)])
    train, val = set_up(tokenizer, train={"data_path": path}, validation={"data_path": path})
    assert [train[index]["loss_multiplier"] for index in range(2)] == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"2 of 4 prompts are longer .* first at .*rows\.jsonl:2"):
        check_prompts(train, val)


def test_rows_that_share_a_prompt_and_not_their_fields_are_told(
    tokenizer: Any, tmp_path: Path
) -> None:
    from rlbridge_nemo_rl.prompt_check import check_prompts

    rows = [
        make_row("1 + 1", expected="2", id="a"),
        make_row("2 + 2", expected="4", id="b"),
        make_row("1 + 1", expected="3", id="a"),
        make_row("2 + 2", expected="4", id="b"),  # the same row twice is one group rightly
    ]
    train, _ = set_up(tokenizer, train={"data_path": written(tmp_path / "rows.jsonl", rows)})
    told = check_prompts(train)
    assert told is not None
    assert "2 rows share a prompt with rows whose fields differ" in told
    assert f"{tmp_path}/rows.jsonl:1 and {tmp_path}/rows.jsonl:3 (other expected)" in told
    path = written(tmp_path / "fine.jsonl", [rows[0], rows[1], rows[3]])
    mix = [{"data_path": written(tmp_path / "more.jsonl", [make_row("c")])}]
    train, _ = set_up(tokenizer, train={"data_path": path, "mix": mix})
    assert check_prompts(train) is None


def test_datasets_with_loaders_of_their_own_are_looked_at_together(
    tokenizer: Any, tmp_path: Path
) -> None:
    from rlbridge_nemo_rl.prompt_check import check_prompts

    paths = [
        written(tmp_path / f"{name}.jsonl", [make_row("1 + 1", expected=name)]) for name in "ab"
    ]
    files = [{"data_path": path} for path in paths]
    train, _ = set_up(tokenizer, train=files, use_multiple_dataloader=True)
    assert len(train) == 2
    assert f"{paths[0]}:1 and {paths[1]}:1 (other expected)" in (check_prompts(train) or "")


def test_rows_for_gyms_own_agents_are_as_nemo_rls_dataset_has_them(
    tokenizer: Any, tmp_path: Path, prompt: str
) -> None:
    from nemo_rl.data.collate_fn import rl_collate_fn
    from nemo_rl.data.datasets import load_response_dataset

    rows = [raw("a"), raw("b", agent_ref={"name": "named", "note": None})]
    ours = load_response_dataset(
        {
            "dataset_name": "rlbridge_nemo_rl.GymAgentDataset",
            "data_path": written(tmp_path / "raw.jsonl", rows),
            "agent": "solver",
            "prompt": prompt,
            "prompt_file": None,
        }
    )
    made = PromptConfig.load(prompt)
    refs = [{"name": "solver"}, {"name": "named", "note": None}]
    complete = [
        {**made.apply(row), "agent_ref": {"type": "responses_api_agents", **ref}}
        for row, ref in zip(rows, refs, strict=True)
    ]
    theirs = load_response_dataset(
        {
            "dataset_name": "NemoGymDataset",
            "data_path": written(tmp_path / "whole.jsonl", complete),
            "processor": "nemo_gym_data_processor",
        }
    )
    assert ours.processor is theirs.processor
    made_by = [
        rl_collate_fn(
            [
                data.processor(data.dataset[index], data.task_spec, tokenizer, LENGTH, index)
                for index in range(2)
            ]
        )
        for data in (ours, theirs)
    ]
    assert made_by[1]["extra_env_info"] == complete
    for row, whole in zip(made_by[0]["extra_env_info"], complete, strict=True):
        assert json.dumps({key: row[key] for key in whole}) == json.dumps(whole)
    assert made_by[0].keys() == made_by[1].keys()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (make_row("a"), r"rows\.jsonl:1: \$\.agent_ref\.name is missing"),
        ({"problem": "a", "agent_ref": {"name": "x"}}, r"rows\.jsonl:1: .*input is missing"),
    ],
)
def test_rows_that_no_agent_could_take_are_refused_by_line(
    row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from rlbridge_nemo_rl.dataset import gym_agent_rows

    path = Path(written(tmp_path / "rows.jsonl", [row]))
    with pytest.raises(ConfigError, match=words):
        list(gym_agent_rows(path))


@pytest.mark.parametrize("name", ["own", "generic/math"])
def test_verl_samples_from_the_same_tokens(
    name: str, tokenizer: Any, policy_folder: Path, tmp_path: Path, prompt: str
) -> None:
    python = ROOT / ".venv" / "bin" / "python"
    if subprocess.run([python, "-c", "import verl"], check=False, capture_output=True).returncode:
        pytest.skip("no .venv with verl beside this one: make setup")
    made = prompt if name == "own" else name
    system = [{"role": "developer", "content": [{"type": "input_text", "text": "Dev."}]}]
    rows = [
        raw("What is {x} + {{y}}? é🙂\n \\boxed{}"),
        raw("b", responses_create_params={"instructions": "Be {brief}."}),
        raw("c", responses_create_params={"instructions": "Be brief.", "input": system}),
        raw("d", responses_create_params={"tools": [TOOL]}),
    ]
    path, answer = written(tmp_path / "rows.jsonl", rows), tmp_path / "verl.json"
    script = Path(__file__).with_name("verl_prompts.py")
    given = json.dumps([path, made, str(policy_folder), str(answer)])
    subprocess.run([python, script], input=given, text=True, check=True, cwd=ROOT, timeout=300)
    train, _ = set_up(tokenizer, train={"data_path": path, "prompt": made})
    ours = [train[index]["message_log"][0]["token_ids"].tolist() for index in range(len(rows))]
    assert ours == json.loads(answer.read_text())


def test_a_prompt_at_the_limit_is_whole_and_one_token_more_is_masked(
    tokenizer: Any, tmp_path: Path
) -> None:
    from rlbridge_nemo_rl.prompt_check import check_prompts

    path = written(tmp_path / "rows.jsonl", [make_row("a few words"), make_row("é🙂 " * 9)])
    lengths = [len(train_ids(path, tokenizer, None)[row]) for row in range(2)]
    for spare, row in [(1, 0), (0, 0), (-1, 0), (1, 1), (0, 1), (-1, 1)]:
        limit = lengths[row] + spare
        train, _ = set_up(tokenizer, train={"data_path": path}, max_input_seq_length=limit)
        fits = [length <= limit for length in lengths]
        assert [train[n]["loss_multiplier"] for n in range(2)] == [float(one) for one in fits]
        assert [train[n]["length"] for n in range(2)] == [
            length if one else 4 for length, one in zip(lengths, fits, strict=True)
        ]
        if all(fits):
            assert check_prompts(train) is None
            continue
        with pytest.raises(ConfigError, match=rf"{2 - sum(fits)} of 2 prompts are longer"):
            check_prompts(train)


def test_a_prompt_that_cannot_be_rendered_is_refused_by_line_before_anything_is_sampled(
    tokenizer: Any, tmp_path: Path
) -> None:
    import copy

    from rlbridge_nemo_rl.prompt_check import check_prompts

    strict = copy.deepcopy(tokenizer)
    no_answers = (
        "{%- if messages[-1].role != 'user' %}{{ raise_exception('ends oddly') }}{% endif %}"
    )
    strict.chat_template = no_answers + str(tokenizer.chat_template)
    answered = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [make_row("fine"), {"responses_create_params": {"input": answered}}]
    path = written(tmp_path / "rows.jsonl", rows)
    train, _ = set_up(strict, train={"data_path": path})
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: .*can't be rendered: .*ends oddly"):
        check_prompts(train)
    own = tmp_path / "own.txt"
    own.write_text("Solve {problem}")
    train, _ = set_up(tokenizer, train={"data_path": path}, default={"prompt_file": str(own)})
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: .*can't be rendered: .*problem"):
        check_prompts(train)


def train_ids(path: str, tokenizer: Any, limit: int | None) -> list[list[int]]:
    """The tokens of each row's prompt."""
    train, _ = set_up(tokenizer, train={"data_path": path}, max_input_seq_length=limit)
    return [train[n]["message_log"][0]["token_ids"].tolist() for n in range(len(train))]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], r"rows\.jsonl holds no rows"),
        ([make_row("a"), make_row("b", agent_ref="math")], r"rows\.jsonl:2: \$\.agent_ref must be"),
        ([{"responses_create_params": None}], r"rows\.jsonl:1: .*input is missing or empty"),
        ([{"responses_create_params": {"input": ""}}], r"rows\.jsonl:1: .*is missing or empty"),
        ([{"responses_create_params": {"input": [{"content": "a"}]}}], r":1: .*role is missing"),
        ([{"responses_create_params": {"input": "a", "tools": ["f"]}}], r":1: .*tools must be"),
    ],
)
def test_rows_that_could_not_be_judged_or_shown_are_refused_by_line(
    rows: list[dict[str, Any]], words: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        set_up(tokenizer, train={"data_path": written(tmp_path / "rows.jsonl", rows)})
