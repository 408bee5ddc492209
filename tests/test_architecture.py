"""Who may import whom (architecture.md), and how files are named and how long they are."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pollen", "edge_client", "gateway", "server", "firmware_scripts")
LONGEST = 400

# What a part may import besides the standard library: of this project, and of others. The longest prefix counts.
OWN: dict[str, set[str]] = {
    "pollen": {"pollen"},
    "pollen.compiler": {"pollen"},
    "pollen.demo": {"pollen"},
    "pollen.http_service": {"pollen"},
    "edge_client": {"edge_client", "pollen"},
    "gateway": {"gateway", "pollen"},
    "server": {"server", "pollen"},
    "firmware_scripts": {"firmware_scripts", "pollen"},
}
FOREIGN: dict[str, set[str]] = {
    "pollen": {"cbor2", "cryptography", "numpy", "ai_edge_litert", "tflite_runtime"},
    "pollen.compiler": {"cbor2", "numpy", "keras", "tensorflow", "ai_edge_litert"},
    "pollen.demo": {"numpy", "rich", "psutil", "paho", "matplotlib"},
    "edge_client": {"numpy", "paho", "psutil", "serial", "smbus2"},
    "pollen.http_service": {"h11", "uvicorn"},
    "gateway": {"grpc", "paho", "prometheus_client", "starlette"},
    "server": {"cryptography", "flwr", "grpc", "matplotlib", "numpy", "prometheus_client", "starlette"},
    "firmware_scripts": {"cryptography"},
}
# Keras is the user's language for models: only where a model is made or compiled, and only when that is asked for.
LATE: dict[str, set[str]] = {"pollen.demo": {"keras", "tensorflow"}}
COMPILES_LATE = {"server.model_command"}  # `pollen model export -o model.keras`
# A word that says nothing about what is in the file.
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "stuff"}
FLOWERS_OWN_NAME = {"client_manager"}  # its class stands where Flower's ClientManager does


def modules() -> list[Path]:
    return sorted(
        path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts
    )


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    return max((part for part in OWN if module == part or module.startswith(part + ".")), key=len)


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(module, whether it is imported when the file is, line) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(inner)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                # `from pollen import compiler` may name a module.
                yield f"{node.module}.{alias.name}", id(node) not in late, node.lineno


def wrong_imports(path: Path) -> list[str]:
    module = name_of(path)
    part = part_of(module)
    wrong = []
    for imported, early, line in imports(path):
        top = imported.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        allowed = OWN[part] | FOREIGN[part] | (set() if early else LATE.get(part, set()))
        if top not in allowed:
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {imported}")
        compiler = imported == "pollen.compiler" or imported.startswith("pollen.compiler.")
        if compiler and part != "pollen.compiler" and (early or module not in COMPILES_LATE):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {imported}: only the compiler may")
        if part == "pollen" and imported.startswith("pollen.demo"):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {imported}: the demo is on top of pollen")
    return wrong


def test_all_packages_are_looked_at() -> None:
    found = {name_of(path).partition(".")[0] for path in modules()}
    assert found == set(PACKAGES)
    assert len(modules()) > 60


def test_nobody_imports_what_is_not_theirs() -> None:
    assert [line for path in modules() for line in wrong_imports(path)] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("edge_client.agent", "import flwr"),
        ("edge_client.agent", "from grpc import aio"),
        ("edge_client.agent", "from pollen import compiler"),
        ("edge_client.agent", "def f():\n    import tensorflow"),
        ("gateway.intake", "import server.store"),
        ("gateway.intake", "from edge_client.network.outbox import Outbox"),
        ("pollen.cbor", "from pollen.demo.fleet import Fleet"),
        ("pollen.cbor", "import tensorflow as tf"),
        ("pollen.demo.models", "import keras"),
        ("server.store", "import tensorflow"),
        ("server.store", "def f():\n    from pollen.compiler import export"),
        ("server.model_command", "from pollen.compiler import export"),
        ("server.store", "from gateway import settings"),
    ],
)
def test_a_forbidden_import_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert wrong_imports(path) != []


CLOSURES = {
    "edge_client.agent": {
        *("flwr", "tensorflow", "keras", "grpc", "gateway", "server", "pollen.compiler", "matplotlib"),
        *("uvicorn", "starlette", "prometheus_client", "cryptography"),
    },
    "gateway.bridge_loop": {"flwr", "tensorflow", "keras", "edge_client", "server", "pollen.compiler", "numpy.testing"},
    "server.command": {"tensorflow", "keras", "edge_client", "gateway", "pollen.compiler", "ray"},
    "pollen.messages": {"flwr", "tensorflow", "keras", "grpc", "paho", "edge_client", "gateway", "server"},
    "pollen.demo.command": {"flwr", "tensorflow", "keras", "edge_client", "gateway", "server", "pollen.compiler"},
}


@pytest.mark.parametrize("module", CLOSURES)
def test_the_import_closure_of_a_role_stays_small(module: str) -> None:
    """What Python really loads, in a process of its own: an innocent library may drag in another one."""
    import subprocess

    script = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded & CLOSURES[module] == set()


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_file_and_class_has_a_name_that_says_what_it_is() -> None:
    empty = []
    for path in modules():
        words = set(re.split(r"[^a-z]+", path.stem.lower()))
        if words & EMPTY_WORDS and path.stem not in FLOWERS_OWN_NAME:
            empty.append(str(path.relative_to(ROOT)))
        classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        empty += [f"{path.relative_to(ROOT)}: {name}" for name in classes if re.search(r"(Util|Helper)s?$|Misc$", name)]
    assert empty == []


def test_every_file_says_in_its_first_line_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_nothing_is_left_to_do_and_nothing_unpickled() -> None:
    found = []
    for path in modules():
        text = path.read_text()
        found += [f"{path.relative_to(ROOT)}: {word}" for word in ("TODO", "FIXME", "XXX") if word in text]
        found += [f"{path.relative_to(ROOT)}: {name}" for name, _, _ in imports(path) if name.split(".")[0] == "pickle"]
    assert found == []
