"""Container files and Compose: no engine runs here, so what they say is held against what is in the project."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from gateway.settings import Gateway
from pollen import settings
from server.settings import Settings

PROJECT = Path(__file__).parents[2]
CONTAINERS = sorted((PROJECT / "deploy" / "containers").glob("*.Containerfile"))
COMPOSE = PROJECT / "deploy" / "compose"
FILE = yaml.safe_load((COMPOSE / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
# Named at the top of compose.yaml as to be made.
TO_BE_MADE = ("broker", "tls/", "model", "grafana-password")
ROLES = {"broker", "edge", "edge-armv7", "gateway", "server"}


def instructions(path):
    """(instruction, rest) of a container file, continued lines joined, comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line.strip()]


def of(path, name):
    return [rest for instruction, rest in instructions(path) if instruction == name]


def role(path):
    return path.name.removesuffix(".Containerfile")


def pinned(image):
    name, _, tag = image.rpartition(":")
    return bool(name) and re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?", tag) is not None


def test_there_is_one_for_each_role():
    assert {role(path) for path in CONTAINERS} == ROLES


@pytest.mark.parametrize("path", CONTAINERS, ids=role)
def test_a_container_file_is_pinned_unprivileged_and_without_secrets(path):
    for base in of(path, "FROM"):
        assert pinned(base.split(" ")[0]), base
    assert of(path, "USER")[-1] in ("pollen", "10001:10001")
    assert "10001" in path.read_text(encoding="utf-8")
    names = [instruction for instruction, _ in instructions(path)]
    assert "ADD" not in names
    assert "ARG" not in names, "an argument stands in the image's history"
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    for copied in of(path, "COPY"):
        if copied.startswith("--from=build"):
            continue
        *sources, _ = copied.split(" ")
        for source in sources:
            assert (PROJECT / source).exists(), f"{path.name} copies {source}"
            assert source not in (".", "deploy", "tests"), "only what the role needs, never the whole folder"
    for run in of(path, "RUN"):
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run
        assert "pip install" not in run or "--no-cache-dir" in run


@pytest.mark.parametrize("path", [path for path in CONTAINERS if role(path) != "broker"], ids=role)
def test_a_container_file_installs_an_extra_and_a_script_that_exist(path):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r'"\.\[([a-z,-]+)\]"', path.read_text(encoding="utf-8"))[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    script = yaml.safe_load(of(path, "ENTRYPOINT")[0])[0]
    target = project["scripts"][script.removeprefix("/opt/pollen/bin/")]
    package = target.partition(".")[0]
    assert {package, "pollen"} <= {copied.split(" ")[0] for copied in of(path, "COPY")}


def test_every_service_is_pinned_confined_bounded_and_comes_back():
    assert set(SERVICES) == {"broker", "server", "gateway-1", "prometheus", "grafana"}
    for name, service in SERVICES.items():
        assert pinned(service["image"]), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["restart"] == "unless-stopped", name
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert "privileged" not in service
        for port in service.get("ports", []):
            assert port == "8883:8883" or port.startswith("127.0.0.1:"), f"{name} publishes {port}"
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert how["condition"] in ("service_healthy", "service_started")
        assert set(service["networks"]) <= set(FILE["networks"])


def test_every_path_that_is_mounted_is_there_or_named_as_to_be_made():
    head = (COMPOSE / "compose.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
    mounted = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    hosts = [volume.split(":") for volume in mounted]
    for source, target, *options in hosts:
        if not source.startswith("."):
            assert source in FILE["volumes"], source
            continue
        assert options == ["ro"], f"{source} on {target} can be written"
        relative = source.removeprefix("./")
        assert (COMPOSE / source).exists() or relative in TO_BE_MADE, source
    for name, secret in FILE["secrets"].items():
        relative = secret["file"].removeprefix("./")
        assert relative.startswith(TO_BE_MADE), name
        assert Path(relative).name in head, f"{relative} is not named at the top"
    for name, service in SERVICES.items():
        assert set(service.get("secrets", [])) <= set(FILE["secrets"]), name
    for made in TO_BE_MADE:
        assert made in head


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_built_from_a_container_file_and_runs_what_is_in_it(name):
    build = OURS[name]["build"]
    assert (COMPOSE / build["context"]).resolve() == PROJECT
    container = PROJECT / build["dockerfile"]
    assert container in CONTAINERS
    command = OURS[name].get("command") or yaml.safe_load(of(container, "CMD")[0])
    file = Path(command[1])
    assert command[0] in ("--config", "-c")
    assert any(file.is_relative_to(volume.split(":")[1]) for volume in OURS[name]["volumes"]), (
        f"{file} is in no folder that is mounted"
    )
    expected = OURS[name]["healthcheck"]["test"][1:]
    for check in of(container, "HEALTHCHECK"):
        assert yaml.safe_load(check.partition("CMD ")[2]) == expected, "the same in both"


@pytest.mark.parametrize(("module", "name"), [("gateway.command", "gateway-1"), ("server.command", "server")])
def test_the_settings_load(module, name):
    file = COMPOSE / "settings" / f"{name}.toml"
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", file, "--show-config"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def loaded():
    folder = COMPOSE / "settings"
    return settings.load(Gateway, folder / "gateway-1.toml"), settings.load(Settings, folder / "server.toml")


def test_ports_names_and_files_agree():
    gateway, server = loaded()
    assert gateway.fleet == server.fleet
    # Who dials whom, in networks that both are in.
    dialled = [("gateway-1", gateway.broker.host), ("gateway-1", gateway.server.host), ("prometheus", "server")]
    for one, other in [*dialled, ("prometheus", "gateway-1"), ("grafana", "prometheus")]:
        assert set(SERVICES[one]["networks"]) & set(SERVICES[other]["networks"]), f"{one} can't reach {other}"
    assert gateway.server.port == server.listen.port
    assert SERVICES["broker"]["ports"] == [f"{gateway.broker.port}:{gateway.broker.port}"]
    for name, http in (("gateway-1", gateway.http), ("server", server.http)):
        assert name in http.names
        assert f"127.0.0.1:{http.port}/healthz" in " ".join(SERVICES[name]["healthcheck"]["test"])
        target = "pollen-gateway.yml" if name == "gateway-1" else "pollen-server.yml"
        targets = yaml.safe_load((COMPOSE / "targets" / target).read_text(encoding="utf-8"))
        assert targets == [{"targets": [f"{name}:{http.port}"]}]
        assert (PROJECT / "deploy" / "prometheus" / "targets" / target).exists()
    for name, own in (("gateway-1", gateway.broker), ("gateway-1", gateway.server), ("server", server.listen)):
        for file in (own.ca, own.certificate, own.key):
            assert str(file.parent) == "/run/secrets"
            assert file.name in SERVICES[name]["secrets"]
    for published in SERVICES["server"]["ports"]:
        assert published.endswith(f":{server.http.port}")
    assert str(server.bundle) == "/srv/model/model.bundle"
    for container, port in (
        ("gateway", gateway.http.port),
        ("server", server.http.port),
        ("server", server.listen.port),
    ):
        exposed = of(PROJECT / "deploy" / "containers" / f"{container}.Containerfile", "EXPOSE")[0]
        assert str(port) in exposed.split()


def test_state_is_kept_in_volumes_where_the_settings_have_it():
    _, server = loaded()
    assert f"server-state:{server.state_dir}" in SERVICES["server"]["volumes"]
    assert str(server.state_dir) in of(PROJECT / "deploy" / "containers" / "server.Containerfile", "VOLUME")[0]
    assert "broker-state:/var/lib/mosquitto" in SERVICES["broker"]["volumes"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["gateway", "edge", "server"])
def test_what_a_container_file_copies_and_installs_runs(name, tmp_path):
    path = PROJECT / "deploy" / "containers" / f"{name}.Containerfile"
    source = tmp_path / "src"
    source.mkdir()
    for copied in of(path, "COPY"):
        for one in copied.split(" ")[:-1]:
            if (PROJECT / one).is_dir():
                shutil.copytree(PROJECT / one, source / one, ignore=shutil.ignore_patterns("__pycache__"))
            elif (PROJECT / one).is_file():
                shutil.copy(PROJECT / one, source)
    (run,) = [run for run in of(path, "RUN") if "pip install" in run]
    target = tmp_path / "pollen"
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    for command in run.replace("/opt/pollen", str(target)).split("&&"):
        done = subprocess.run(
            shlex.split(command), cwd=source, env=environment, capture_output=True, text=True, check=False
        )
        if "Temporary failure in name resolution" in done.stderr:
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr
    script = yaml.safe_load(of(path, "ENTRYPOINT")[0])[0].replace("/opt/pollen", str(target))
    for option in ("--help", "--version"):
        done = subprocess.run(
            [script, option], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    checked = subprocess.run([target / "bin" / "pip", "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
