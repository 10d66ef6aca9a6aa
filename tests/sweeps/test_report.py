"""The report of a sweep: its numbers against pandas, and the page in a browser, wide and narrow, light and dark."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from foldax.errors import RunError
from foldax.sweeps import statistics
from foldax.sweeps.report import _mean_curves, write_report
from tests.sweeps.test_statistics import SPACE, results_of, write_sweep

pytest.importorskip("plotly")


def data_of(page: Path) -> dict:
    """Data of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sweep of 12 configs and 3 seeds, in which a member is not finite, and its report."""
    results = results_of()
    results.loc[0, "status"] = "not finite"
    path = write_sweep(tmp_path_factory.mktemp("report") / "sweep", results)
    write_report(path)
    return path


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with warnings.catch_warnings(), sync_api.sync_playwright() as playwright:
        warnings.simplefilter("ignore")  # of playwright's own event loop
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser):
    """Opens a report, waits until all is rendered, and checks that nothing else was loaded and no error was logged."""

    def open_page(path: Path, width: int = 1400, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.messages, page.loaded = [], []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("request", lambda request: page.loaded.append(request.url))
        page.goto((path / "report.html").as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        assert not page.messages
        assert page.loaded == [(path / "report.html").as_uri()]
        return page

    return open_page


@pytest.fixture(scope="module")
def wide_page(open_page, folder):
    """The report in a wide window, which tests share, since opening it takes seconds."""
    return open_page(folder)


@pytest.fixture
def page(wide_page):
    """The same for one test, after which still nothing must have been loaded or complained about."""
    yield wide_page
    assert not wide_page.messages
    assert len(wide_page.loaded) == 1


def test_main_effects_and_configs_equal_pandas(folder) -> None:
    _, results, curves = statistics.read(folder)
    data = data_of(folder / "report.html")
    good = results[results["status"] == "finished"]
    ranked = statistics.summarize(results, list(SPACE), "validation/loss")
    np.testing.assert_allclose(data["means"]["validation/loss"], ranked["mean"], rtol=1e-5)
    assert data["fields"][0]["values"] == list(ranked.index.get_level_values("learning_rate"))
    rate, hidden, clip = data["fields"]
    assert (rate["kind"], hidden["kind"], clip["kind"]) == ("log", "category", "category")
    assert (rate["at"], hidden["labels"], clip["labels"]) == ([1e-3, 1e-2, 1e-1], ["[8]", "[8, 8]"], ["none", "1"])
    for level, value in enumerate(rate["at"]):
        members = good[good["learning_rate"] == value]
        seeds = members.groupby("seed")["test/accuracy"].mean().to_numpy()
        effect = {key: values[level] for key, values in rate["effects"]["test/accuracy"].items()}
        low, high = statistics.bootstrap_interval(seeds)
        np.testing.assert_allclose(
            [effect["mean"], effect["low"], effect["high"]], [seeds.mean(), low, high], rtol=1e-5
        )
    first = results[(results[list(SPACE)].astype(str) == [str(v) for v in ranked.index[0]]).all(axis=1)]
    points = curves[curves["member"].isin(first["member"]) & (curves["split"] == "train")].groupby("step")["value"]
    best = data["curves"]["train/loss"]["0"]
    assert best["step"] == [10, 20, 40]
    for key, expected in (("mean", points.mean()), ("low", points.min()), ("high", points.max())):
        np.testing.assert_allclose(best[key], expected, rtol=1e-5)


def test_tables_have_a_row_per_config_and_per_member(folder) -> None:
    tables = data_of(folder / "report.html")["tables"]
    configs = [dict(zip(tables["configs"]["columns"], row)) for row in tables["configs"]["rows"]]
    assert [row["rank"] for row in configs] == list(range(1, 13))
    assert sum(row["not finite"] for row in configs) == 1
    assert re.fullmatch(r"0\.\d{4} \[0\.\d{4}, 0\.\d{4}\]", configs[0]["validation/loss"][1])
    assert [row[1] for row in tables["members"]["rows"]] == list(range(36))


def test_field_with_many_values_is_cut_into_ranges(tmp_path) -> None:
    rates = list(np.geomspace(1e-4, 1e-1, 40))
    path = write_sweep(tmp_path / "sweep", results_of({"learning_rate": rates}, seeds=1), ["learning_rate"])
    data = data_of(write_report(path))
    (rate,) = data["fields"]
    assert rate["ranges"]
    assert np.bincount(rate["codes"]).tolist() == [5] * 8
    assert rate["at"] == sorted(rate["at"])
    assert set(rate["effects"]["test/loss"]["low"]) == {None}  # one seed has no interval
    assert "low" not in data["curves"]["validation/loss"]["0"]
    # Some versions of pandas have NumPy's integers as keys of groups, which JSON refuses.
    _, results, curves = statistics.read(path)
    ranks = results.set_index("member").index.to_series()
    assert {type(rank) for rank in _mean_curves(curves, ranks)["validation/loss"]} == {int}


def test_curves_of_agents_are_against_environment_steps(tmp_path) -> None:
    path = write_sweep(tmp_path / "sweep", results_of({"num_envs": [2, 4]}, seeds=1), ["num_envs"])
    metadata = json.loads((path / "sweep.json").read_text())
    metadata["config"] |= {"environment_steps": 9_999, "learning_starts": 100, "num_envs": 1, "rollout_steps": 8}
    (path / "sweep.json").write_text(json.dumps(metadata))
    data = data_of(write_report(path))
    assert data["step"] == "environment steps"
    for rank, num_envs in enumerate(data["fields"][0]["values"]):
        steps = data["curves"]["train/loss"][str(rank)]["step"]
        assert steps == [100 + num_envs * 8 * update for update in (10, 20, 40)]


def test_page_states_its_provenance(folder) -> None:
    text = (folder / "report.html").read_text()
    for part in ("foldax sweep tiny.py --seeds 3", "abc123 with uncommitted changes", "f00d", "jax 0.10.2", "cpu:0"):
        assert part in text
    assert "gone None" not in text


def test_folder_that_is_no_sweep_is_an_error(tmp_path) -> None:
    with pytest.raises(RunError):
        write_report(tmp_path)


def check_plots(page, width: int) -> None:
    plots = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => [p.id, p.querySelectorAll('.main-svg').length > 0,"
        " p.querySelectorAll('.js-line, .point, .hm image').length])"
    )
    assert [name for name, *_ in plots] == ["curves", "effect-0", "effect-1", "effect-2", "heatmap", "parallel"]
    assert all(svg and traces > 0 for _, svg, traces in plots), plots
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wider = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert not wider


def test_every_plot_is_drawn_in_a_wide_window(page) -> None:
    check_plots(page, 1400)


def test_every_plot_is_drawn_in_a_narrow_dark_window(folder, open_page) -> None:
    narrow = open_page(folder, 400, "dark")
    check_plots(narrow, 400)
    narrow.close()


def test_click_on_a_column_sorts_and_a_second_click_reverses(page) -> None:
    def column(name: str) -> list[str]:
        heads = page.locator("th").all_inner_texts()
        return page.locator(f"tbody td:nth-child({heads.index(name) + 1})").all_inner_texts()

    assert column("rank") == [str(i + 1) for i in range(12)]
    for name, key in (("validation/loss", lambda text: float(text.split()[0])), ("hidden", str)):
        head = page.locator("th", has_text=name)
        for direction in ("ascending", "descending"):
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == direction
            assert page.locator("th[aria-sort]").count() == 1
            values = [key(text) for text in column(name)]
            assert values == sorted(values, reverse=direction == "descending")
    page.select_option("#rows", "members")
    assert page.locator("tbody tr").count() == 36
    assert page.locator("tbody td", has_text="not finite").count() == 1


def test_plots_follow_the_system_theme(page) -> None:
    from playwright.sync_api import expect

    for scheme, paper, ink in (
        ("dark", "rgb(15, 19, 24)", "rgb(230, 237, 243)"),
        ("light", "rgb(255, 255, 255)", "rgb(27, 31, 36)"),
    ):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("background-color", paper)
        for plot in ("#curves", "#effect-0", "#effect-2", "#heatmap", "#parallel"):
            expect(page.locator(f"{plot} .xtick text").first).to_have_css("fill", ink)


def test_selections_change_the_plots(page) -> None:
    from playwright.sync_api import expect

    lines = page.locator("#curves .js-line")
    before = lines.count()
    page.locator("#legend button").first.click()
    expect(lines).to_have_count(before - 2)  # the mean and the edge of the band
    page.select_option("#curve", "train/loss")
    expect(page.locator("#curves .ytitle")).to_have_text("train/loss")
    page.select_option("#metric", "test/accuracy")
    expect(page.locator("#effect-2 .ytitle")).to_have_text("test/accuracy")
    page.select_option("#horizontal", "2")
    expect(page.locator("#heatmap .xtitle")).to_have_text("clip")


def test_box_on_an_axis_filters_configs(page) -> None:
    assert page.locator("#unbrush").is_hidden()
    page.locator("#parallel").scroll_into_view_if_needed()
    box = page.locator("#parallel .nsewdrag").first.bounding_box()
    x = box["x"] + box["width"] * 0.4 / 4  # the first of four axes, over a range of 4
    page.mouse.move(x - 12, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(x + 12, box["y"] + 30, steps=4)
    page.mouse.up()
    page.wait_for_selector("#unbrush", state="visible")
    kept = page.evaluate("document.querySelector('#parallel').data.filter(t => t.opacity > .2).flatMap(t => t.y)")[::5]
    assert kept == [1, 1, 1, 1]  # the four configs of the highest rate
    page.locator("#unbrush").click()
    page.wait_for_selector("#unbrush", state="hidden")


def test_pages_with_little_or_odd_content_open_without_errors(tmp_path, open_page) -> None:
    odd = {"name<b>": ["</script><img src=x onerror=alert(1)>", "$a$ &amp;"], "flag": [True, False]}
    results = results_of(odd)
    results["validation/loss"] *= -1
    opened = {}
    for name, path in {
        "running": write_sweep(tmp_path / "running", None),
        "not finite": write_sweep(tmp_path / "lost", results_of().assign(status="not finite")),
        "seeds": write_sweep(tmp_path / "seeds", results_of({}), []),
        "odd": write_sweep(tmp_path / "odd", results, list(odd)),
    }.items():
        write_report(path)
        opened[name] = open_page(path)
    assert "no member is done yet" in opened["running"].inner_text("body")
    assert "members not finite, so in no mean: 36" in opened["not finite"].inner_text("body")
    assert opened["seeds"].locator("#fields").is_hidden()
    assert opened["odd"].locator("img").count() == 0
    assert opened["odd"].locator("th", has_text="name<b>").count() == 1
    assert "</script><img src=x onerror" in opened["odd"].text_content("#effect-0")  # long values are shortened
