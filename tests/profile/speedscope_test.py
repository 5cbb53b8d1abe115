#!/usr/bin/python3
"""Loads the traces of three nets into speedscope, in headless Chromium: it must take and draw each, and refuse broken ones.

    tests/profile/speedscope_test.py <profile> <folder> [--must]

npm installs speedscope into the folder, once. Where npm is missing, or cannot fetch it, the test is skipped with status 77; with
--must (make check-trace) that is a failure. Needs chromium, chromium-driver and python3-selenium (scripts/bootstrap.sh browser).
"""
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "report"))
from page_test import start_browser  # noqa: E402
from selenium.common.exceptions import UnexpectedAlertPresentException  # noqa: E402

SECONDS = 30
VERSION = "1.25.0"
MODELS = ("lenet5", "mobilenet_v2_cifar", "preresnet")


def install(folder, must):
    """Where speedscope's page lies. Ends the test where there is none to be had."""
    package = folder / "node_modules" / "speedscope"
    manifest = package / "package.json"
    if not manifest.is_file() or json.loads(manifest.read_text())["version"] != VERSION:
        why = "no npm (scripts/bootstrap.sh trace)"
        if shutil.which("npm"):
            options = "--loglevel=error --no-audit --no-fund --no-save --ignore-scripts --fetch-retries=0 --fetch-timeout=30000"
            command = ["npm", "install", *options.split(), "--prefix", folder, f"speedscope@{VERSION}"]
            done = subprocess.run(command, capture_output=True, text=True)
            said = " ".join(done.stderr.splitlines()[:4])
            why = f"npm cannot install speedscope {VERSION}: {said}" if done.returncode else ""
        if why:
            print(f"{'error' if must else 'skipped'}: {why}")
            sys.exit(1 if must else 77)
    return package / "dist" / "release"


def wait_for(browser, what, script):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if result := browser.execute_script(script):
            return result
        time.sleep(0.1)
    sys.exit(f"error: {what}; the page says: {browser.execute_script('return document.body.innerText')!r}")


def load(browser, app, name, content, folder):
    """Loads a trace as `speedscope FILE` does: by a script that hands it to the page. "taken", or what was said against it."""
    encoded = base64.b64encode(content).decode()
    script = folder / f"{name}.js"
    script.write_text(f"speedscope.loadFileFromBase64({json.dumps(name)}, {json.dumps(encoded)})")
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(f"{(app / 'index.html').resolve().as_uri()}#localProfilePath={script}")
    try:
        answer = wait_for(browser, f"speedscope neither took nor refused {name}",
                          f"return document.title.includes({json.dumps(name)}) ? 'taken' : "
                          "document.body.innerText.includes('Something went wrong') ? 'refused' : null")
    except UnexpectedAlertPresentException:  # "Unrecognized format!"
        return "refused"
    # A begin without its end, or the other way round, is said in the console.
    messages = [line["message"] for line in browser.get_log("browser")]
    said = [m for m in messages if "ts=" in m or "Frame" in m]
    return f"taken, and said: {said}" if said else answer


def main():
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["--must"]):
        sys.exit(__doc__)
    program, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    app = install(folder, must=len(sys.argv) == 4)
    traces = [folder / f"{model}.json" for model in MODELS]
    for model, trace in zip(MODELS, traces):
        command = [program, "--model", model, "--batch", "8", "--steps", "3", "--recompute", "sqrt", "--trace", trace]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    # What is none, and events of which neither lies in the other: were they taken, this test would show nothing.
    event = {"name": "a", "ph": "X", "pid": 1, "tid": 1, "ts": 0, "dur": 10}
    broken = {"none.json": {"traceEvents": 7}, "crossed.json": [event, event | {"name": "b", "ts": 5}]}
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryDirectory() as scripts:
        browser = start_browser(profile)
        try:
            for trace in traces:
                if (answer := load(browser, app, trace.name, trace.read_bytes(), Path(scripts))) != "taken":
                    sys.exit(f"error: {trace}: {answer}")
                wait_for(browser, "speedscope draws nothing", "return document.querySelectorAll('canvas').length > 0")
                print(f"{trace}: taken and drawn")
            for name, content in broken.items():
                if load(browser, app, name, json.dumps(content).encode(), Path(scripts)) == "taken":
                    sys.exit(f"error: speedscope took {name}, which is broken")
        finally:
            browser.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
