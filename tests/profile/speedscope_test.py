#!/usr/bin/python3
"""Loads Chrome traces into speedscope, in headless Chromium: it must take and draw each, and refuse a broken one.

    tests/profile/speedscope_test.py <speedscope>/dist/release <trace.json>...    # make check-trace installs and runs it

Needs chromium, chromium-driver and python3-selenium (scripts/bootstrap.sh browser) and npm's package speedscope.
"""
import base64
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "report"))
from page_test import start_browser  # noqa: E402
from selenium.common.exceptions import UnexpectedAlertPresentException  # noqa: E402

SECONDS = 30


def wait_for(browser, what, script):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if result := browser.execute_script(script):
            return result
        time.sleep(0.1)
    sys.exit(f"error: {what}; the page says: {browser.execute_script('return document.body.innerText')!r}")


def load(browser, app, name, content, folder):
    """Loads a trace as `speedscope FILE` does: by a script that hands it to the page. Returns once it is shown or refused."""
    encoded = base64.b64encode(content).decode()
    script = folder / f"{name}.js"
    script.write_text(f"speedscope.loadFileFromBase64({json.dumps(name)}, {json.dumps(encoded)})")
    browser.get("about:blank")
    browser.get(f"{(app / 'index.html').resolve().as_uri()}#localProfilePath={script}")
    try:
        return wait_for(browser, f"speedscope neither took nor refused {name}",
                        f"return document.title.includes({json.dumps(name)}) ? 'taken' : "
                        "document.body.innerText.includes('Something went wrong') ? 'refused' : null")
    except UnexpectedAlertPresentException:  # "Unrecognized format!"
        return "refused"


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    app, traces = Path(sys.argv[1]), [Path(t) for t in sys.argv[2:]]
    if not (app / "index.html").is_file():
        sys.exit(f"error: no {app}/index.html: install speedscope (make check-trace does)")
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryDirectory() as folder:
        browser = start_browser(profile)
        try:
            for trace in traces:
                if load(browser, app, trace.name, trace.read_bytes(), Path(folder)) != "taken":
                    sys.exit(f"error: speedscope refused {trace}: {browser.get_log('browser')}")
                # A begin without its end, or the other way round, is said in the console.
                messages = [line["message"] for line in browser.get_log("browser")]
                if said := [m for m in messages if "ts=" in m or "Frame" in m]:
                    sys.exit(f"error: speedscope took {trace}, and said: {said}")
                wait_for(browser, "speedscope draws nothing", "return document.querySelectorAll('canvas').length > 0")
                print(f"{trace}: taken and drawn")
            if load(browser, app, "broken.json", b'{"traceEvents": 7}', Path(folder)) != "refused":
                sys.exit("error: speedscope took a trace that is none, so this test shows nothing")
        finally:
            browser.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
