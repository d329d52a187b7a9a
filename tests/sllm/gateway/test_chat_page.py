"""The page at /, in a real browser where there is one, over a real server and a scripted engine."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from sllm.gateway.chat_page import GREETING
from sllm.gateway.serve import background

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings
    from sllm.library.models import Library
    from tests.sllm.gateway.scripted import Script

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="the page is tested in Chromium: apt install chromium"
)


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of headless Chromium; whatever goes wrong in its scripts fails the test."""
    failures: list[str] = []
    with sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: failures.append(str(error)))
        yield page
        browser.close()
    assert not failures


def ask(page: Page, question: str) -> None:
    page.locator("#send:not([disabled])").wait_for()
    page.fill("#question", question)
    page.press("#question", "Enter")


def test_a_browser_gets_the_page_and_a_client_the_greeting(http: httpx.Client) -> None:
    assert http.get("/").text == GREETING
    assert http.head("/").status_code == 200
    reply = http.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert reply.headers["content-type"].startswith("text/html")
    for name in re.findall(r'(?:href|src)="(page/[^"]+)"', reply.text):
        part = http.get(f"/{name}")
        assert part.status_code == 200
        assert not re.findall(r"https?://", part.text), "it asks nobody else"
    assert http.get("/page/..%2fapp.py").status_code == 404
    assert http.get("/page/app.py").status_code == 404


def test_the_page_may_load_and_run_nothing_but_its_own_files(http: httpx.Client) -> None:
    reply = http.get("/", headers={"Accept": "text/html"})
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "style=" not in reply.text
    assert "<script>" not in reply.text


def test_the_page_asks_for_the_token_itself(
    settings: Settings, library: Library, backing: Backing
) -> None:
    with (
        background(replace(settings, token="secret"), library=library, backing=backing) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert client.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert client.get("/page/chat.js").status_code == 200
        assert client.get("/api/tags").status_code == 401


@in_a_browser
def test_a_question_is_answered_with_its_rate(page: Page, url: str, script: Script) -> None:
    script.answer = "It is **Paris**: `print(1)`\n```py\n<b>no markup</b>\n```\n"
    page.goto(url)
    page.locator("#model option").first.wait_for(state="attached")
    assert page.locator("#model option").count() == 3
    page.select_option("#model", "plain:latest")
    ask(page, "What is the capital of France?")
    expect(page.locator("#rate")).to_contain_text(" tokens at ")
    answer = page.locator(".assistant")
    assert answer.locator("strong").inner_text() == "Paris"
    assert answer.locator("pre").inner_text().strip() == "<b>no markup</b>"
    assert page.locator(".user").inner_text() == "What is the capital of France?"
    page.locator("#unload:not([disabled])").click()
    expect(page.locator("#where")).to_contain_text("On disk")


@in_a_browser
def test_an_answer_can_be_stopped_and_the_chat_goes_on(
    page: Page, url: str, script: Script
) -> None:
    script.answer = "one two three four"
    script.free_tokens = 4
    script.go.clear()
    page.goto(url)
    page.locator("#model option").first.wait_for(state="attached")
    ask(page, "Count")
    expect(page.locator(".assistant")).to_contain_text("one")
    page.click("#stop")
    page.locator("#send:visible").wait_for()
    script.go.set()
    script.answer = "again"
    ask(page, "And now?")
    expect(page.locator(".assistant").nth(1)).to_have_text("again")


@in_a_browser
def test_a_new_chat_forgets_an_answer_that_was_being_written(
    page: Page, url: str, script: Script
) -> None:
    script.answer = "one two three four"
    script.free_tokens = 4
    page.goto(url)
    page.locator("#model option").first.wait_for(state="attached")
    page.select_option("#model", "plain:latest")
    ask(page, "Count")
    expect(page.locator(".assistant")).to_contain_text("one")
    page.click("#clear")
    page.locator("#send:visible").wait_for()
    script.go.set()
    ask(page, "And now?")
    expect(page.locator(".assistant")).to_have_text("one two three four")
    assert "Count" not in script.prompts[1]
    assert "one" not in script.prompts[1]


@in_a_browser
def test_a_wrong_token_is_asked_for_again(
    page: Page, settings: Settings, library: Library, backing: Backing
) -> None:
    with background(replace(settings, token="secret"), library=library, backing=backing) as url:
        page.goto(url)
        page.fill("#token", "wrong")
        page.click("#login button")
        page.locator("#login[open]").wait_for()
        page.fill("#token", "secret")
        page.click("#login button")
        page.locator("#model option").first.wait_for(state="attached")
