"""The HTML page in a real Chromium: charts, switches, explorer, both themes, laptop and phone. Skipped without one."""

from __future__ import annotations

import shutil

import pytest
from page_runs import HOSTILE, small_comparison

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    comparison = small_comparison()
    path = tmp_path_factory.mktemp("page") / "page.html"
    comparison.report(path, comparison.around(budget=3_000))
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page, and everything it has said on its console."""

    def __init__(self, browser, address, width, scheme):
        self.said = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.goto(address)


@pytest.fixture(scope="module")
def opened(browser, address):
    """The page on a laptop and on a phone; opened once, as it takes a while."""
    return {"laptop": Opened(browser, address, 1440, "light"), "phone": Opened(browser, address, 390, "dark")}


@pytest.fixture
def laptop(opened):
    yield opened["laptop"].page
    assert opened["laptop"].said == []


@pytest.fixture
def phone(opened):
    yield opened["phone"].page
    assert opened["phone"].said == []


def contrast(page, selector):
    """Contrast ratio (WCAG 2.2) of an element's text against the page's own background."""
    return page.evaluate(
        """selector => {
          const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map((v) => { const c = v / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const [a, b] = [light(getComputedStyle(document.querySelector(selector)).color), light(getComputedStyle(document.body).backgroundColor)].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05);
        }""",
        selector,
    )


def test_keyboard_reaches_the_answer(phone):
    phone.keyboard.press("Tab")
    assert phone.evaluate("document.activeElement.className") == "skip"
    phone.keyboard.press("Enter")
    assert phone.url.endswith("#answer")


@pytest.mark.parametrize("device", ["laptop", "phone"])
def test_every_chart_is_drawn_and_nothing_sticks_out(request, device):
    page = request.getfixturevalue(device)
    drawn = page.evaluate(
        "[...document.querySelectorAll('.chart')].filter(c => c.offsetParent).map(c => !!c.querySelector('.cartesianlayer path'))"
    )
    assert len(drawn) >= 11
    assert all(drawn)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("html").get_attribute("data-theme") == {"laptop": "light", "phone": "dark"}[device]
    for selector in ("body", ".lede", "caption", ".contents a", ".verdict", "td.best", "summary"):
        assert contrast(page, selector) >= 4.5, selector


def test_theme_switch_repaints(laptop):
    page = laptop
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    line = page.locator("#dist-ttft .scatterlayer path.js-line").first
    colour = line.evaluate("path => path.style.stroke")
    page.get_by_role("button", name="Use dark colours").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert line.evaluate("path => path.style.stroke") != colour
    page.locator("#theme").focus()
    page.keyboard.press("Space")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before


def test_topologies_and_workers_are_switched(laptop):
    page = laptop
    lines = page.locator("#dist-tpot .scatterlayer .trace")
    assert lines.count() == 2
    page.locator(".key[data-topology='1']").click()
    assert lines.count() == 1
    assert page.locator(".key[data-topology='1']").get_attribute("aria-pressed") == "false"
    page.locator(".pick[data-load='1']").click()
    assert page.locator("#load-keys button").all_text_contents() == ["prefill-0", "decode-0"]
    page.locator("#load-keys button").first.click()
    assert page.locator("#load-running .scatterlayer .trace").count() == 1


def test_requests_are_sorted_filtered_and_opened(laptop):
    page = laptop
    rows = page.locator("#explorer tbody tr:not(.more)")
    assert rows.count() == 15
    assert HOSTILE in rows.first.inner_text()
    page.get_by_role("button", name="prompt").click()
    head = page.locator("th:has([data-sort='input'])")
    assert head.get_attribute("aria-sort") == "descending"
    prompts = [
        int(text.replace(",", "")) for text in page.locator("#explorer tbody tr td:nth-child(3)").all_text_contents()
    ]
    assert prompts == sorted(prompts, reverse=True)
    page.get_by_role("button", name="prompt").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    page.get_by_label("Prompt from").fill("800")
    matching = int(page.locator("#found").inner_text().split(" ")[0])
    assert 0 < matching < 120
    page.locator("#filters [name=topology]").select_option("1")
    page.locator("#filters [name=show]").select_option("ttft")
    page.get_by_label("Prompt from").fill("")
    page.get_by_label("Request, worker").fill("prefill-0")
    button = rows.first.get_by_role("button")
    button.click()
    assert page.locator("#explorer .more").count() == 1
    assert "TTFT" in page.locator("#explorer .more").inner_text()
    assert rows.first.get_by_role("button").get_attribute("aria-expanded") == "true"
    page.get_by_label("Request, worker").fill("no such worker")
    assert page.locator("#found").inner_text().startswith("0 of")


def test_tables_and_sources_open(phone):
    page = phone
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("details[open]").count() == page.locator("details").count()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
