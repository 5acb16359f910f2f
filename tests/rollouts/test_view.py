import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import uvicorn
from sample_rollouts import HOSTILE, tokenizer, write_sample

from rlbridge.errors import ConfigError
from rlbridge.rollouts.view.app import View
from rlbridge.rollouts.view.catalog import MAX_HITS, Catalog, Filter
from rlbridge.rollouts.view.document import document
from rlbridge.transforms.reading import read_row

INSTALL = "apt-get install chromium chromium-driver, or `make browser`"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("view") / "rollouts.jsonl", 5000)


def hits(catalog: Catalog, text: str) -> list[int]:
    return [number for _, rows in catalog.search(text) for number in rows]


def test_filters_count_failures_as_failures_and_never_as_zeros(sample: Path) -> None:
    catalog = Catalog.of(sample)
    assert len(catalog) == 5000
    failed = catalog.select(Filter(failure="any"))
    assert failed.tolist() == list(range(8, 5000, 9))
    zeros = catalog.select(Filter(reward_max=0.0))
    assert not set(zeros) & set(failed)
    assert set(catalog.failures) == {"", "failed: timeout", "failed: server_error"}
    assert len(catalog.select(Filter(failure="failed: timeout"))) > 100
    assert catalog.select(Filter(environment="weather")).tolist() == [
        n for n in range(12) if n != 4
    ]
    best = catalog.select(Filter(reward_min=0.5, sort="reward"))
    rewards = catalog.columns["reward"][best]
    assert rewards.min() == 0.5
    assert (np.diff(rewards) <= 0).all()
    assert len(catalog.select(Filter(environment="nowhere"))) == 0


def test_the_catalog_is_kept_beside_the_file_and_made_anew_when_the_file_changes(
    tmp_path: Path,
) -> None:
    path = write_sample(tmp_path / "out.jsonl", 20)
    Catalog.of(path)
    read: list[int] = []
    assert len(Catalog.of(path, read.append)) == 20
    assert not read
    with path.open("ab") as more:
        more.write(b'{"broken\n\n{"reward": 1.0}\n')
    grown = Catalog.of(path, read.append)
    assert (len(grown), grown.bad) == (21, 1)
    assert read
    assert hits(grown, '"reward":') == []  # quotes are part of no text
    (tmp_path / ".out.jsonl.view.npz").write_bytes(b"junk")
    assert len(Catalog.of(path)) == 21


def test_search_finds_text_in_any_case_and_form_and_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    texts = ['Say "hi"', "naïve café", "plain", "BOTH\nlines"]
    with path.open("w") as file:
        for text in texts:
            file.write(orjson.dumps({"a": text}).decode() + "\n\n")
        import json

        file.write(json.dumps({"a": "naïve café"}) + "\n")
    catalog = Catalog.of(path)
    assert hits(catalog, 'say "HI"') == [0]
    assert hits(catalog, "café") == [1, 4]
    assert hits(catalog, "both\nLINES") == [3]
    assert hits(catalog, "nothing") == []
    path.write_text('{"a": "x"}\n' * (MAX_HITS + 50))
    assert len(hits(Catalog.of(path), "x")) == MAX_HITS


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.jsonl.zst"])
def test_packed_files_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="unpack it first"):
        Catalog.of(tmp_path / name)


def test_tokens_say_where_they_came_from_and_a_drift_says_its_kind(sample: Path) -> None:
    catalog, model = Catalog.of(sample), tokenizer()

    def calls(number: int) -> list[dict[str, Any]]:
        row = read_row(sample, int(catalog.columns["offset"][number]))
        drawn = document(row, model, frozenset({model.eos_token_id}))
        return [item["tokens"] for item in drawn["output"] if "tokens" in item]

    first, second = calls(0)
    assert set(first["origin"][: first["sampled_from"]]) == {0}
    assert set(first["origin"][first["sampled_from"] :]) == {1}
    new = second["origin"][: second["sampled_from"]]
    assert new == [1] * 12 + [2] * (len(new) - 12)
    assert second["skipped"] > 0
    assert second["drift"] is None
    assert all(second["trained"])
    assert "".join(first["texts"]).startswith("user\nWhat is the weather")
    drift = calls(3)[1]["drift"]
    assert drift["kind"]
    assert "WHAT" in drift["rendered"].upper()


def test_rows_of_every_shape_are_drawn(tmp_path: Path) -> None:
    rows = [
        {},
        {"response": {"output": "text"}},
        {"output": [{"type": "function_call", "name": "a", "arguments": {"b": 1}}, 7]},
        {"responses_create_params": {"input": [3, {"role": "user", "content": [{"text": "x"}]}]}},
        {"response": {"output": [{"type": "message", "generation_token_ids": [1]}]}},
        {"turns": [], "version": 99},
        {
            "responses_create_params": {"input": "a", "instructions": "b"},
            "response": {"output": []},
        },
    ]
    for row in rows:
        drawn = document(row, None, frozenset())
        assert orjson.dumps(drawn)
    assert "problem" in document(rows[4], None, frozenset())["output"][0]
    assert "problem" in document(rows[5], None, frozenset())["calls_own"][0]


async def test_the_server_answers_this_machine_alone_and_forbids_foreign_scripts(
    sample: Path,
) -> None:
    app = View(Catalog.of(sample), None, frozenset()).app()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as page:
        index = await page.get("/")
        assert "script-src 'self'" in index.headers["content-security-policy"]
        assert "http" not in index.text.replace("http-equiv", "")
        foreign = await page.get("/api/info", headers={"host": "evil.example"})
        assert foreign.status_code == 400
        assert (await page.get("/api/rollout/999999")).status_code == 404
        assert (await page.get("/api/rows?min=abc")).status_code == 400
        assert (await page.get("/api/search")).status_code == 400
        found = (await page.get("/api/rows?ids=4,7,999999,-1")).json()
        assert [row["number"] for row in found["rows"]] == [4, 7]


# In a real browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_url(sample: Path) -> Iterator[str]:
    model = tokenizer()
    app = View(Catalog.of(sample), model, frozenset({model.eos_token_id})).app()
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(f"no Chromium with its driver here; {INSTALL}")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    folder = tmp_path_factory.mktemp("chromium")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "disable-dev-shm-usage", "window-size=1440,900", f"user-data-dir={folder}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_page_load_timeout(60)
    yield found
    found.quit()


class Page:
    def __init__(self, browser: Any, url: str) -> None:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self._by = browser, By
        self._wait = WebDriverWait(browser, 60, poll_frequency=0.05)
        browser.get(url)
        self.until(lambda: self.all("#rollout .item"))

    def until(self, what: Any) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        def looked(_browser: Any) -> Any:
            try:
                return what()
            except StaleElementReferenceException:
                return False

        return self._wait.until(looked)

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements(self._by.CSS_SELECTOR, css)

    def one(self, css: str) -> Any:
        return self.browser.find_element(self._by.CSS_SELECTOR, css)

    def press(self, keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(keys).perform()

    def title(self) -> str:
        return str(self.one("#rollout h2").text)

    def shot(self, name: str) -> None:
        """A screenshot for the docs, where somebody asks for them."""
        if os.environ.get("RLBRIDGE_SCREENSHOTS"):
            self.browser.save_screenshot(f"{os.environ['RLBRIDGE_SCREENSHOTS']}/{name}.png")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: Any, page_url: str) -> Page:
    return Page(browser, page_url)


def test_the_page_reads_a_rollout_turn_by_turn_with_its_tokens(page: Page) -> None:
    assert page.title() == "Task 0, rollout 0"
    kinds = [item.get_attribute("class") for item in page.all("#rollout .item[class]")]
    assert kinds[:6] == [
        "item system", "item user", "item reasoning", "item call", "item tool", "item assistant",
    ]  # fmt: skip
    assert page.all(".tokens .t.o0")
    assert page.all(".tokens .t.o1")
    assert page.all(".tokens .t.o2")
    sampled = page.one(".tokens .t.o1")
    assert "sampled, logprob -" in sampled.get_attribute("title")
    page.shot("rollouts-view")
    page.press("c")
    page.until(lambda: page.all(".tokens .t.p3"))
    page.shot("rollouts-view-logprobs")
    page.press("c")
    page.until(lambda: page.all(".tokens .t.trained"))
    page.press("t")
    page.until(lambda: not page.all(".tokens"))
    assert page.complaints() == []


def test_keys_walk_through_rows_and_pages(page: Page) -> None:
    page.press("j")
    page.until(lambda: page.title() == "Task 0, rollout 1")
    page.press("k")
    page.until(lambda: page.title() == "Task 0, rollout 0")
    page.press("n")
    page.until(lambda: page.title() == "Task 12, rollout 2")
    page.press("k")  # over the page's edge
    page.until(lambda: page.title() == "Task 12, rollout 1")
    assert page.one("#rows").get_attribute("aria-activedescendant") == "row-49"


def test_hostile_text_is_shown_and_never_run(page: Page) -> None:
    page.press("jjjj")
    page.until(lambda: page.title() == "Task 1, rollout 0")
    assert page.one(".item.assistant pre").text == HOSTILE
    assert "owned" not in page.browser.title
    assert not page.all("#rollout script, #rollout img")
    assert page.complaints() == []


def test_a_drift_is_shown_where_it_begins(page: Page) -> None:
    page.press("jjj")
    page.until(lambda: page.title() == "Task 0, rollout 3")
    assert "Drift at token" in page.one(".drift").text
    assert page.all(".t.drifted")
    page.press("d")
    page.shot("rollouts-view-drift")


def test_filters_and_search_narrow_the_list(page: Page) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.one("#failure")).select_by_visible_text("no valid reward · 555")
    page.until(lambda: page.one("#found").text == "555 of 5,000 rows")
    page.until(lambda: page.one("#rollout .title .failed").text.startswith("failed: "))
    Select(page.one("#environment")).select_by_index(2)
    page.until(lambda: page.one("#found").text.startswith("27"))
    page.press("/")
    page.one("#search").send_keys("QUESTION 4321:\n")
    page.until(lambda: page.one("#found").text == "1 of 5,000 rows hold the text")
    page.until(lambda: page.title() == "Task 1080, rollout 1")
    page.one("#filters button[type=reset]").click()
    page.until(lambda: page.one("#found").text == "5,000 of 5,000 rows")
    assert page.complaints() == []


def test_every_field_has_a_label_and_dark_mode_is_dark(page: Page) -> None:
    for field in page.all("input, select"):
        assert field.accessible_name
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    dark = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    page.shot("rollouts-view-dark")
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert dark == "rgb(22, 24, 28)"
