"""Memory of running processes, seen from outside."""

import pathlib
import time


def status_bytes(pid, key):
    """A line of /proc/PID/status ("VmHWM", "RssAnon") in bytes; None while the process is being made or taken down."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def grown_peaks(processes, output):
    """Highest RssAnon of each process until all have ended, above its value when the run folder `output` has its
    config.json: the next thing that a run does is to load its weights. None when it never had one."""
    before, peaks = None, [0] * len(processes)
    while any(process.poll() is None for process in processes):
        now = [status_bytes(process.pid, "RssAnon") for process in processes]
        if before is None and (output / "config.json").exists() and None not in now:
            before = now
        peaks = [max(peak, value or 0) for peak, value in zip(peaks, now)]
        time.sleep(0.003)
    return before and [peak - start for peak, start in zip(peaks, before)]
