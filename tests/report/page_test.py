#!/usr/bin/python3
"""Tests the page of report/ in headless Chromium: it loads without an error, draws, answers to mouse and keyboard, and prints.

    tests/report/page_test.py <make_page> [--pictures FOLDER]   # make_page: the program of make_page.cpp

Needs chromium, chromium-driver and python3-selenium (scripts/bootstrap.sh browser) and libjs-chart.js (... examples).
"""
import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALL = "install Debian's packages chromium, chromium-driver and python3-selenium (scripts/bootstrap.sh browser)"

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common import utils
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    sys.exit(f"error: no module selenium in {sys.executable}: {INSTALL}")

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
WIDTHS = (390, 1440)
SCHEMES = ("light", "dark")

# How many colours a canvas shows; a blank one shows one.
COUNT_COLOURS = """
const {width, height} = arguments[0], data = arguments[0].getContext("2d").getImageData(0, 0, width, height).data;
const seen = new Set();
for (let i = 0; i < data.length; i += 4 * 7) seen.add((data[i] << 24) ^ (data[i + 1] << 16) ^ (data[i + 2] << 8) ^ data[i + 3]);
return seen.size;
"""


class LocalService(Service):
    """The driver, by its address: a bare machine without /etc/hosts does not know the name that selenium would ask for."""

    @property
    def service_url(self):
        return f"http://127.0.0.1:{self.port}"

    def is_connectable(self):
        return utils.is_connectable(self.port, "127.0.0.1")


def start_browser(profile):
    for program in (CHROMIUM, DRIVER):
        if not os.access(program, os.X_OK):
            sys.exit(f"error: no {program}: {INSTALL}")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # By a pipe: Chromium and its driver, too, would look for each other by the name that LocalService does without.
    flags = "headless=new remote-debugging-pipe no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in (flags + " disable-component-update disable-sync disable-dev-shm-usage hide-scrollbars "
                 "force-device-scale-factor=1").split():
        options.add_argument("--" + flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(service=LocalService(DRIVER), options=options)


class Page(unittest.TestCase):
    folder = make_page = compare = pictures = browser = None

    @classmethod
    def make(cls, name, *options, maker="make_sample.py"):
        data, page = cls.folder / f"{name}.json", cls.folder / f"{name}.html"
        with open(data, "w") as out:
            subprocess.run([sys.executable, HERE / maker, *options], stdout=out, check=True)
        subprocess.run([cls.make_page, data, page], check=True)
        return page

    @classmethod
    def setUpClass(cls):
        cls.small = cls.make("small")
        cls.profile = cls.make("profile", maker="make_profile.py")

    def set_size(self, width, height):
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                     {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})

    def open(self, page, width, scheme="light"):
        self.set_size(width, 900)
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                     {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        self.browser.get_log("browser")
        begin = time.monotonic()
        self.browser.get(page.as_uri())
        # A browser that has only just begun says that it is there while it still shows its first, empty page.
        WebDriverWait(self.browser, 30).until(
            lambda _: self.run_js("return location.href === arguments[0] && document.documentElement.dataset.ready === 'yes'",
                                  page.as_uri()), f"{page.name} was not drawn within 30 s")
        return time.monotonic() - begin

    def run_js(self, script, *args):
        return self.browser.execute_script(script, *args)

    def find(self, css):
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def assert_quiet(self):
        self.assertEqual(self.browser.get_log("browser"), [])

    def assert_drawn(self):
        canvases = self.find("figure canvas")
        self.assertGreater(len(canvases), 4)
        for canvas in canvases:
            self.assertGreater(self.run_js(COUNT_COLOURS, canvas), 8, canvas.get_attribute("aria-label"))
        return canvases

    def picture(self, name, whole=True):
        if self.pictures:
            if whole:
                self.set_size(self.run_js("return innerWidth"), self.run_js("return document.documentElement.scrollHeight"))
                time.sleep(0.5)
            shot = self.browser.execute_cdp_cmd("Page.captureScreenshot", {})
            (self.pictures / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def hover(self, node, right=0.5, down=0.5):
        self.run_js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", node)
        size = node.size
        ActionChains(self.browser).move_to_element_with_offset(
            node, int((right - 0.5) * size["width"]), int((down - 0.5) * size["height"])).pause(0.1).perform()

    def assert_draws(self, page, pictures=""):
        """Everything, at all widths and in all schemes, without a word in the console."""
        for width in WIDTHS:
            for scheme in SCHEMES:
                with self.subTest(width=width, scheme=scheme):
                    self.open(page, width, scheme)
                    self.assert_drawn()
                    self.picture(f"{pictures}{width}-{scheme}")
                    self.assertLessEqual(self.run_js("return document.documentElement.scrollWidth"), width, "it scrolls sideways")
                    if width == WIDTHS[-1]:
                        for box in self.find(".table"):
                            self.assertLessEqual(*self.run_js("return [arguments[0].scrollWidth, arguments[0].clientWidth]", box),
                                                 f"a table scrolls sideways: {box.text.splitlines()[0]}")
                    self.assert_quiet()

    def test_draws_everything_without_a_word_in_the_console(self):
        self.assert_draws(self.small)

    def test_says_that_all_gradients_are_identical_and_shows_odd_text_as_it_is(self):
        self.open(self.small, 1440)
        self.assertIn("all 6 strategies are identical, to the last bit", self.find(".verdict.good")[0].text)
        self.assertEqual(self.find("h1")[0].text, "Recompute: <MobileNetV2> & what it takes")
        self.assertIn("</script><script>alert(1)</script>", self.find("#facts")[0].text)

    def test_hovering_a_chart_shows_values(self):
        for width in WIDTHS:
            self.open(self.small, width)
            charts = self.find(".canvas.chart canvas")
            self.assertGreaterEqual(len(charts), 4)
            for canvas in charts:
                self.hover(canvas, 0.6)
                self.assertRegex(self.tooltip(canvas), r"\d ([kMG]?B)\b", canvas.get_attribute("aria-label"))
            self.picture(f"hover-{width}", whole=False)

    def test_hovering_a_schedule_shows_values(self):
        for width in WIDTHS:
            self.open(self.small, width)
            for box in self.find(".canvas.schedule"):
                self.hover(box, 0.5, 0.3)
                text = box.find_element(By.CSS_SELECTOR, ".tip").text
                self.assertRegex(text, r"(?s)^(Fnone|Fck|Fall|B) \d+, .*time .* s .*MB while it runs")
            self.picture(f"schedule-{width}", whole=False)
        self.assert_quiet()

    def test_a_schedule_and_the_tables_are_reached_by_keyboard(self):
        self.open(self.small, 390)
        reached = set()
        for _ in range(60):
            self.browser.switch_to.active_element.send_keys(Keys.TAB)
            active = self.browser.switch_to.active_element
            reached.add(active.get_attribute("class") if active.tag_name == "div" else active.tag_name)
        self.assertLessEqual({"table", "canvas", "input", "summary", "a"}, reached)

        canvas = self.find(".canvas.schedule canvas")[0]
        self.run_js("arguments[0].focus()", canvas)
        canvas.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
        self.assertIn("Fall 2, blocks.1", self.find(".readout")[0].text)
        for node in self.find("figure canvas"):
            self.assertGreater(len(node.get_attribute("aria-label")), 20)
        self.assertEqual(len(self.find("table caption")), len(self.find("table")))

    def test_the_chosen_strategies_are_shown(self):
        self.open(self.small, 1440)
        before = len(self.find("#schedules figure"))
        for box in self.find("#schedules fieldset input, #timeline fieldset input"):
            if not box.is_selected():
                self.run_js("arguments[0].click()", box)
        self.assertEqual(before, 3)
        self.assertEqual(len(self.find("#schedules figure")), 6)
        self.assertEqual(len(self.find("#timeline figure")), 6)
        self.assert_drawn()
        for details in self.find("details"):
            self.run_js("arguments[0].open = true", details)
        self.picture("all")
        self.assert_quiet()

    def test_prints_light_and_comes_back(self):
        self.open(self.small, 1440, "dark")
        dark = self.run_js("return colour('ink')")
        self.run_js("""addEventListener("beforeprint", () => {
            window.printed = [colour("ink"), document.querySelector("main").clientWidth]; })""")
        pdf = self.browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
        raw = base64.b64decode(pdf["data"])
        if self.pictures:
            (self.pictures / "print.pdf").write_bytes(raw)
        self.assertTrue(raw.startswith(b"%PDF"))
        self.assertGreater(len(raw), 50_000)
        ink, width = self.run_js("return window.printed")
        self.assertNotEqual(ink, dark)
        self.assertLess(width, 800)
        self.assertEqual(self.run_js("return colour('ink')"), dark)
        self.assert_drawn()
        self.assert_quiet()

    def test_a_net_of_340_stages_draws_quickly(self):
        page = self.make("large", "--stages", "340", "--points", "20000")
        for width in WIDTHS:
            seconds = self.open(page, width)
            self.assertLess(seconds, 10)
            self.assert_drawn()
            self.hover(self.find(".canvas.schedule")[1], 0.6, 0.5)
            self.assertIn("while it runs", self.find(".canvas.schedule .tip")[1].text)
            self.picture(f"large-{width}")
            self.assert_quiet()

    def tooltip(self, canvas):
        return self.run_js("""const tip = Chart.getChart(arguments[0]).tooltip;
            const lines = [...(tip.title ?? []), ...(tip.body ?? []).flatMap((b) => b.lines), ...(tip.footer ?? [])];
            return tip.opacity === 0 ? "" : lines.join("|")""", canvas)

    def test_a_profile_draws_everything_without_a_word_in_the_console(self):
        self.assert_draws(self.profile, "profile-")
        sections = [node.get_attribute("id") for node in self.find("section")]
        self.assertEqual(sections, ["profile", "roofline", "modules", "timeline", "peak", "schedules", "speed", "energy"])
        self.assertEqual(self.find("h1")[0].text, "Profile: <a net> & its costs")
        self.assertIn("<Net>", self.find("#modules tbody th")[0].text)

    def test_the_roofline_names_the_op_under_the_mouse(self):
        for width in WIDTHS:
            self.open(self.profile, width)
            canvas = self.find("#roofline canvas")[0]
            for name in ("conv2d", "batch_norm_gradient"):
                self.run_js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
                x, y = self.run_js("""const chart = Chart.getChart(arguments[0]);
                    for (const [k, set] of chart.data.datasets.entries())
                        for (const [i, p] of set.data.entries())
                            if (p.op?.op === arguments[1]) { const at = chart.getDatasetMeta(k).data[i]; return [at.x, at.y]; }""",
                                   canvas, name)
                size = canvas.size
                ActionChains(self.browser).move_to_element_with_offset(
                    canvas, round(x - size["width"] / 2), round(y - size["height"] / 2)).pause(0.1).perform()
                text = self.tooltip(canvas)
                self.assertRegex(text, r"^\w+ in blocks\.\d+\.\w+\|")
                self.assertRegex(text, r"FLOP, .*B\|.* FLOPs a byte, .*% of the roofline$")
            self.picture(f"roofline-{width}", whole=False)
            self.assert_quiet()

    def test_the_charts_of_a_profile_answer_to_the_mouse(self):
        expected = {"#profile": r"tensor contraction: \d", "#speed": r"batch \d+\|.*samples/s", "#energy": r"together: .*J",
                    "#timeline": r"total: .*B"}
        for width in WIDTHS:
            self.open(self.profile, width)
            for section, pattern in expected.items():
                canvas = self.find(f"{section} canvas")[0]
                self.hover(canvas, 0.5, 0.3)
                self.assertRegex(self.tooltip(canvas), pattern)
        self.assert_quiet()

    def test_the_numbers_of_a_profile_are_in_tables_that_the_keyboard_reaches(self):
        self.open(self.profile, 390)
        for node in self.find("details"):
            self.run_js("arguments[0].open = true", node)
        time.sleep(0.2)
        boxes = self.find(".table")
        self.assertGreater(len(boxes), 8)
        for box in boxes:
            self.assertEqual((box.get_attribute("tabindex"), box.get_attribute("role")), ("0", "region"))
            self.assertTrue(self.run_js("return document.getElementById(arguments[0].getAttribute('aria-labelledby'))", box).text)
        for node in self.find("figure canvas"):
            self.assertGreater(len(node.get_attribute("aria-label")), 20)
        rows = boxes[1].find_elements(By.CSS_SELECTOR, "tbody tr")
        classes = {row.find_element(By.TAG_NAME, "th").text: row.text for row in rows}
        self.assertRegex(classes["tensor contraction"], r"99\.80 % 61\.00 %$")
        self.assertRegex(classes["statistical normalisation"], r"0\.17 % 25\.50 %$")
        self.assertRegex(classes["element-wise"], r"0\.03 % 13\.50 %$")
        modules = self.find("#modules tbody tr")
        self.assertIn("111,360", modules[0].text)  # the net has what its modules have
        left = [self.run_js("return parseFloat(getComputedStyle(arguments[0]).paddingLeft)", row.find_element(By.TAG_NAME, "th"))
                for row in modules[:3]]  # the net, blocks, blocks.0
        self.assertTrue(left[0] < left[1] < left[2], left)

    def test_short_tables_fit_a_telephone(self):
        self.open(self.profile, 390)
        for caption in ("The step in numbers", "The peak by kind of memory"):
            box = next(b for b in self.find(".table") if b.text.startswith(caption))
            self.assertLessEqual(*self.run_js("return [arguments[0].scrollWidth, arguments[0].clientWidth]", box), caption)

    def test_tables_fit_paper_and_what_is_closed_is_not_printed(self):
        self.open(self.profile, 718)  # A4 between its margins
        try:
            self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
            self.run_js("setPrinting(true)")
            for box in self.find(".table"):
                widths = self.run_js("return [arguments[0].scrollWidth, arguments[0].clientWidth]", box)
                self.assertLessEqual(*widths, box.text[:40])
            self.assertTrue(self.find("details"))
            self.assertFalse(any(node.is_displayed() for node in self.find("details, summary")))
        finally:
            self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

    def test_the_ends_of_the_bars_of_energy_say_how_much_that_is(self):
        for width in WIDTHS:
            self.open(self.profile, width)
            ends, room = self.run_js("""const chart = Chart.getChart(arguments[0]);
                return [chart.options.plugins.barEnds.ends, chart.width - chart.chartArea.right]""", self.find("#energy canvas")[0])
            self.assertEqual([text[-1] for text in ends], ["J"] * 4)
            self.assertGreater(room, 50)

    def test_a_profile_of_500_blocks_draws_quickly_and_prints(self):
        page = self.make("deep", "--blocks", "500", maker="make_profile.py")
        self.assertLess(self.open(page, 1440), 10)
        self.assert_drawn()
        self.assertIn("1,500 slowest of", self.find("#roofline figcaption")[0].text)
        pdf = base64.b64decode(self.browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
        self.assertTrue(pdf.startswith(b"%PDF"))
        self.assert_quiet()

    def test_the_page_of_a_real_comparison_has_every_section(self):
        if not self.compare:
            self.skipTest("compare_checkpointing was not built")
        page = self.folder / "real.html"
        strategies = "vanilla,low-memory,sqrt,segments:3,budget:21MB"
        command = [self.compare, "--model", "digits", "--steps", "1", "--threads", "2", "--frontier"]
        command += ["--strategies", strategies, "--report", page]
        subprocess.run(command, check=True, capture_output=True)
        self.open(page, 1440)
        titles = [title.text for title in self.find("section h2")]
        wanted = ["The strategies side by side", "Memory against time", "Memory during a step", "The schedules as pictures"]
        self.assertEqual(titles, wanted)
        self.assert_drawn()
        # A strategy as planned is no better than the frontier, which is drawn into the same chart.
        data = json.loads(self.run_js("return document.getElementById('data').textContent"))
        planned = self.run_js("return plannedPoints(JSON.parse(document.getElementById('data').textContent))")
        self.assertEqual([p["name"] for p in planned], strategies.split(","))
        for point in planned:
            best = min((corner["seconds"] for corner in data["frontier"] if corner["bytes"] <= point["x"]), default=None)
            self.assertIsNotNone(best, point)
            self.assertLessEqual(best, point["y"] * (1 + 1e-9), point)
        self.assert_quiet()

    def test_little_data_makes_a_small_page(self):
        data, page = self.folder / "little.json", self.folder / "little.html"
        data.write_text(json.dumps({"title": "Little", "strategies": [
            {"strategy": "a", "schedule": "Fall1 B1", "gradient_hash": "1", "loss": 1},
            {"strategy": "b", "gradient_hash": "2", "loss": 1, "step_ms_median": None}]}))
        subprocess.run([self.make_page, data, page], check=True)
        self.open(page, 390)
        self.assertIn("differ from those of a: b", self.find(".verdict.bad")[0].text)
        self.assertEqual(len(self.find("section")), 2)
        self.assert_quiet()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("make_page")
    parser.add_argument("compare", nargs="?", help="compare_checkpointing, for a page of real data")
    parser.add_argument("--pictures", type=Path, help="a folder for screenshots to look at")
    parser.add_argument("--only", default="test", help="part of a test's name")
    args = parser.parse_args()
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as profile:
        Page.folder, Page.make_page, Page.pictures = Path(folder), args.make_page, args.pictures
        Page.compare = args.compare
        Page.browser = start_browser(profile)
        try:
            suite = unittest.TestSuite(t for t in unittest.defaultTestLoader.loadTestsFromTestCase(Page) if args.only in t.id())
            result = unittest.TextTestRunner(verbosity=2).run(suite)
        finally:
            Page.browser.quit()
    return 0 if result.wasSuccessful() and result.testsRun > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
