"""A headless browser for tests of pages: Debian's chromium-headless-shell, driven over the pipes of its DevTools protocol."""

import base64
import fcntl
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time

import pytest
from PIL import Image
from programs import ROOT

# What set-up unpacks without root first: the package's own script there names a path that is not.
PROGRAMS = (ROOT / ".setup/debian/usr/lib/chromium/chromium-headless-shell", "chromium-headless-shell", "chromium", "google-chrome")


class Browser:
    """One browser; open() gives a page in it. What pages complain about is kept with each."""

    def __init__(self, profile):
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            pytest.skip("no headless browser: ./launch/setup.sh --tests installs chromium-headless-shell where Debian has it")
        to_browser, self.requests = os.pipe()
        self.answers, from_browser = os.pipe()

        def connect():  # the browser reads descriptor 3 and writes 4
            ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]
            for number, fd in enumerate(ends, start=3):
                os.dup2(fd, number)

        self.process = subprocess.Popen(
            [program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"],
            preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.numbers, self.buffer, self.pages = itertools.count(1), b"", {}

    def close(self):
        os.close(self.requests)
        os.close(self.answers)
        self.process.kill()
        self.process.wait()

    def message(self, deadline):
        """The next one; events go to the page they belong to."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return None
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser ended"
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        if "method" in message and message.get("sessionId") in self.pages:
            self.pages[message["sessionId"]].events.append(message)
        return message

    def call(self, method, session=None, timeout=60, **parameters):
        number = next(self.numbers)
        request = {"id": number, "method": method, "params": parameters}
        if session:
            request["sessionId"] = session
        os.write(self.requests, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while (message := self.message(deadline)) is not None:
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
        raise AssertionError(f"{method}: no answer in {timeout} s")

    def open(self, url, scripts=True):
        target = self.call("Target.createTarget", url="about:blank", width=1100, height=900)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call("Page.navigate", url=url)
        page.wait(lambda: any(event["method"] == "Page.loadEventFired" for event in page.events))
        return page


class Page:
    def __init__(self, browser, session):
        self.browser, self.session, self.events = browser, session, []

    def call(self, method, **parameters):
        return self.browser.call(method, session=self.session, **parameters)

    def wait(self, condition, timeout=60):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            self.browser.message(time.monotonic() + 0.1)

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def complaints(self):
        """Errors and warnings of scripts, of the page's policy and of what it asked for."""
        found = []
        for event in self.events:
            method, body = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(body["exceptionDetails"]["text"])
            elif method == "Runtime.consoleAPICalled" and body["type"] in ("error", "warning", "assert"):
                found.append(str(body["args"]))
            elif method == "Log.entryAdded" and body["entry"]["level"] in ("error", "warning"):
                found.append(body["entry"]["text"])
            elif method == "Network.loadingFailed":
                found.append(f"{body['requestId']}: {body['errorText']}")
            elif method == "Network.responseReceived" and body["response"]["status"] >= 400:
                found.append(f"{body['response']['url']}: {body['response']['status']}")
        return found

    def requested(self):
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self):
        """The whole page, however long."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def drawn_share(image):
    """Share of pixels that are not of the commonest colour."""
    colours = image.getcolors(image.width * image.height)
    return 1 - max(count for count, _ in colours) / (image.width * image.height)


# Boxes of the figures on the page, and the texts that stick out of the figure they are in.
FIGURES = """[...document.querySelectorAll('svg')].map(svg => {
  const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
  const out = [...svg.querySelectorAll('text')].filter(text => {
    const t = text.getBoundingClientRect();
    return t.left < box.left - 1 || t.right > box.right + 1 || t.top < box.top - 1 || t.bottom > box.bottom + 1;
  }).map(text => text.textContent);
  return {name: svg.querySelector('title').textContent, box: [box.left + scrollX, box.top + scrollY, box.right + scrollX,
          box.bottom + scrollY], out, width: view.width};
})"""


def check_page(page, headings, figures=1):
    """No complaint, every heading, each figure drawn with its texts inside, nothing wider than the window. Returns the
    screenshot."""
    assert page.complaints() == []
    found = page.evaluate("[...document.querySelectorAll('h1,h2')].map(h => h.textContent)")
    assert set(headings) <= set(found), (headings, found)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    empty = page.evaluate("[...document.querySelectorAll('h2')].filter(h => !h.nextElementSibling || "
                          "h.nextElementSibling.matches('h2')).map(h => h.textContent)")
    assert empty == [], f"nothing stands under {empty}"
    image = page.screenshot()
    assert drawn_share(image) > 0.01
    drawn = page.evaluate(FIGURES)
    assert len(drawn) >= figures, drawn
    for figure in drawn:
        assert figure["out"] == [], figure
        assert figure["box"][2] - figure["box"][0] > 300, figure
        assert drawn_share(image.crop(tuple(map(int, figure["box"])))) > 0.005, figure
    return image
