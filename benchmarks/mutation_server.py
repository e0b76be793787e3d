"""What ``mutation.py`` runs for each room: pytest sessions in which mutants are tried, one a forked process.

A mutant inside functions is put into those that are already imported (their ``__code__``), in a fork of a session that
has collected the tests; any other one (a constant, a default, a class body, a function that imports call) is imported
afresh, in a fork of a process that has loaded the libraries but nothing of this package.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ["-q", "-s", "-x", "-p", "no:cacheprovider", "--assert=plain", "--tb=no", "-m", "not slow"]
OPTIONS += ["-W", "ignore::RuntimeWarning"]
#: A test is stopped after this many times its recorded CPU time, and some seconds.
LIMIT, LIMIT_MORE_S = 10.0, 2.0
#: Tests of a mutant that survives are left out once those before them took this long.
ENOUGH_S = 20.0
#: Tests up to here are quick, and come first.
QUICK_S = 0.3
MEMORY_BYTES = 8 << 30

Item = pytest.Item
Mutant = dict[str, Any]


def prepare() -> None:
    """The same cases of hypothesis on every run, and no time spent on making failures small."""
    from hypothesis import Phase, settings

    phases = [Phase.explicit, Phase.generate]
    settings.register_profile(
        "mutation", derandomize=True, database=None, deadline=None, phases=phases, report_multiple_bugs=False
    )
    settings.load_profile("mutation")


# --- what each test executes


class Recorder:
    """Runs every test with a coverage context of its own."""

    def __init__(self, cover: Any) -> None:
        self.cover = cover

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Item) -> Iterator[None]:
        self.cover.switch_context(item.nodeid)
        yield
        self.cover.switch_context("")


class Clock:
    """Notes the CPU time of every test; coverage would make it three times as long."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Item) -> Iterator[None]:
        began = time.process_time()
        yield
        self.cpu_s[item.nodeid] = time.process_time() - began


def clock(task: dict[str, Any]) -> None:
    """Add each test's CPU time to ``recorded``."""
    watch = Clock()
    if pytest.main([*OPTIONS, *task["tests"]], plugins=[watch]):
        raise SystemExit(f"{task['room']}: tests fail without any change")
    found = json.loads(Path(task["recorded"]).read_text())
    told = f"{len(watch.cpu_s)} tests take {sum(watch.cpu_s.values()):.0f} s of CPU; {found['told']}"
    Path(task["recorded"]).write_text(json.dumps(found | {"cpu_s": watch.cpu_s, "told": told}))


def record(task: dict[str, Any]) -> None:
    """Write ``recorded``: for each file the tests that execute its lines; and the room's branches."""
    import coverage

    folder = ROOT / "simulator" / task["room"]
    cover = coverage.Coverage(data_file=None, branch=True, include=[f"{folder}/*"], config_file=False)
    cover.exclude("if TYPE_CHECKING:")
    cover.start()
    code = pytest.main([*OPTIONS, *task["tests"]], plugins=[Recorder(cover)])
    cover.stop()
    if code:
        raise SystemExit(f"{task['room']}: tests fail without any change")
    lines: dict[str, dict[str, list[str]]] = {}
    data = cover.get_data()
    for file in data.measured_files():
        contexts = data.contexts_by_lineno(file)
        lines[str(Path(file).relative_to(ROOT))] = {str(line): sorted(names) for line, names in contexts.items()}
    branches, missing = branches_of(cover, sorted(folder.rglob("*.py")))
    Path(task["recorded"]).write_text(json.dumps({"lines": lines, "told": branches, "missing": missing}))


def branches_of(cover: Any, files: list[Path]) -> tuple[str, dict[str, str]]:
    """Branches and statements of the files that were taken, in words; what was not, by file."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        cover.json_report(morfs=[str(file) for file in files], outfile=out.name)
        report = json.loads(Path(out.name).read_text())
    total = report["totals"]
    missing = {
        os.path.relpath(name, ROOT): f"lines {found['missing_lines']} branches {found['missing_branches']}"
        for name, found in report["files"].items()
        if found["missing_lines"] or found["missing_branches"]
    }
    branches = 100 * total["covered_branches"] / max(1, total["num_branches"])
    lines = 100 * total["covered_lines"] / max(1, total["num_statements"])
    told = f"{branches:.1f} % of {total['num_branches']} branches"
    told += f", {lines:.1f} % of {total['num_statements']} statements"
    return told, missing


# --- which tests a mutant meets


def span(source: str, line: int) -> range:
    """Lines of the innermost statement around a line; of a compound one, those before its body."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            end = body[0].lineno if isinstance(body, list) and body[0].lineno > line else (node.end_lineno or 0) + 1
            if not (isinstance(body, list) and body[0].lineno <= line):
                best = range(node.lineno, max(end, line + 1))
    return best


class Chooser:
    """Tests of a room by what they execute."""

    def __init__(self, task: dict[str, Any]) -> None:
        found = json.loads(Path(task["recorded"]).read_text())
        self.cpu_s: dict[str, float] = found["cpu_s"]
        self.lines: dict[str, dict[str, list[str]]] = found["lines"]
        self.rank = {file: i for i, file in enumerate(task["tests"])}

    def order(self, name: str) -> tuple[bool, int, float]:
        """Quick tests first; then by the order of files, and by time."""
        slow = self.cpu_s[name] > QUICK_S
        return slow, self.rank.get(name.split("::", maxsplit=1)[0], 0) if slow else 0, self.cpu_s[name]

    def tests(self, mutant: Mutant) -> tuple[list[str], bool]:
        """Tests to run, in order, and whether the mutant must be imported afresh."""
        file, source = mutant["file"], (ROOT / mutant["file"]).read_text()
        own = self.lines.get(file, {})
        contexts = {name for line in span(source, mutant["line"]) for name in own.get(str(line), ())}
        afresh = "" in contexts or not only_functions(source, mutant["mutant"])
        if afresh:
            # what an import made may be used without a line of the file being run: all tests beside those that run one
            beside = {name.split("::")[0] for names in own.values() for name in names}
            contexts = {name for name in self.cpu_s if name.split("::")[0] in beside} or set(self.cpu_s)
        chosen = sorted(contexts - {""}, key=self.order)
        spent, kept = 0.0, []
        for name in chosen:
            spent += self.cpu_s[name]
            if kept and spent > ENOUGH_S:
                break
            kept.append(name)
        return kept, afresh

    def limit_s(self, test: str) -> float:
        """CPU seconds after which a test is stopped."""
        return LIMIT * self.cpu_s.get(test, 1.0) + LIMIT_MORE_S


def parts(code: CodeType) -> list[CodeType]:
    """Code objects directly inside another."""
    return [const for const in code.co_consts if isinstance(const, CodeType)]


def only_functions(source: str, mutant: str) -> bool:
    """Whether the change lies inside functions alone."""
    return bool(changed(compile(source, "f", "exec"), compile(mutant, "f", "exec")))


def changed(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]]:
    """Outermost functions that differ, old and new; empty where something outside functions does."""
    if len(parts(old)) != len(parts(new)) or bare(old) != bare(new):
        return []
    found = []
    for one, other in zip(parts(old), parts(new), strict=True):
        if one == other:
            continue
        if one.co_flags & 0x2:  # a function: its variables are its own (CO_NEWLOCALS); a class body's are not
            found.append((one, other))
        else:
            inside = changed(one, other)
            if not inside:
                return []
            found += inside
    return found


def bare(code: CodeType) -> tuple[Any, ...]:
    """A code object without those inside it."""
    consts = tuple((type(c), repr(c)) for c in code.co_consts if not isinstance(c, CodeType))
    return code.co_code, consts, code.co_names, code.co_varnames


# --- trying a mutant


def attempt(task: Callable[[Callable[[str, str], None]], None], wall_s: float) -> dict[str, Any]:
    """Start ``task`` in a fork; it is given a function that ends the process with a verdict and a test's name."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return {"pid": pid, "pipe": reader, "until": time.monotonic() + wall_s}
    os.close(reader)

    def end(how: str, test: str = "") -> None:
        os.write(writer, json.dumps([how, test]).encode())
        os._exit(0)

    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silence, number)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        task(end)
    except BaseException as problem:
        end("broken", repr(problem)[:200])
    os._exit(0)


class Referee:
    """Ends the process at the first test that fails; each test has its time."""

    def __init__(self, end: Callable[..., None], chooser: Chooser) -> None:
        self.end, self.chooser = end, chooser

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Item) -> Iterator[None]:
        signal.signal(signal.SIGPROF, lambda *_: self.end("time", item.nodeid))
        signal.setitimer(signal.ITIMER_PROF, self.chooser.limit_s(item.nodeid))
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: Item, call: pytest.CallInfo[None]) -> None:
        if call.excinfo and not isinstance(call.excinfo.value, pytest.skip.Exception | pytest.xfail.Exception):
            self.end("fails", item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.end("import", report.nodeid)


class Imported(Referee):
    """A session of its own for one mutant: only the tests that were chosen, in their order."""

    def __init__(self, end: Callable[..., None], chooser: Chooser, chosen: list[str]) -> None:
        super().__init__(end, chooser)
        self.place = {name: i for i, name in enumerate(chosen)}

    def pytest_collection_modifyitems(self, items: list[Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda i: self.place[i.nodeid])


def import_afresh(mutant: Mutant, chosen: list[str], chooser: Chooser, end: Callable[..., None]) -> None:
    """Import the package with the mutant in it, and run the tests."""
    path, usual = str(ROOT / mutant["file"]), SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> CodeType | None:
        if self.path == path:
            return compile(mutant["mutant"], path, "exec", dont_inherit=True)
        return usual(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    signal.signal(signal.SIGPROF, lambda *_: end("time", "import"))
    signal.setitimer(signal.ITIMER_PROF, 60)
    base = tempfile.mkdtemp()
    files = sorted({name.split("::")[0] for name in chosen})
    code = pytest.main([*OPTIONS, f"--basetemp={base}", *files], plugins=[Imported(end, chooser, chosen)])
    end("survived" if code in (0, 5) else "fails", f"pytest {code}")


class Server:
    """A pytest session that has collected the tests and forks for each mutant."""

    def __init__(self, pool: Pool, todo: list[tuple[Mutant, list[str]]], chooser: Chooser) -> None:
        self.pool, self.todo, self.chooser = pool, todo, chooser

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions: dict[str, list[FunctionType]] = {}
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType):
                functions.setdefault(thing.__code__.co_filename, []).append(thing)
        gc.freeze()

        def run(mutant: Mutant, chosen: list[str], end: Callable[..., None]) -> None:
            patch(mutant, functions)
            session.config._tmp_path_factory._basetemp = Path(tempfile.mkdtemp())  # type: ignore[attr-defined]
            session.config.pluginmanager.register(Referee(end, self.chooser))
            todo = [items[name] for name in chosen]
            for item, following in zip(todo, [*todo[1:], None], strict=True):
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            end("survived")

        for mutant, chosen in self.todo:
            self.pool.start(mutant, chosen, lambda end, m=mutant, c=chosen: run(m, c, end))
        self.pool.wait(0)
        return True


def patch(mutant: Mutant, functions: dict[str, list[FunctionType]]) -> None:
    """Give the functions that the mutant changes their new code."""
    path = str(ROOT / mutant["file"])
    source = (ROOT / mutant["file"]).read_text()
    done = 0
    for old, new in changed(compile(source, path, "exec"), compile(mutant["mutant"], path, "exec")):
        for function in functions.get(path, []):
            code = function.__code__
            if (code.co_qualname, code.co_firstlineno) == (old.co_qualname, old.co_firstlineno):
                function.__code__ = new
                done += 1
    if not done:
        raise LookupError(f"{mutant['key']}: no function to patch")


class Pool:
    """Mutants under way, ``jobs`` at a time; outcomes are appended to a file."""

    def __init__(self, task: dict[str, Any], chooser: Chooser) -> None:
        self.jobs, self.out, self.room, self.chooser = task["jobs"], Path(task["out"]), task["room"], chooser
        self.running: list[dict[str, Any]] = []

    def start(self, mutant: Mutant, chosen: list[str], task: Callable[..., None]) -> None:
        """Start one as soon as there is room."""
        self.wait(self.jobs - 1)
        wall_s = 10 * sum(map(self.chooser.limit_s, chosen)) + 120
        self.running.append(attempt(task, wall_s) | {"mutant": mutant, "chosen": chosen})

    def wait(self, most: int) -> None:
        """Return when no more than ``most`` are under way."""
        while len(self.running) > most:
            for one in list(self.running):
                pid, status, usage = os.wait4(one["pid"], os.WNOHANG)
                if pid:
                    self.running.remove(one)
                    self.note(one, status, usage.ru_utime + usage.ru_stime)
                elif time.monotonic() > one["until"]:
                    os.kill(one["pid"], signal.SIGKILL)
            time.sleep(0.005)

    def note(self, one: dict[str, Any], status: int, cpu_s: float) -> None:
        """Write an outcome down; a process that a signal ended was over its limits."""
        with os.fdopen(one["pipe"]) as pipe:
            words = pipe.read()
        how, test = json.loads(words) if words else ("time" if os.WIFSIGNALED(status) else "broken", str(status))
        if how == "broken":
            raise SystemExit(f"{one['mutant']['key']}: {test}")
        self.write(one["mutant"], how, test, cpu_s)

    def write(self, mutant: Mutant, how: str, test: str, cpu_s: float) -> None:
        """Append a row."""
        known = {"room": self.room, "key": mutant["key"], "killed": how in ("fails", "time", "import"), "how": how}
        with self.out.open("a") as out:
            row = known | {"by": test, "cpu_s": round(cpu_s, 2), "change": mutant["change"]}
            out.write(json.dumps(row) + "\n")


def load_libraries() -> None:
    """Everything slow to import that is not of this package."""
    for name in ("hypothesis.strategies", "matplotlib", "numba.experimental", "pandas", "pyarrow.parquet", "pydantic"):
        importlib.import_module(name)
    for name in ("scipy.special", "scipy.stats", "yaml"):
        importlib.import_module(name)


def try_mutants(task: dict[str, Any]) -> None:
    """Try them all: first those that are imported, then those that are patched."""
    chooser = Chooser(task)
    pool, inside = Pool(task, chooser), []
    load_libraries()
    for mutant in task["mutants"]:
        chosen, afresh = chooser.tests(mutant)
        if not chosen:
            pool.write(mutant, "not covered", "", 0.0)
        elif afresh:
            pool.start(mutant, chosen, lambda end, m=mutant, c=chosen: import_afresh(m, c, chooser, end))
        else:
            inside.append((mutant, chosen))
    pool.wait(0)
    if inside:
        pytest.main([*OPTIONS, *task["tests"]], plugins=[Server(pool, inside, chooser)])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    given = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        prepare()
        {"record": record, "clock": clock, "try": try_mutants}[given["do"]](given)
