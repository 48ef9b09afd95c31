"""The page in a real browser."""

import json
import shutil
import time

import pytest

from gpt.run import Run
from tests.serve.served import listening, serving
from tests.support.pretrained import saved_run

pytestmark = pytest.mark.browser

HTML = "<img src=x onerror=\"document.title='broken in'\">"
WIDTHS = (360, 800, 1400)


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("needs Chromium: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


class Page:
    """A tab with the server's page, by the ids of its elements."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def __getitem__(self, id: str):
        return self.driver.find_element("id", id)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def told_of_losses(self) -> str:
        """What the plot of the losses tells those who do not see it."""
        label = self.js("return document.querySelector('#curves figure')?.ariaLabel")
        return label or ""

    def until(self, condition, what: str, seconds: float = 60):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, what
            time.sleep(0.05)
        return found

    def write(self, **fields) -> None:
        """Fill in the playground's fields, and ask for texts."""
        for id, value in fields.items():
            self.js("document.getElementById(arguments[0]).value = arguments[1]", id, value)
        self["write"].click()

    def is_done(self) -> bool:
        return self["write"].is_enabled()


@pytest.fixture
def runs(tmp_path):
    """A directory with the run `r`, which has logged two steps, and a sample that looks like HTML."""
    run = saved_run(tmp_path).run
    log(run, 1, sample=HTML)
    log(run, 2)
    return tmp_path


def log(run: Run, step: int, **more) -> None:
    line = {"step": step, "time": step, "tokens": 10 * step, "loss": 5 - step / 10, "tokens_per_second": 100.0, **more}
    with open(run.metrics_path, "a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture
def page(chromium, runs):
    """The page of a server with `runs`. Its console must not have a complaint, such as a breach of its CSP."""
    with serving(runs) as (engine, app), listening(app) as address:
        chromium.get(address)
        page = Page(chromium)
        page.address, page.engine = address, engine
        page.until(lambda: page["name"].text == "r", "the run is shown")
        yield page
        complaints = [each["message"] for each in chromium.get_log("browser") if each["level"] == "SEVERE"]
        assert not complaints
        chromium.get("about:blank")


def test_a_curve_grows_while_a_run_trains(page, runs):
    """Another process writes the log."""
    page.until(lambda: "training 4.800 at step 2" in page.told_of_losses(), "its curve is drawn")
    assert page.js("return document.querySelector('#curves canvas').width") > 100
    log(Run("r", runs), 3, val_loss=4.5)
    page.until(lambda: "training 4.700 at step 3" in page.told_of_losses(), "it has grown")
    assert "validation 4.500" in page.told_of_losses()
    page.until(
        lambda: all(value in page.text(".u-legend") for value in ("4.7", "4.5")), "the legend has the last values"
    )


def test_what_models_write_is_text_and_never_html(page):
    assert HTML in page.text("#learned")
    assert not page.all("#learned img")
    page.write(prompt=HTML, length=5, samples=1)
    page.until(page.is_done, "it has written")
    assert page.driver.title == "hipgpt"
    assert not page.all("img")


def test_a_prompt_streams_and_its_tokens_tell_their_alternatives(page):
    page.write(prompt="the cat", length=2000, samples=2, seed=1)
    page.until(lambda: len(page.all("#texts .token")) > 3 and not page.is_done(), "tokens come before the end")
    page["halt"].click()
    page.until(page.is_done, "it has stopped")
    assert len(page.all("#texts .text")) == 2
    page.js("document.querySelector('#texts .token').focus()")
    assert page["alternatives"].is_displayed()
    assert len(page.all("#alternatives li")) >= 6
    assert "%" in page["alternatives"].text
    page.driver.switch_to.active_element.send_keys("\ue014")  # the right arrow
    assert page.js("return document.activeElement === document.querySelectorAll('#texts .token')[1]")


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_stops_the_model_too(page, by, runs):
    page.write(prompt="the cat", length=16384, samples=4)
    page.until(lambda: page.all("#texts .token"), "it writes")
    if by == "button":
        page["halt"].click()
    else:
        page["prompt"].send_keys("\ue00c")  # Escape
    page.until(page.is_done, "it has stopped")
    assert page["speed"].text.endswith("Stopped")
    page.until(lambda: not page.engine.has_work, "its places are free")


def test_the_keyboard_writes_and_the_pieces_of_the_prompt_are_shown(page):
    page["prompt"].clear()
    page["prompt"].send_keys("the cat")
    page.until(lambda: page.text("#pieces") == "theĠcat", "the pieces are shown")
    assert page.text("#count") == "2 tokens:"
    page.js("document.getElementById('length').value = 3")
    page["prompt"].send_keys("\ue009\ue007")  # Ctrl-Enter
    page.until(lambda: page.all("#texts .token") and page.is_done(), "it has written")


def test_a_mistake_is_told_beside_the_button(page):
    page.write(prompt="", stop="x" * 3, length=5)
    page.js("document.getElementById('playground').noValidate = true")
    page.until(page.is_done, "an empty prompt begins a text")
    page.write(temperature=3)
    page.until(lambda: "temperature is 3" in page["speed"].text, "the server's words are shown")
    page.driver.get_log("browser")  # the console names the status, 400


def test_two_tabs_write_at_once(page):
    first = page.driver.current_window_handle
    page.write(prompt="the cat", length=400, samples=1, seed=1)
    page.driver.switch_to.new_window("tab")
    try:
        page.driver.get(page.address)
        page.until(lambda: page["name"].text == "r", "the run is shown")
        page.write(prompt="the dog", length=20, samples=1, seed=1)
        page.until(page.is_done, "the second has written")
        assert len(page.all("#texts .token")) == 20
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
    page.until(page.is_done, "the first has written")
    assert len(page.all("#texts .token")) == 400


def test_runs_can_be_compared(page, runs):
    log(saved_run(runs, name="other").run, 5)
    page.until(lambda: page.all("#compare-other"), "the new run is listed")
    page["compare-other"].click()
    page.until(lambda: "other training 4.500" in page.told_of_losses(), "both curves")
    page["choose-other"].click()
    page.until(lambda: page["name"].text == "other", "the other one is shown")


def test_long_names_that_differ_at_their_ends_are_shown_whole_in_a_list_that_scrolls_by_itself(page, runs):
    names = [f"a_long_name_of_an_experiment_of_which_there_are_many-lr3e-{number:02}" for number in range(20)]
    for name in names:
        shutil.copytree(runs / "r", runs / name)
    page.until(lambda: len(page.all("#runs li")) == 21, "all runs are listed")
    cut = (
        "return [...document.querySelectorAll('#runs strong')].filter((each) => each.scrollHeight > each.clientHeight)"
    )
    assert page.js(cut) == []
    assert page.js("return document.querySelector('nav').offsetHeight <= innerHeight")
    page[f"choose-{names[-1]}"].click()
    page.until(lambda: page["name"].text == names[-1], "the last one is shown")


def test_six_runs_have_a_color_each_and_those_after_them_dashes(page):
    styles = page.js("""
        return import("./page/curves.js").then(({ styleOf }) =>
            [...Array(12).keys()].map((number) => JSON.stringify(styleOf(number, "val_loss"))))""")
    assert len(set(styles)) == 12
    assert len({json.loads(each)["stroke"] for each in styles}) == 6


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(page, theme):
    page.write(prompt="the cat", length=30, samples=3, seed=1)
    page.until(page.is_done, "it has written")
    if page.js("return document.documentElement.dataset.theme") != theme:
        page["theme"].click()
    size = "Emulation.setDeviceMetricsOverride"
    backgrounds = set()
    for width in WIDTHS:
        page.driver.execute_cdp_cmd(size, {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
        page.until(lambda: page.js("return document.documentElement.scrollWidth <= innerWidth"), f"it fits in {width}")
        backgrounds.add(page.js("return getComputedStyle(document.body).backgroundColor"))
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    (color,) = backgrounds
    red = int(color.split("(")[1].split(",")[0])
    assert red > 200 if theme == "light" else red < 60


def test_everything_that_can_be_used_has_a_name(page):
    nameless = """
        return [...document.querySelectorAll("button, input, select, textarea")].filter((each) =>
            !(each.labels?.length || each.textContent.trim() || each.ariaLabel)).map((each) => each.outerHTML)"""
    assert page.js(nameless) == []


def test_a_server_that_goes_away_is_said_and_that_it_is_back(chromium, runs):
    page = Page(chromium)
    with serving(runs) as (_, app), listening(app) as address:
        chromium.get(address)
        page.until(lambda: page["name"].text == "r", "the run is shown")
    page.until(lambda: page["trouble"].is_displayed(), "the end is said")
    assert "does not answer" in page["trouble"].text
    with serving(runs) as (_, app), listening(app, port=int(address.rpartition(":")[2])):
        page.until(lambda: not page["trouble"].is_displayed(), "it is back")
        chromium.get("about:blank")


def test_the_token_comes_with_the_address_or_is_asked_for(chromium, runs):
    page = Page(chromium)
    with serving(runs, token="secret") as (_, app), listening(app) as address:
        chromium.get(address)
        page.until(lambda: page["login"].is_displayed(), "the token is asked for")
        page["token"].send_keys("secret")
        page["token"].submit()
        page.until(lambda: page["name"].text == "r", "the run is shown")
        page.js("sessionStorage.clear()")
        chromium.get("about:blank")
        chromium.get(f"{address}/#token=secret")
        page.until(lambda: page["name"].text == "r", "the run is shown")
        assert chromium.current_url == f"{address}/", "the token does not stay in the address"
        chromium.get("about:blank")
