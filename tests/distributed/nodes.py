"""Machines on one machine: network, host name, process ids and /etc/hosts of its own for each node.

The nodes' network cards are plugged into a switch (a bridge) that has a network namespace of its own, so nothing of
the machine's own network is touched. No namespace has a name: each lives as long as a process that ends with this one.
"""

import pathlib
import shutil
import subprocess

import pytest


class Namespaces:
    """Fresh ones of the given `kinds` (options of unshare), until end() or the end of this process."""

    def __init__(self, *kinds):
        # `cat` ends when the pipe is closed, whatever has become of this process, and as the first process of a pid
        # namespace it takes all others with it.
        command = ["unshare", *kinds, "sh", "-c", "echo; exec cat"]
        self.holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.holder.stdout.read(1) != b"\n":
            self.end()
            pytest.skip(f"no right to make namespaces ({' '.join(command[:-3])})")
        pid = self.holder.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.pid = int(children[0]) if "--fork" in kinds else pid
        entered = [kind for kind in kinds if kind in ("--net", "--uts", "--pid", "--mount")]
        self.enter = ["nsenter", "--target", str(self.pid), *entered]

    def call(self, *command):
        done = subprocess.run([*self.enter, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def end(self):
        self.holder.stdin.close()
        self.holder.wait()
        self.holder.stdout.close()


def with_memory(limit):
    """Namespaces of a control group that has `limit` bytes, as satune reads it."""
    place = Namespaces("--mount")
    place.call("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup")
    place.call("sh", "-c", f"echo {limit} > /sys/fs/cgroup/memory.max; echo 0 > /sys/fs/cgroup/memory.current")
    return place


class Node(Namespaces):
    def __init__(self, number):
        super().__init__("--net", "--uts", "--pid", "--mount", "--mount-proc", "--fork")
        self.number, self.name, self.address = number, f"node-{number}", f"10.91.0.{number + 1}"
        self.processes = []
        self.call("hostname", self.name)

    def start(self, command, environment, log):
        """A process of this node; both its streams go to `log`. Only absolute paths mean there what they mean here."""
        with open(log, "wb") as file:
            self.processes.append(subprocess.Popen([*self.enter, *map(str, command)], env=environment, stdout=file,
                                                   stderr=subprocess.STDOUT))
        return self.processes[-1]

    def end(self):
        super().end()
        for process in getattr(self, "processes", []):
            process.wait()


class Network:
    """`count` nodes and the switch between them. Their hosts files are Debian's: a node's own name is 127.0.1.1."""

    def __init__(self, count, folder):
        if shutil.which("ip") is None:
            pytest.skip("found no ip (package iproute2)")
        self.nodes, self.switch = [], None
        try:
            self.switch = Namespaces("--net")
            self.switch.call("ip", "link", "add", "switch", "up", "type", "bridge")
            for number in range(count):
                self.nodes.append(Node(number))
                self.plug_in(self.nodes[-1])
            for node in self.nodes:
                self.write_hosts(node, folder / f"hosts-{node.number}")
        except BaseException:
            self.end()
            raise

    def plug_in(self, node):
        port = f"port-{node.number}"
        self.switch.call("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node.pid)
        self.switch.call("ip", "link", "set", port, "master", "switch", "up")
        node.call("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
        node.call("ip", "link", "set", "eth0", "up")
        node.call("ip", "link", "set", "lo", "up")

    def write_hosts(self, node, file):
        others = [f"{other.address} {other.name}\n" for other in self.nodes if other is not node]
        file.write_text(f"127.0.0.1 localhost\n127.0.1.1 {node.name}\n{''.join(others)}")
        node.call("mount", "--bind", file, "/etc/hosts")

    def cut(self, node):
        """The cable is pulled: both ends lose their carrier."""
        self.switch.call("ip", "link", "set", f"port-{node.number}", "down")

    def mute(self, node):
        """The switch drops what comes from the node and what goes there, for good, and nobody is told."""
        self.switch.call("bridge", "link", "set", "dev", f"port-{node.number}", "state", "0")

    def mend(self, node):
        """The cable is plugged in again. The switch forwards as soon as it has seen the carrier."""
        self.switch.call("ip", "link", "set", f"port-{node.number}", "up")

    def end(self):
        for namespaces in [*self.nodes, self.switch]:
            if namespaces is not None:
                namespaces.end()
