"""``gitbench init``: a defense, its test and the options of a run, to begin with. It never overwrites a file."""

from __future__ import annotations

import shlex
import tomllib
from importlib import resources
from pathlib import Path

from gitbench.core.errors import ConfigError

DEFENSE_FILE = "my_defense.py"
TEST_FILE = "tests/test_my_defense.py"
OPTIONS_FILE = "pyproject.toml"
_SPEC = f"{DEFENSE_FILE}:MyDefense"


def scaffold(folder: Path, *, kind: str = "image") -> list[str]:
    """Write what is missing, leave alone what is there, and tell both.

    Args:
        folder: where to; made if need be.
        kind: of the data that the defense is tried on: a modality that has templates.

    Returns:
        Lines for people: what was written, what was left alone, what to do next.

    Raises:
        ConfigError: the folder cannot be written to, or its pyproject.toml is no TOML. Nothing is written then.
    """
    options, tables, defense = folder / OPTIONS_FILE, _template("gitbench.toml", kind), _template("my_defense.py", kind)
    try:
        # Read before anything is written: a damaged file is found while nothing has been done yet.
        present = _tables(options)
        lines = [_written(folder, DEFENSE_FILE, defense), _written(folder, TEST_FILE, _template("test_my_defense.py", kind))]
        if present is None:
            lines.append(_written(folder, OPTIONS_FILE, _template("pytest.toml", kind) + "\n" + tables))
        elif "gitbench" in present:
            named = _SPEC in str(present["gitbench"])
            lines.append(
                f"left alone {options}: it has a [tool.gitbench] already{'' if named else f'; for the new defense: {_explicitly()}'}"
            )
        else:
            lines.append(_appended(options, tables))
    except OSError as error:
        raise ConfigError(f"Cannot write to {folder}: {error}. Choose another folder: gitbench init DIR.") from None
    return [*lines, "", *_next(folder)]


def _tables(options: Path) -> dict[str, object] | None:
    """The tables under ``[tool]``, or None where there is no file."""
    try:
        content = tomllib.loads(options.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"Cannot read {options}: {error}. Nothing was written: mend the file, or choose another folder.") from None
    tool = content.get("tool", {})
    return dict(tool) if isinstance(tool, dict) else {"gitbench": tool}


def _written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return f"left alone {path}: it is there already"
    return f"wrote {path}"


def _appended(options: Path, tables: str) -> str:
    before = options.read_bytes()
    newline = b"\r\n" if b"\r\n" in before else b"\n"
    gap = newline if before.endswith(b"\n") or not before else 2 * newline
    added = gap + tables.encode().replace(b"\n", newline)
    try:
        tomllib.loads((before + added).decode())
    except tomllib.TOMLDecodeError as error:  # for example tool = {...} in one line, which cannot be added to
        return f"left alone {options}: [tool.gitbench] cannot be appended to it ({error}); for the new defense: {_explicitly()}"
    with options.open("ab") as file:
        file.write(added)
    return f"appended [tool.gitbench] to {options}"


def _explicitly() -> str:
    return f"pytest --gitbench --gitbench-defense none --gitbench-defense {_SPEC}"


def _next(folder: Path) -> list[str]:
    commands = {
        "pytest --gitbench": f"attack the defense in {DEFENSE_FILE}; a minute or two",
        "pytest": "run your own tests, the new one among them; what is measured already is taken from .gitbench",
    }
    if folder.resolve() != Path.cwd():
        commands = {f"cd {shlex.quote(str(folder))}": "options and paths are read from the folder that you are in", **commands}
    width = max(map(len, commands))
    return ["next:", *(f"  {command:{width}}  {text}" for command, text in commands.items())]


def _template(name: str, kind: str) -> str:
    """A template of a kind of data, or the one that serves all."""
    # Not .py: these are no modules of ours.
    folder = resources.files("gitbench.publish").joinpath("init")
    own = folder.joinpath(kind, f"{name}.txt")
    return (own if own.is_file() else folder.joinpath(f"{name}.txt")).read_text(encoding="utf-8")
