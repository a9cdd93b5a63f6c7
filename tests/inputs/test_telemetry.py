"""Loading and running a bundle writes nothing below the user's home and looks up no host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.tools import tool

import ptdeploy
from ptdeploy.backends import telemetry

# What the C library is asked, by native code too, which Python's audit hooks do not see.
WATCH = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void say(const char *what, const char *of) {
  int file = open(getenv("WATCHED"), O_WRONLY | O_CREAT | O_APPEND, 0600);
  dprintf(file, "%s %s\\n", what, of ? of : "");
  close(file);
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  say("getaddrinfo", host);
  int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  return next(host, service, hints, found);
}

int connect(int descriptor, const struct sockaddr *address, socklen_t size) {
  say("connect", "");
  int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return next(descriptor, address, size);
}
"""
# ONNX Runtime's first look-up comes about ten seconds after it was loaded.
RUN = """
import sys, time
import ptdeploy
engine = ptdeploy.load(sys.argv[1])
engine.logits([[5, 6, 7]])
time.sleep(float(sys.argv[2]))
"""
VARIABLES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")


@pytest.fixture(scope="module")
def watch(tmp_path_factory) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("watching what native code looks up needs Linux")
    compiler = tool("cc")
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    library = folder / "watch.so"
    line = [compiler, "-shared", "-fPIC", "-o", library, folder / "watch.c", "-ldl"]
    subprocess.run(line, check=True)
    return library


def start(home: Path, code: str, *arguments: str, watch: Path | None = None, **variables: str):
    """Python with a home of its own and none of the variables but those given."""
    home.mkdir()
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in VARIABLES and not name.startswith(("XDG_", "HF_"))
    }
    clean.update(HOME=str(home), **variables)
    if watch is not None:
        clean.update(LD_PRELOAD=str(watch), WATCHED=str(home.parent / f"{home.name}.watched"))
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=clean)


def finish(process: subprocess.Popen) -> None:
    assert process.wait(timeout=300) == 0


def files(home: Path) -> list[str]:
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def watched(home: Path) -> str:
    file = home.parent / f"{home.name}.watched"
    return file.read_text() if file.exists() else ""


def test_a_bundle_that_runs_writes_nothing_at_home_and_looks_up_no_host(compiled, tmp_path, watch):
    bundle = str(compiled("bert", "SEQ_CLS").bundle)
    ours, allowed, control = (tmp_path / name for name in ("ours", "allowed", "control"))
    runs = [
        start(ours, RUN, bundle, "13", watch=watch),
        start(allowed, RUN, bundle, "0", watch=watch, ORT_DISABLE_TELEMETRY="0"),
        start(control, "import socket; socket.getaddrinfo('localhost', 1)", watch=watch),
    ]
    for one in runs:
        finish(one)
    assert "getaddrinfo localhost" in watched(control), "the watch sees what it is for"
    assert files(ours) == []
    assert watched(ours) == ""
    if not files(allowed):
        pytest.skip("this onnxruntime writes no device id, so there was nothing to switch off")
    assert any("deviceid" in name for name in files(allowed)), "what the user allows stays allowed"


def test_each_command_switches_it_off(tmp_path):
    code = """
        import os
        from ptdeploy.cli.main import main
        assert main(["doctor"]) in (0, 3)
        assert os.environ["ORT_DISABLE_TELEMETRY"] == os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    """
    finish(start(tmp_path / "home", code.replace("\n        ", "\n")))
    assert files(tmp_path / "home") == []


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "")
    telemetry.switch_off()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == ""
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    telemetry.switch_off()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_hugging_faces_libraries_report_nothing_in_a_compilation(tmp_path):
    code = """
        import ptdeploy
        try:
            ptdeploy.compile("nowhere", target="ort")
        except ptdeploy.CheckpointError:
            pass
        from huggingface_hub import constants
        from transformers.utils.hub import http_user_agent
        assert constants.HF_HUB_DISABLE_TELEMETRY
        assert "telemetry/off" in http_user_agent()
    """
    finish(start(tmp_path / "home", code.replace("\n        ", "\n"), HF_HUB_OFFLINE="1"))


@pytest.mark.parametrize("module", ["onnxruntime", "openvino"])
def test_nothing_imports_an_engine_past_the_one_place(module):
    package = Path(ptdeploy.__file__).parent
    found = [
        path.name
        for path in package.rglob("*.py")
        if re.search(rf"^\s*(import|from) {module}\b", path.read_text(), re.MULTILINE)
    ]
    assert found == ["telemetry.py"]


def test_cpp_programs_of_ours_switch_it_off():
    sources = Path(ptdeploy.__file__).parent / "cpp"
    programs = [
        path
        for folder in ("examples", "template")
        for path in (sources / folder).glob("*.cc")
        if "int main(" in path.read_text()
    ]
    assert len(programs) == 7
    for path in programs:
        first = path.read_text().split("int main(", 1)[1].split("\n", 1)[1].split(";")[0]
        assert 'setenv("ORT_DISABLE_TELEMETRY", "1", 0)' in first, path


def test_two_threads_may_load_openvino_at_once(tmp_path, monkeypatch):
    """The other one is done, and has cleared up, before this one is."""
    text = "import sys\nassert sys.modules.pop('openvino_telemetry', 0) is None\n"
    (tmp_path / "openvino.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("openvino", "openvino_telemetry"):
        # Set first: what monkeypatch deletes it puts back only where it was there.
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    assert telemetry.import_openvino().__file__ == str(tmp_path / "openvino.py")
