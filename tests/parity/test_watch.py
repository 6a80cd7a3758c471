"""satune watch: the page of report served live, runs that are being written, the server's manners, and the page in a
headless browser."""

import contextlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time

import pytest
from browser import check_page
from programs import refused
from report_runs import (  # the fixtures are asked for by name
    HEADINGS, browser, cells, folder, page, report, runs, synthetic,
)  # noqa: F401

def tables_of(port, caption):
    answer, body = get(port, "/body")
    assert answer.status == 200
    return cells(f"<x>\n<html><body>{body}</body></html>", caption)


@contextlib.contextmanager
def watching(program, *runs, stop=signal.SIGINT):
    """The port of a server over the runs, which ends with 0 when it is stopped."""
    process = subprocess.Popen([program, "watch", *map(str, runs), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        yield int(re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)[1])
        process.send_signal(stop)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def port(satune, runs):
    with watching(satune, runs[0]) as port:
        yield port


def get(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def raw(port, data, wait=True):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while wait and (part := connection.recv(65536)):
            received += part
        return received


def test_the_live_page_is_the_report(port, page):
    answer, live = get(port)
    assert answer.status == 200 and answer.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.getheader("Content-Security-Policy")
    answer, body = get(port, "/body?now=1")
    inside = page.split("<main>\n")[1].split("</main>")[0]
    assert body == inside and inside in live
    tag = answer.getheader("ETag")
    assert get(port, "/body", If_None_Match=tag)[0].status == 304
    assert get(port, "/body", If_None_Match='"other"')[0].status == 200


def test_only_its_two_pages_and_only_from_here(port, runs):
    for path in ("/metrics.jsonl", "/../config.json", "/..%2fconfig.json", "//etc/passwd", "/body/", "/%2e%2e/", "/favicon.ico"):
        answer, body = get(port, path)
        assert (answer.status, body) == (404, "404 Not Found\n"), path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        answer, _ = get(port, method=method)
        assert answer.status == 405 and answer.getheader("Allow") == "GET"
    assert get(port, Host="evil.example")[0].status == 403
    assert get(port, Host="127.0.0.1.evil.example:80")[0].status == 403
    assert get(port, Host="localhost:9999")[0].status == 200
    for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} | {"127.0.0.2"}:
        if address != "127.0.0.1":
            with pytest.raises(OSError):
                socket.create_connection((address, port), timeout=5).close()


def test_bad_requests_do_not_disturb(port):
    for data in (b"\r\n\r\n", b"GET\r\n\r\n", b"GET / FTP/1.0\r\n\r\n", b"GET http://x/ HTTP/1.1\r\n\r\n", b"x" * 9000,
                 b"GET / HTTP/1.1\r\nX: " + b"y" * 9000 + b"\r\n\r\n", b"\x00\xff\r\n\r\n"):
        assert raw(port, data).startswith(b"HTTP/1.1 400 "), data[:20]
    assert raw(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    # Many that say nothing, some that leave in the middle: the next one is answered all the same.
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for _ in range(20):
        raw(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", wait=False)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        for byte in b"GET /body HTTP/1.0\r\nHost: localhost\r\n\r\n":
            slow.sendall(bytes([byte]))
        assert slow.recv(20).startswith(b"HTTP/1.1 200 ")
    assert get(port)[0].status == 200
    for connection in idle:
        connection.close()


def test_clients_that_say_nothing_keep_nobody_out(port):
    """More of them than the server keeps connections, and for less time than it keeps one."""
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    begin = time.monotonic()
    assert get(port)[0].status == 200
    assert time.monotonic() - begin < 8
    for connection in idle:
        connection.close()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_descriptors_it_waits_and_says_so_once(satune, runs, tmp_path):
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([satune, "watch", runs[0], "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True,
                                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    try:
        port = int(re.match(r"http://127\.0\.0\.1:(\d+)/ ", process.stdout.readline())[1])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        time.sleep(1)
        before = cpu_seconds(process.pid)
        time.sleep(3)
        assert cpu_seconds(process.pid) - before < 0.5
        for connection in idle:
            connection.close()
        assert get(port)[0].status == 200
        assert (tmp_path / "log").read_text().count("Too many open files") == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_port_in_use_is_exit_3(satune, runs, port):
    line = refused(satune, "watch", runs[0], "--port", port, code=3)
    assert f"--port {port}" in line and "127.0.0.1" in line


def test_a_run_that_is_being_written(satune, synthetic):
    """Rows appear as they are appended, also those of halves; what a resume cuts disappears; the folder is only read."""
    run = synthetic([])
    rows = run / "metrics.jsonl"
    rows.unlink()
    with watching(satune, run, stop=signal.SIGTERM) as port:
        def finished():
            return cells(f"<x>\n<html><body>{get(port, '/body')[1]}</body></html>", "What the run")["steps finished"]

        assert finished() == ["0"]
        with open(rows, "w") as out:
            for step in range(1, 4):
                out.write(json.dumps({"step": step, "loss": 1.0 / step})[:-4])
                out.flush()
                assert finished() == [str(step - 1)]
                out.write(json.dumps({"step": step, "loss": 1.0 / step})[-4:] + "\n")
                out.flush()
                assert finished() == [str(step)]
        (run / "other").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
        (run / "other").rename(rows)
        assert finished() == ["1"]
        rows.unlink()
        assert finished() == ["0"]
        assert list(run.iterdir()) == []


def test_a_run_that_has_no_folder_yet(satune, tmp_path):
    run = tmp_path / "later" / "run"
    with watching(satune, run) as port:
        told = get(port, "/body")[1]
        assert f"The run has not begun yet: there is no folder {run}." in told and "is not there" not in told
        run.mkdir(parents=True)
        assert "has neither metrics.jsonl nor the config.json of a run" in get(port, "/body")[1]
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
        assert tables_of(port, "What the run")["steps finished"] == ["1"]
        assert "not begun" not in get(port, "/body")[1]


def test_what_cannot_be_read_is_told_and_tried_again(satune, synthetic):
    run = synthetic([{"step": 1, "loss": 1.0}])
    rows = run / "metrics.jsonl"
    for name in ("config.json", "samples.jsonl"):
        (run / name).mkdir()
    os.mkfifo(run / "data.json")
    told = ["config.json cannot be read (Is a directory)", "samples.jsonl cannot be read (Is a directory)",
            "data.json cannot be read (Invalid argument)"]
    page = report(satune, run, output=run / "report.html")
    assert all(line in page for line in told)
    with watching(satune, run) as port:
        for _ in range(2):
            answer, body = get(port, "/body")
            assert answer.status == 200 and all(line in body for line in told)
            assert tables_of(port, "What the run")["steps finished"] == ["1"]
        rows.unlink()
        rows.mkdir()
        for _ in range(2):
            assert "metrics.jsonl cannot be read (Is a directory)" in get(port, "/body")[1]
        rows.rmdir()
        rows.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2)))
        assert tables_of(port, "What the run")["steps finished"] == ["2"]


@pytest.mark.parametrize("begin", ["", "x" * 3000])
def test_another_file_of_the_same_inode(satune, synthetic, begin):
    """As a run that was deleted and begun again may get it. With a long first row the two begin alike."""
    def lines(loss, count):
        first = {"step": 1, "loss": 9.0 if begin else loss, "note": begin}
        return [first, *({"step": step, "loss": loss} for step in range(2, count + 1))]

    run = synthetic(lines(3.0, 4))
    rows = run / "metrics.jsonl"
    with watching(satune, run) as port:
        assert tables_of(port, "What the run")["last training loss"] == ["3"]
        inode = rows.stat().st_ino
        rows.write_text("".join(json.dumps(row) + "\n" for row in lines(2.0, 7)))
        assert rows.stat().st_ino == inode
        assert tables_of(port, "What the run")["steps finished"] == ["7"]
        numbers = tables_of(port, "Numbers of the curves")["loss"]
        assert [numbers[1], numbers[4]] == ["7", "2"], "no row of the file before is left"
        assert "are no rows" not in get(port, "/body")[1]


def test_the_live_page_in_a_browser(browser, satune, runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:4]))
    with watching(satune, run, runs[1]) as port:
        opened = browser.open(f"http://127.0.0.1:{port}/")
        steps = "document.querySelector('tbody td').textContent"
        assert opened.evaluate(steps) == "4 of 24"
        opened.wait(lambda: "Live" in opened.evaluate("document.querySelector('[role=status]').textContent"))
        check_page(opened, HEADINGS, figures=16)
        opened.evaluate("scrollTo(0, 500)")
        with open(run / "metrics.jsonl", "a") as out:
            out.write("".join(lines[4:]))
        opened.wait(lambda: opened.evaluate(steps) == "24 of 24", timeout=20)
        assert opened.evaluate("scrollY") == 500
        assert opened.complaints() == []
        assert {url.split(str(port))[1] for url in opened.requested()} == {"/", "/body"}
        plain = browser.open(f"http://127.0.0.1:{port}/", scripts=False)
        assert plain.complaints() == [] and plain.requested() == [f"http://127.0.0.1:{port}/"]
    # Without its server the page stays and says so.
    opened.wait(lambda: "does not answer" in opened.evaluate("document.querySelector('[role=status]').textContent"), timeout=20)
    assert opened.evaluate(steps) == "24 of 24"
