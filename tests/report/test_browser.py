"""The report in a browser: it draws itself without an error, the filters work, and texts stay texts."""

import re
import shutil

import pytest

from polaris_jax import report
from tests.report.workdirs import HOSTILE, make_evaluation, make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens a report from disk, offline. Every error and warning of the console, and every request for something else,
    fails the test at its end."""
    context, faults = chromium.new_context(offline=True, viewport={"width": 1400, "height": 900}), []

    def opened(path):
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("section")
        return page

    yield opened
    context.close()
    assert faults == []


def visible(text):
    """The text as the page shows it: characters that cannot be seen are named."""
    unseen = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\ufeff]"
    return re.sub(unseen, lambda match: f"U+{ord(match[0]):04X}", text)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "run"
    texts = [
        "<think>one\ntwo</think>The answer is \\boxed{7}",
        "<think>three</think>\\boxed{8}",
        "no thoughts",
        "zebra",
    ]
    make_run(root / "train", texts=lambda step: texts)
    make_evaluation(root / "evaluation" / "before", [["ab", "a"], ["ab", "ab"], ["a", "a"]])
    make_evaluation(root / "evaluation" / "after", [["ab", "ab"], ["a", "ab"], ["a", "a"]])
    return report.write([root])


def test_it_shows_curves_with_bands_stages_and_histograms(open_page, one_run):
    page = open_page(one_run)
    titles = page.locator(".panel h3").all_text_contents()
    for title in ("reward", "diversity, distinct 4-grams", "temperature", "device-hours", "verdicts", "seconds a step"):
        assert title in titles
    assert {"pass rates of groups over time", "response lengths over time"} <= set(titles)
    reward = page.locator(".panel", has=page.get_by_text("reward", exact=True))
    assert reward.locator("path.band").count() == 1
    assert reward.locator("line.stage").count() == 2
    assert "<i>long</i>" in reward.locator("text").all_text_contents()
    reward.locator("svg").hover()
    assert reward.locator(".read").text_content().startswith("step ")
    rows = page.locator("#config tbody tr")
    assert "stages" in rows.locator("td:first-child").all_text_contents()
    few = rows.count()
    page.locator("input[name='all keys']").check()
    assert rows.count() > few + 50
    page.locator("input[name='config search']").fill("rollout.samples")
    assert rows.count() == 1
    page.locator("select[name=metric]").select_option("seconds/update")
    assert page.locator(".panel h3", has_text="seconds/update").count() == 1


def test_the_filters_of_the_rollouts_work(open_page, one_run):
    page = open_page(one_run)
    items, count = page.locator("#groups .item"), page.locator("#count")
    assert items.count() == 20
    page.locator("input[name=from]").fill("4")
    page.locator("input[name=to]").fill("5")
    assert count.text_content() == "4 of 20 groups"
    assert all("step 4" in text or "step 5" in text for text in items.all_text_contents())
    page.locator("select[name=group]").select_option("right")
    assert [text[:3] for text in items.all_text_contents()] == ["4/4"]
    page.locator("select[name=group]").select_option("")
    page.locator("select[name=reason]").select_option("equal")
    assert items.count() == 3  # of step 4 the second group has none right
    items.first.click()  # two of its four responses are right
    assert page.locator(".response.other").count() == 2
    page.locator("select[name=reason]").select_option("")
    page.locator("input[name=from]").fill("")
    page.locator("input[name=to]").fill("")
    page.locator("input[name=words]").fill("ZEBRA")
    assert items.count() == 20
    page.locator("input[name=words]").fill("no such words")
    assert items.count() == 0
    assert page.locator("#group").text_content() == ""
    page.locator("input[name=words]").fill("What is 3 + 1")
    assert items.count() == 1
    page.locator("input[name=words]").fill("")
    page.locator("select[name=problem]").select_option("p3")
    assert 0 < items.count() < 20
    page.locator("select[name=problem]").select_option("")
    page.locator("select[name=order]").select_option("rate")
    rates = [int(text[0]) for text in items.all_text_contents()]
    assert rates == sorted(rates)


def test_a_group_shows_its_siblings_with_folded_thoughts_and_shades(open_page, one_run):
    page = open_page(one_run)
    responses = page.locator(".response")
    assert responses.count() == 4
    first = responses.first
    assert first.locator(".text").all_text_contents() == ["The answer is \\boxed{7}<|end|>"]
    assert first.locator("b", has_text="7").count() == 1
    first.locator("summary").click()
    assert first.locator(".text").first.text_content() == "<think>one\ntwo</think>"
    token = first.locator("details .text > span").first
    assert re.fullmatch(r"log-prob -[\d.]+, entropy [\d.]+, trainer - sampler -?[\d.]+", token.get_attribute("title"))
    shades = {}
    for shade in ("logprobs", "entropies", "gaps", "none"):
        page.locator("select[name=shade]").select_option(shade)
        spans = page.locator(".response").first.locator(".text > span")
        shades[shade] = spans.evaluate_all("spans => spans.map(span => span.style.background)")
    assert len({tuple(backgrounds) for backgrounds in shades.values()}) == 4
    assert set(shades["none"]) == {""}


def test_evaluations_show_what_changed(open_page, one_run):
    page = open_page(one_run)
    rows = page.locator("#problems tr")
    assert rows.count() == 3
    page.locator("select[name=change]").select_option("up")
    assert rows.locator("td").all_text_contents()[1:] == ["Question 0 <b>?", "1/2", "2/2", "+50%"]
    page.locator("select[name=change]").select_option("down")
    assert "Question 1" in rows.text_content()
    page.locator("select[name=change]").select_option("any")
    assert rows.count() == 2
    rows.first.click()
    assert page.locator("#problem .response").count() >= 3
    assert page.locator("#problem").get_by_text("Question", exact=False).count() >= 1


def test_hostile_texts_are_shown_as_text(open_page, tmp_path):
    texts = [*HOSTILE, "<b>" + "y" * 5000]
    make_run(tmp_path / "run", steps=1, texts=lambda step: texts, limit=8192)
    long = "<script>document.title = 'owned'</script>" + "x" * 2**20
    make_evaluation(tmp_path / "run" / "evaluation", [[text] for text in HOSTILE] + [[long]])
    page = open_page(report.write([tmp_path / "run"]))
    assert "owned" not in page.title()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    found = page.locator(".response .text").all_text_contents()
    assert found[:-1] == [visible(f"{text}<|end|>") for text in HOSTILE]
    assert found[-1].endswith("1004 more tokens")
    page.locator(".response button").click()
    assert page.locator(".response .text").last.text_content() == f"{texts[-1]}<|end|>"
    rows = page.locator("#problems tr")
    for row, text in zip(rows.all(), [*HOSTILE, long], strict=True):
        row.click()
        assert page.locator("#problem .response .text").text_content() == visible(text)


def test_several_runs_are_compared(open_page, tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", steps=6, **{"seed": 5})
    page = open_page(report.write([tmp_path / "a", tmp_path / "b"]))
    reward = page.locator(".panel", has=page.get_by_text("reward", exact=True))
    assert reward.locator("path.curve").count() == 2
    assert reward.locator(".legend > span").all_text_contents() == ["a", "b"]
    assert page.locator("#config th").all_text_contents() == ["key", "default", "a", "b"]
    page.locator("select[name=run]").select_option("b")
    assert page.locator("#groups .item").count() == 12
