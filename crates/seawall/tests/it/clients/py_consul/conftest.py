"""Stands in for the root conftest.py of py-consul's own suite: where that starts a container of Consul for each test, this
starts a Seawall. Everything else, tests and fixtures, is the suite's own."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import tempfile

import pytest

import consul.check

# What the suite asks about to choose between words of old and new versions.
VERSION = "1.22.0"

ConsulInstance = collections.namedtuple("ConsulInstance", ["container", "port", "version"])


@pytest.fixture(scope="session", autouse=True)
def _unset_consul_token():
    os.environ.pop("CONSUL_HTTP_TOKEN", None)


class Seawall:
    def __init__(self, discovery=""):
        self.folder = tempfile.TemporaryDirectory(prefix="seawall-py-consul-")
        file = os.path.join(self.folder.name, "seawall.yaml")
        with open(file, "w", encoding="utf-8") as config:
            config.write(
                "node: { name: test, region: dc1 }\n"
                'api: { listen: "127.0.0.1:0" }\n'
                'gateway: { listen: ["127.0.0.1:0"] }\n'
                f"discovery: {{ remoteScriptChecks: true{discovery} }}\n"
            )
        self.data = os.path.join(self.folder.name, "data")
        with open(os.path.join(self.folder.name, "stderr"), "w", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                [os.environ["SEAWALL_BINARY"], "up", file, "--data-dir", self.data],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        line = self.process.stdout.readline()
        assert line.startswith("ready "), line
        self.port = int(json.loads(line.removeprefix("ready "))["api"].rsplit(":", 1)[1])

    def token(self):
        with open(os.path.join(self.data, "api-token"), encoding="utf-8") as token:
            return token.read().strip()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


@pytest.fixture
def _seawall(monkeypatch, request):
    # With `acl: { enabled: true }`, as the suite's own conftest has it, where a test asks for a Consul with ACLs.
    with_acls = "acl_consul_instance" in request.fixturenames
    seawall = Seawall(", acl: { enabled: true }" if with_acls else "")
    # In its container Consul listens on 8500, and the suite has it check itself there. The system has chosen this one's port.
    http = consul.check.Check.http.__func__

    def itself(cls, url, *args, **kwargs):
        for host in ("localhost", "127.0.0.1"):
            url = url.replace(f"http://{host}:8500", f"http://{host}:{seawall.port}/v1/status/leader")
        return http(cls, url, *args, **kwargs)

    monkeypatch.setattr(consul.check.Check, "http", classmethod(itself))
    yield seawall
    seawall.end()


@pytest.fixture
def consul_instance(_seawall):
    return ConsulInstance(None, _seawall.port, VERSION)


@pytest.fixture
def acl_consul_instance(_seawall):
    return ConsulInstance(None, _seawall.port, VERSION), _seawall.token()


@pytest.fixture
def consul_port(consul_instance):
    return consul_instance.port, consul_instance.version


def pytest_runtest_setup(item):
    # Of a Consul whose ACLs are on, or of one as it comes.
    item.user_properties.append(("acl", "acl_consul_instance" in item.fixturenames))


_worst = {}


def pytest_runtest_logreport(report):
    known = _worst.get(report.nodeid)
    if known is None or report.outcome != "passed":
        _worst[report.nodeid] = (report.outcome, dict(report.user_properties).get("acl", False))


def pytest_sessionfinish(session):
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    with open(os.environ["OUTCOMES"], "w", encoding="utf-8") as file:
        for nodeid, (outcome, acl) in sorted(_worst.items()):
            file.write(json.dumps({"id": nodeid, "outcome": outcome, "acl": acl}) + "\n")
