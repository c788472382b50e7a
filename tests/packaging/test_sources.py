"""Rules that hold for each source file: nothing that runs code from data, readable size, ASCII."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.project import ROOT, python_files, text_files

MAX_LINES, MAX_FUNCTION_LINES = 400, 60

MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load",
    "torch.save",
    "jit.load",
    "os.system",
    "os.popen",
    "os.spawnl",
    "tempfile.mktemp",
}
METHODS = {"extractall", "exec_module", "load_module", "unsafe_load"}
OBJECT_COLLECTIVES = {
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
}
FORBIDDEN_TRUE = {"shell", "trust_remote_code", "allow_pickle"}

ALLOWED: dict[str, dict[str, str]] = {
    "flowalign/user_code.py": {"exec_module": "imports what --allow-code named, and only that"},
    "tests/pipelines/test_load.py": {"torch.save": "plants a file that must be refused"},
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of names, the last parts of any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def bad_call(node: ast.Call) -> Iterator[str]:
    """Names of the rules that a call breaks."""
    name = dotted(node.func)
    last, last_two = name.rpartition(".")[2], ".".join(name.split(".")[-2:])
    keywords = {k.arg: k.value for k in node.keywords}
    if isinstance(node.func, ast.Name) and name in BUILTINS:
        yield name
    if last_two in CALLS:
        yield last_two
    if last in METHODS:
        yield last
    if last in OBJECT_COLLECTIVES and not is_constant(keywords.get("weights_only"), True):
        yield last
    if name.startswith(("requests.", "urllib.request.urlopen")) and "timeout" not in keywords:
        yield "no timeout"
    if "custom_pipeline" in keywords:
        yield "custom_pipeline"
    for keyword in FORBIDDEN_TRUE & keywords.keys():
        if not is_constant(keywords[keyword], False):
            yield keyword


def findings(source: str) -> list[tuple[int, str]]:
    """(line, rule) for each use of something that could run code from data."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [(node.lineno, n) for n in names if n.split(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            found += [(node.lineno, rule) for rule in bad_call(node)]
        elif isinstance(node, ast.Constant) and node.value == ".".join("0000"):
            found.append((node.lineno, "listens everywhere"))
    return found


def test_no_source_can_run_code_from_data() -> None:
    bad, used = [], set()
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        for line, rule in findings(path.read_text()):
            if rule in ALLOWED.get(name, {}):
                used.add((name, rule))
            else:
                bad.append(f"{name}:{line}: {rule}")
    assert not bad, "\n".join(bad)
    assert used == {(name, rule) for name, rules in ALLOWED.items() for rule in rules}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "torch.load(path, weights_only=False)",
        "torch.jit.load(path)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "DiffusionPipeline.from_pretrained(name, custom_pipeline='x')",
        "tar.extractall(folder)",
        "requests.get(url)",
        "urllib.request.urlopen(url)",
        "host = '0.0.0.0'",
        "dist.all_gather_object(out, value)",
        "spec.loader.exec_module(module)",
    ],
)
def test_the_gate_sees(source: str) -> None:
    """Negative control: each forbidden form is found, so an empty list means something."""
    assert findings(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile(text)",
        "torch.compile(model)",
        "subprocess.run([name], shell=False)",
        "requests.get(url, timeout=5)",
        "dist.all_gather_object(out, value, weights_only=True)",
        "np.load(path, allow_pickle=False)",
    ],
)
def test_the_gate_lets_pass(source: str) -> None:
    assert not findings(source)


def test_files_and_functions_are_short() -> None:
    long = []
    for path in python_files():
        name, source = path.relative_to(ROOT).as_posix(), path.read_text()
        if source.count("\n") > MAX_LINES:
            long.append(f"{name}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_sources_are_ascii() -> None:
    bad = [p.relative_to(ROOT).as_posix() for p in text_files() if not p.read_bytes().isascii()]
    assert not bad, bad


def test_no_file_names_a_machine() -> None:
    """Paths of one machine or one package host in a file are a mistake everywhere else."""
    folders = ("work", "opt", "root", "home", "Users")
    needles = [f"{quote}/{f}/" for f in folders for quote in ("'", '"', "`", " ", "=", "(")]
    needles += ["extra-" + "index-url", "find-" + "links", "trusted-" + "host"]
    bad = []
    for path in text_files():
        text = path.read_text()
        bad += [f"{path.relative_to(ROOT)}: {needle}" for needle in needles if needle in text]
    assert not bad, "\n".join(bad)
