"""Nothing that a user or a file says is run: no `eval`, no pickle, no shell; what reaches a task's script is checked or encoded before."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py")) + sorted(p for p in (ROOT / "bin").iterdir() if p.is_file() and b"python" in p.read_bytes()[:40])
MODULES = sorted((ROOT / "modules").glob("*/main.nf"))
RUNS_CODE = {"eval", "exec", "compile", "__import__", "execfile"}
UNPICKLES = re.compile(r"^(c?pickle|dill|joblib|shelve|marshal|cloudpickle)\.(load|loads|Unpickler|open)$")
SHELLS = re.compile(r"^(os\.(system|popen|spawn\w*)|commands\.\w+|subprocess\.(getoutput|getstatusoutput))$")


def name_of(node: ast.expr) -> str:
    """`a.b.c` of an attribute, "" of what has no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


def faults_of(tree: ast.AST) -> list[str]:
    """What a source should not do, with its line."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = name_of(call.func)
        given = {k.arg: k.value for k in call.keywords}

        def says(option: str, value: object, given: dict = given) -> bool:
            return isinstance(given.get(option), ast.Constant) and given[option].value is value

        wrong = name in RUNS_CODE or bool(UNPICKLES.match(name)) or bool(SHELLS.match(name))
        wrong |= "shell" in given and not says("shell", False)
        wrong |= name == "torch.load" and not says("weights_only", True)
        wrong |= "allow_pickle" in given and not says("allow_pickle", False)  # numpy's own default
        wrong |= name in ("pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
        if wrong:
            found.append(f"line {call.lineno}: {ast.unparse(call)[:100]}")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_code_comes_from_data(source):
    assert faults_of(ast.parse(source.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "pickle.loads(b)",
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
        "os.system(c)",
        "subprocess.run(c, shell=True)",
        "yaml.load(t)",
    ],
)
def test_the_scan_sees(line):
    assert len(faults_of(ast.parse(line))) == 1


def test_pages_escape_by_default():
    for source in (ROOT / "src").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)):
            if name_of(call.func).endswith("Environment"):
                options = {k.arg: ast.unparse(k.value) for k in call.keywords}
                assert options.get("autoescape", "False") != "False", source


PATTERNED = {"nucleus_stain", "membrane_stains", "z_planes", "fovs", "pixel_size_um", "sample", "platform"}


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.parent.name)
def test_scripts_hold_only_what_was_checked(module):
    """Every value in a script is a name that a pattern or `stageAs` bounds; no parameter of the user stands there itself."""
    text = module.read_text()
    script = text.split("script:")[1].split("stub:")[0]
    assert not re.search(r"params[.](?!json)", script), "parameters reach scripts through ext.args, quoted and checked"
    body = "".join(re.findall(r'"""(.*?)"""', script, re.S))
    assert not re.search(r"\beval\b|\bsh -c\b|\bbash -c\b|`", body)
    inputs = text.split("input:")[1].split("output:")[0]
    paths = re.findall(r"\bpath[( ]\s*(\w+)([^)\n]*)", inputs)
    assert all("stageAs" in rest for name, rest in paths), "a file's own name never becomes part of a command"


def test_patterns_leave_nothing_to_a_shell():
    """What Nextflow puts into scripts between quotes: parameters of text and columns of the samplesheet."""
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    rules = {name: rule for group in schema["$defs"].values() for name, rule in group["properties"].items()}
    rules |= json.loads((ROOT / "assets" / "schema_input.json").read_text())["items"]["properties"]
    arguments = "".join((ROOT / "conf" / "modules.config").read_text())
    used = set(re.findall(r"params\.(\w+)", arguments)) & set(rules) | PATTERNED
    for name in sorted(used):
        rule = rules[name]
        if rule["type"] != "string" or "enum" in rule or "items" in rule or rule.get("format") or name in ("outdir", "nuclei_weights", "cyto_weights"):
            continue
        assert "pattern" in rule, f"{name}: any text would reach a script"
        for evil in ("'", "a'b", "$(touch x)'", "`id`", 'a"b', "a;b", "a\nb", "a\\"):
            if re.search(rule["pattern"], evil):
                assert not set(evil) & set("'\n\\"), f"{name}: {evil!r} ends the quotes around it"
