"""The marker and the `gitbench_evaluate` fixture in somebody else's test suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import run_project

pytestmark = pytest.mark.usefixtures("warm")

DEFENSES = """
import gitbench

class Noise(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor + gitbench.randn_like(tensor, generator))

class Scaled(gitbench.Defense):
    def __init__(self, *, scale: float = 0.5):
        self.scale = scale

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * self.scale)

class Broken(gitbench.Defense):
    def protect(self, update, *, generator):
        raise RuntimeError("my bad")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, tiny_npz: Path) -> pytest.Pytester:
    """A project of 8x8 images, mlp and ridge."""
    pytester.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        addopts = ["--strict-markers", "-p", "no:cacheprovider"]
        pythonpath = ["."]
        [tool.gitbench]
        dataset = "npz(path={str(tiny_npz)!r})"
        model = ["mlp(hidden=(24,))"]
        attack = ["ridge"]
        victims = 12
        """
    )
    pytester.makepyfile(defenses=DEFENSES)
    return pytester


def run(suite: pytest.Pytester, test: str, *arguments: str) -> pytest.RunResult:
    suite.makepyfile(test_mine="import pytest\nfrom defenses import Noise, Scaled, Broken\n" + test)
    return run_project(suite, *arguments)


LEAKING = """
@pytest.mark.gitbench(attacks=["ridge", "ig(iterations=3)"])
def test_it_holds(gitbench_evaluate):
    report = gitbench_evaluate(Scaled(scale=0.5))
    assert report.verdict == "holds", report
"""


@pytest.mark.parametrize("extra", [(), ("-n", "2")], ids=["plain", "n2"])
def test_a_failed_assertion_shows_table_worst_attack_margin_victims_and_picture(suite: pytest.Pytester, extra: tuple[str, ...]) -> None:
    result = run(suite, LEAKING, *extra)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *verdict: leaks",
            "E *npz(*)/mlp(hidden=(24,))*ridge *ig(iterations=3)",
            "E *Scaled(scale=0.5) *F leaks +*dB [[]*, *[]] *s no control *",
            "E *worst attack: npz(*)/mlp(hidden=(24,))/Scaled(scale=0.5)/ridge",
            "E *psnr_gain +* dB [[]*[]] of 12 victims",
            "E *margin: * dB, the whole interval is past the threshold of 3 dB",
            "E *picture: .gitbench/pictures/*.png *",
            "E *why:",
            "E *Scaled(scale=0.5)/ridge: psnr_gain * is past the threshold of 3 dB; 12 of 12 victims are past it*",
            "E *ig(iterations=3): *this attack proves nothing here*",
        ]
    )
    (picture,) = set(re.findall(r"picture: (\S+\.png)", str(result.stdout)))
    assert (suite.path / picture).read_bytes().startswith(b"\x89PNG")


def test_the_report_can_be_read_by_a_program(suite: pytest.Pytester) -> None:
    run(
        suite,
        """
@pytest.mark.gitbench(attacks=["ridge", "ig(iterations=3)"], seeds=2, victims=6)
def test_it(gitbench_evaluate):
    report = gitbench_evaluate(Scaled(scale=0.5))
    assert report.worst.name.endswith("/ridge") and report.worst.margin < 0
    assert [cell.victims for cell in report.cells] == [12, 12]
    assert [result.case.seed for result in report.results] == [0, 1, 0, 1]
    assert str(report).count(".png") == 2
    held = gitbench_evaluate(Noise(), attacks=["ridge"])
    assert held.verdict == "holds" and held.worst.margin > 0 and "under the threshold of 3 dB" in held
    # Where less is more, the margin has the same sign.
    means = [gitbench_evaluate(one, attacks=["ridge"], threshold={"mse": 1.0}).worst.found.mean for one in ("none", Noise())]
    between = {"mse": sum(means) / 2}
    for one, verdict in ((Noise(), "holds"), (Scaled(), "leaks")):
        other = gitbench_evaluate(one, attacks=["ridge"], threshold=between, seeds=1, victims=12)
        assert (other.verdict, other.worst.margin > 0) == (verdict, verdict == "holds"), other
""",
    ).assert_outcomes(passed=1)


def test_a_report_is_true_where_the_defense_holds(suite: pytest.Pytester) -> None:
    test = "def test_it(gitbench_evaluate):\n    assert gitbench_evaluate(Noise())\n    assert gitbench_evaluate(Scaled())"
    result = run(suite, test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">*assert gitbench_evaluate(Scaled())", "E *verdict: leaks*"])


def test_objects_that_differ_in_anything_are_measured_each(suite: pytest.Pytester) -> None:
    run(
        suite,
        """
import dataclasses
import gitbench
import gitbench.clients.defense
from gitbench_defenses.gaussian_noise import GaussianNoise

class Base(gitbench.Defense):
    std = 1.0
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor + self.std * gitbench.randn_like(tensor, generator))

@dataclasses.dataclass
class Hidden(Base):
    std: float = dataclasses.field(default=1.0, repr=False)

def made(deviation):
    class Made(gitbench.Defense):
        def protect(self, update, *, generator):
            return update.map(lambda name, tensor: tensor + deviation * gitbench.randn_like(tensor, generator))
    return Made()

class Bundle(gitbench.clients.defense.Composition):
    def protect(self, update, *, generator):
        return self.defenses[0].protect(update, generator=generator)

class Softer(GaussianNoise):
    def protect(self, update, *, generator):
        return update

def test_it(gitbench_evaluate, monkeypatch):
    assert gitbench_evaluate(Base()).verdict == "holds"
    changed = Base()
    changed.std = 1e-9
    assert gitbench_evaluate(changed).verdict == "leaks"
    assert [gitbench_evaluate(Hidden(std=std)).verdict for std in (1.0, 1e-9)] == ["holds", "leaks"]
    assert [gitbench_evaluate(made(std)).verdict for std in (1.0, 1e-9)] == ["holds", "leaks"]
    assert gitbench_evaluate(GaussianNoise(std=1.0)).verdict == "holds"
    assert "declares noise" in gitbench_evaluate(Softer(std=1.0))  # what it inherits is not true of it
    parts = [gitbench.load_defense(spec) for spec in ("clipping(max_norm=100.0)", "gaussian_noise(std=1.0)")]
    assert gitbench_evaluate(parts[0] | parts[1]).verdict == "holds"
    assert gitbench_evaluate(Bundle(defenses=parts)).verdict != "holds"
    monkeypatch.setattr(Base, "std", 1e-9)
    assert gitbench_evaluate(Base()).verdict == "leaks"
""",
    ).assert_outcomes(passed=1)


def test_an_object_that_its_spec_rebuilds_shares_what_is_measured(suite: pytest.Pytester) -> None:
    run(
        suite,
        """
import gitbench
def test_it(gitbench_evaluate):
    spec = "clipping(max_norm=100.0) | pruning(rate=0.5)"
    both = [gitbench_evaluate(one).results[0].case_id for one in (spec, gitbench.load_defense(spec))]
    assert both[0] == both[1]
""",
    ).assert_outcomes(passed=1)


def test_a_defense_cannot_go_by_the_name_none(suite: pytest.Pytester) -> None:
    test = "class Mine(Noise):\n    name = 'none'\ndef test_it(gitbench_evaluate):\n    gitbench_evaluate(Mine())"
    result = run(suite, test)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *A defense of one's own cannot go by the name 'none'*Rename it."])


def test_fresh_measures_what_is_stored_again(suite: pytest.Pytester) -> None:
    test = "def test_it(gitbench_evaluate):\n    print('at', gitbench_evaluate('defenses.py:Noise').results[0].finished_at)"
    told = [str(run(suite, test, "-s", *extra).stdout) for extra in ((), (), ("--gitbench-fresh",))]
    times = [re.search(r"at (\S+)", text).group(1) for text in told]
    assert times[0] == times[1] < times[2]


def test_victims_are_added_until_the_verdict_is_decided(suite: pytest.Pytester) -> None:
    options = suite.path / "pyproject.toml"
    options.write_text(options.read_text().replace("victims = 12", 'victims = "auto"'))
    run(
        suite,
        """
def test_it(gitbench_evaluate):
    leaking = gitbench_evaluate("defenses.py:Scaled")
    assert (leaking.verdict, [cell.victims for cell in leaking.cells]) == ("leaks", [8]), leaking
    few = gitbench_evaluate("defenses.py:Scaled", victims=8)
    assert few.worst.found.low > leaking.worst.found.low  # a look may err less often than a single one
""",
    ).assert_outcomes(passed=1)
    # pytest --gitbench takes what the fixture has measured.
    cases = sorted((suite.path / ".gitbench" / "cases").iterdir())
    run_project(suite, "--gitbench", "--gitbench-defense=defenses.py:Scaled").assert_outcomes(failed=1)
    assert sorted((suite.path / ".gitbench" / "cases").iterdir()) == cases


def test_a_defense_that_raises_is_named_and_never_holds(suite: pytest.Pytester) -> None:
    result = run(
        suite, "def test_it(gitbench_evaluate):\n    report = gitbench_evaluate(Broken())\n    assert report.verdict == 'holds', report"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *verdict: inconclusive", "E *F error", "E *why:", "E *The defense Broken raised RuntimeError: my bad"])


def test_classes_functions_and_parameters_each_add_to_the_markers(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
@pytest.mark.gitbench(models=["mlp(hidden=(16,))"], victims=8)
class TestMine:
    @pytest.mark.gitbench(victims=9)
    @pytest.mark.parametrize("scale", [0.5, 2.0])
    def test_leaks(self, gitbench_evaluate, scale):
        report = gitbench_evaluate(Scaled(scale=scale))
        assert report.verdict == "leaks", report
        (result,) = report.results
        assert (result.case.model, result.case.victims) == ("mlp(hidden=(16,))", 9)
        assert result.case.defense == f"Scaled(scale={scale})"

    @pytest.mark.parametrize("attack", ["ridge", pytest.param("gias(iterations=1)", marks=pytest.mark.gitbench(seeds=2))])
    def test_cells(self, gitbench_evaluate, attack):
        report = gitbench_evaluate(Noise(), attacks=[attack])
        assert {result.case.victims for result in report.results} == {8}
        assert len(report.results) == (2 if "gias" in attack else 1)
""",
    )
    result.assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("atacks=['ridge']", "The gitbench marker has no option 'atacks'. Did you mean 'attacks'?"),
        ("victim=3", "The gitbench marker has no option 'victim'. Did you mean 'victims'?"),
        ("defense=['none']", "The gitbench marker has no option 'defense'."),
        ("['ridge']", "The gitbench marker takes keywords only, got ['ridge']. Write attacks=[...]"),
        ("attack='ridge', attacks=['ig']", "The gitbench marker has 'attacks' twice"),
        ("attacks=['rigde']", "Unknown attack 'rigde'. Did you mean 'ridge'?"),
        ("victims=0", "The option victims is 0"),
        ("attacks=3", "The option attack is 3"),
    ],
)
def test_a_wrong_marker_is_one_clear_error_without_our_traceback(suite: pytest.Pytester, marker: str, message: str) -> None:
    result = run(suite, f"@pytest.mark.gitbench({marker})\ndef test_it(gitbench_evaluate):\n    gitbench_evaluate(Noise())")
    result.assert_outcomes(failed=1)
    shown = str(result.stdout)
    assert message in shown
    assert "test_mine.py:5: " in shown
    assert "fixture.py" not in shown


def test_options_of_the_call_are_checked_like_the_markers(suite: pytest.Pytester) -> None:
    result = run(suite, "def test_it(gitbench_evaluate):\n    gitbench_evaluate('none', modles=['mlp'])")
    result.stdout.fnmatch_lines(["E *has no option 'modles'. Did you mean 'models'?*"])


def test_the_rest_of_the_suite_keeps_its_threads(suite: pytest.Pytester) -> None:
    run(
        suite,
        """
def test_it(gitbench_evaluate):
    import torch
    torch.set_num_threads(2)
    gitbench_evaluate(Noise())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
""",
    ).assert_outcomes(passed=1)


def test_the_marker_and_the_fixture_are_documented_by_pytest_itself(pytester: pytest.Pytester) -> None:
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.gitbench(attacks, models, *"])
    pytester.runpytest_inprocess("--fixtures").stdout.fnmatch_lines(["gitbench_evaluate*", "*Measure a defense*"])
