"""The form of the tree, held by small checks. Each rule carries a text that breaks it, and is tried on that first."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LARGE_FILE_BYTES = 256 * 1024
MAX_LARGE_BYTES = 16 * 1024 * 1024
PYTHON = re.compile(r"(src|tests|benchmarks|examples)/.*\.py")
SOURCE = re.compile(r"src/.*\.py")
ANY = re.compile(r".*")
#: the one that lets a pickle build arrays and nothing else, and its tests, which write hostile ones
RESTRICTED_READER = r"(src/lwm|tests)/weights/(test_)?vqgan_pickle\.py"


def tracked() -> list[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def long_files(text: str) -> Iterator[str]:
    lines = len(text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines, over {MAX_FILE_LINES}"


def long_functions(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {lines} lines, over {MAX_FUNCTION_LINES}"


def axis_names(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value in ("dp", "fsdp", "tp", "sp"):
            yield f"{node.lineno}: spells the mesh axis {node.value!r}"


def prints(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "print":
            yield f"{node.lineno}: prints"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"):
            yield f"{node.lineno}: writes to the terminal"


def unsafe(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield f"{node.lineno}: {node.id}"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            yield f"{node.lineno}: runs a stranger's code"


def unpickles(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {name.split(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "marshal"}:
                yield f"{node.lineno}: unpickles"


def foreign_formats(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {name.split(".")[0] for name in names} & {"safetensors", "msgpack"}:
                yield f"{node.lineno}: reads a weight format"


def undocumented(text: str) -> Iterator[str]:
    for node in ast.parse(text).body:
        named = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        if named and not node.name.startswith("_") and ast.get_docstring(node) is None:
            yield f"{node.lineno}: {node.name} has no docstring"


def machine_paths(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"(?<![\w.~/])/(work|root|home|tmp|Users)/", line):
            yield f"{number}: a path of one machine"


@dataclass(frozen=True)
class Rule:
    """Faults of one file's text; the paths it covers and the homes that are exempt; a text that breaks it."""

    faults: Callable[[str], Iterator[str]]
    breaks: str
    covers: re.Pattern[str] = PYTHON
    home: str = "nowhere"


RULES = [
    Rule(long_files, "x = 1\n" * (MAX_FILE_LINES + 1)),
    Rule(long_functions, "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    Rule(axis_names, "jax.lax.psum(x, 'sp')", SOURCE, "src/lwm/core/mesh.py"),
    Rule(prints, "print('step', 3)", SOURCE, r"src/lwm/(cli/\w+|train/metrics)\.py"),
    Rule(prints, "console.print(table)", SOURCE, r"src/lwm/(cli/\w+|train/metrics)\.py"),
    Rule(prints, "import sys\nsys.stderr.write('step')", SOURCE, r"src/lwm/(cli/\w+|train/metrics)\.py"),
    Rule(unpickles, "import pickle", home=RESTRICTED_READER),
    Rule(unpickles, "from dill import loads", home=RESTRICTED_READER),
    Rule(unsafe, "eval(text)"),
    Rule(unsafe, "load(name, trust_remote_code=True)"),
    Rule(foreign_formats, "from safetensors.numpy import load_file", SOURCE, "src/lwm/weights/.*"),
    Rule(undocumented, "def load():\n    return 1", SOURCE),
    Rule(undocumented, "class Model:\n    pass", SOURCE),
    Rule(machine_paths, "cache = '" + "/ho" + "me/ann/cache'", ANY),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.faults.__name__}-{rule.breaks[:24]!r}")
def test_each_rule_catches_what_it_forbids(rule: Rule) -> None:
    assert list(rule.faults(rule.breaks))
    assert not list(rule.faults('"""What it is for."""\n\nscale = 2 * width\n'))


def test_every_file_obeys_every_rule() -> None:
    faults = []
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        covered = {rule.faults: rule for rule in RULES if rule.covers.fullmatch(name)}
        for rule in covered.values():
            if not re.fullmatch(rule.home, name):
                faults += [f"{name}:{fault}" for fault in rule.faults(text)]
    assert not faults, "\n".join(faults)


def test_no_file_is_a_drawer_for_everything() -> None:
    assert not [path for path in tracked() if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_large_files_stay_small_together() -> None:
    sizes = {path: path.stat().st_size for path in tracked()}
    large = {path: size for path, size in sizes.items() if size > LARGE_FILE_BYTES}
    assert sum(large.values()) < MAX_LARGE_BYTES, large


def test_the_readme_promises_two_commands_and_ci_runs_the_second() -> None:
    commands = re.findall(r"^python -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("lwm demo")
    assert commands[1].endswith("-m pytest")
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).with_name("lint-imports")
    command = [linter, "--config", config, "--no-cache"]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)


def test_imports_only_go_down() -> None:
    outcome = lint_imports(ROOT / "pyproject.toml")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_an_import_that_goes_up_is_caught(tmp_path: Path) -> None:
    upside_down = tmp_path / "importlinter.toml"
    upside_down.write_text(
        '[tool.importlinter]\nroot_package = "lwm"\n[[tool.importlinter.contracts]]\n'
        'name = "upside down"\ntype = "layers"\nlayers = ["lwm.core", "lwm.data"]\n'
    )
    outcome = lint_imports(upside_down)
    assert outcome.returncode == 1
    assert "lwm.data" in outcome.stdout
