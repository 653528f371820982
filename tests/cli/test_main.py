from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bloomery.cli.main import COMMANDS

HELP = [
    *([name] for name in COMMANDS),
    ["quality", "train"],
    ["tokenizer", "train"],
    ["tokenizer", "inspect"],
    ["tokenizer", "pack"],
]  # fmt: skip


def start(*argv, **options):
    command = [sys.executable, "-m", "bloomery", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_usage_lists_every_command(bloomery):
    code, out, _ = bloomery("--help")
    assert code == 0
    assert bloomery()[1] == out
    for name, what in COMMANDS.items():
        assert f"  {name} " in out
        assert what in out
    for line in out.splitlines():
        assert len(line) <= 80


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command, bloomery):
    code, out, err = bloomery(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: bloomery {' '.join(command)}")
    assert "\nExample:\n  bloomery " + command[0] in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    """A field without a docstring would be an option without a word in --help."""
    import ast

    source = Path(importlib.import_module(f"bloomery.cli.{name}").__file__).read_text()
    for cls in [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]:
        if not cls.name.endswith("Options") and cls.name not in ("Sampling", "Where"):
            continue
        for field, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and field.target.id not in ("sampling", "where", "train", "config"):
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert explained, f"{name}: {cls.name}.{field.target.id}"


def test_help_and_listings_import_nothing_heavy():
    heavy = ("torch", "pyarrow", "matplotlib", "numpy", "tokenizers", "aiohttp")
    code = (
        "import sys; from bloomery.cli.main import main\n"
        "main(['--help']); main(['--version']); main(['nonsense'])\n"
        f"print('loaded', [m for m in (*{heavy}, 'tyro', 'rich', 'yaml') if m in sys.modules])\n"
        "main(['systems']); main(['claims']); main(['run', '--help'])\n"
        f"print('loaded', [m for m in {heavy} if m in sys.modules and m != 'numpy'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("loaded")] == ["loaded []"] * 2


def test_unknown_command_names_the_nearest(refused):
    assert refused("tokeniser") == "unknown command 'tokeniser' (did you mean 'tokenizer' or 'convert'?)"


def test_unknown_option_names_the_nearest(refused):
    assert "unknown option '--jsn': did you mean '--json'" in refused("systems", "--jsn")
    assert "'--max_new_token': did you mean '--max-new-tokens'" in refused("generate", "x", "--max_new_token", 3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("convert", "a"), "missing from bloomery convert: TARGET"),
        (("convert", "a", "b", "c"), "unexpected argument 'c'"),
        (("convert", "a", "b", "--dtype", "int3"), "invalid choice 'int3'"),
        (("generate", "a", "--top-k", "x"), "--top-k: invalid literal"),
        (("systems", "--stage"), "Missing value for argument '--stage'".lower()),
        (("systems", "--stage", "nowhere"), "no system of stage 'nowhere'"),
        (("run",), "which system?"),
        (("run", "nowhere"), "unknown system 'nowhere'"),
        (("tokenizer",), "which command?"),
        (("tokenizer", "trian"), "did you mean 'train'?"),
    ],
)
def test_bad_arguments_give_one_line(argv, message, refused):
    assert message.lower() in refused(*argv).lower()


def test_python_m_and_the_version():
    process = start("--version")
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, "bloomery 0.1.0\n")


def test_ctrl_c_ends_with_130(toy, bloomery):
    code, _, err = bloomery("run", toy, "--end", "ctrl-c", "--quiet")
    assert (code, err) == (130, "bloomery: interrupted\n")


def test_a_real_sigint_ends_with_130_and_keeps_the_folder(toy, tmp_path):
    process = start("run", toy, "--end", "wait", "--out", "out", cwd=tmp_path)
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert (tmp_path / "out" / "stages.json").exists()


def test_a_bug_is_one_line_unless_debugged(toy, bloomery, monkeypatch):
    code, _, err = bloomery("run", toy, "--end", "bug", "--quiet")
    assert code == 1
    assert err == "bloomery: unexpected KeyError: 'missing' (run again with --debug for the traceback)\n"
    with pytest.raises(KeyError):
        bloomery("--debug", "run", toy, "--end", "bug", "--quiet")
    monkeypatch.setenv("BLOOMERY_DEBUG", "1")
    with pytest.raises(KeyError):
        bloomery("run", toy, "--end", "bug", "--quiet")


def test_a_reader_that_went_away_is_no_crash():
    process = start("--help")
    process.stdout.close()
    err = process.stderr.read()
    process.wait()
    assert err == ""
