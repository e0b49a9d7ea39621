"""What should make a reader stop before believing a figure. docs/flags.md explains each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gitbench.identity.known_modalities import gain_of
from gitbench.judge.statistics import FEW, interval, wilson
from gitbench.store.result import TIMED_OUT, Result

STILL_IMPROVING = "still-improving"
_VANISHING = 1e-5  # of the raw gradient's norm
_SCALE = 1e3
_COSINE = 0.01
_SIMILAR = 0.1  # SSIM above the blind guess's
_OTHERWISE = 0.3  # of a cosine


@dataclass(frozen=True)
class Flag:
    """One kind of doubt.

    Args:
        name: as stored and shown.
        raised: when it is raised.
        why: what it means.
        what_to_do: in one sentence.
        blocks: a cell that carries it does not hold, whatever its figures.
    """

    name: str
    raised: str
    why: str
    what_to_do: str
    blocks: bool = False


FLAGS: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag(
            "control-failed",
            "the interval of the undefended cell is not wholly past the threshold: the attack is not shown to leak without a defense",
            "an attack that fails without a defense says nothing about any defense",
            "raise --gitbench-victims where that interval straddles the threshold, and the attack's budget where its control is "
            "still-improving; or leave it out: another attack must pass its control",
            blocks=True,
        ),
        Flag(
            "randomised-defense",
            "two runs of the defense with different seeds differ",
            "the figure averages over one draw for each victim, round and seed, and an attacker may see more rounds",
            "raise --gitbench-rounds to see what several rounds give away, and --gitbench-seeds for more draws",
        ),
        Flag(
            "leaks-more-than-undefended",
            "paired over victims, the defended update leaks more than the undefended one (95 %)",
            "the defense helps this attack, or the attack is unstable",
            "compare other attacks; look at what the defense adds (a mask, an index) that the raw gradient lacks",
        ),
        Flag(
            "adaptive-weaker",
            "paired over victims, the attack leaks less than its adapt=False variant in the same results folder (95 %)",
            "knowing the defense should not hurt: expected() may mislead the attacker, and the figure is too low",
            "read the oblivious cell instead; correct expected() of the defense",
        ),
        Flag(
            "similar-but-blind",
            "no closer than the blind guess in squared error, yet SSIM is clearly above the blind guess's",
            "structure leaks while brightness or contrast is off; squared error does not see it",
            "look at the picture; gate ssim or lpips as well (--gitbench-threshold psnr_gain=3 --gitbench-threshold ssim=...)",
        ),
        Flag(
            "vanishing-update",
            "the median update is shorter than 1e-5 of the raw gradient, or that is zero itself",
            "nobody learns from it: neither the attacker nor the model",
            "rescale what is sent, or send nothing and say so",
            blocks=True,
        ),
        Flag(
            "scale-changed",
            "the median update is more than 1,000 times longer or shorter than the raw gradient",
            "a scale hides nothing: attackers rescale; thresholds and clipping further on will misbehave",
            "send updates of the usual scale",
        ),
        Flag(
            "destroys-utility",
            "the defended updates do not point along the raw ones (95 %), or no step along their average lowers the loss "
            "and their cosine is below 0.01",
            "a gradient that trains nothing leaks nothing, and is no defense",
            "weaken the defense; with strong noise, raise --gitbench-victims: averaging shows what is left",
            blocks=True,
        ),
        Flag(
            "learns-nothing",
            "a model that is trained under the defense is right no more often than the most frequent class, and one without it surely is",
            "a gradient that trains nothing leaks nothing, and is no defense",
            "weaken the defense, or show with a larger profile that more rounds train it",
            blocks=True,
        ),
        Flag(
            "trains-otherwise",
            "in training the defense sends raw gradients and under attack none, or their cosines to the raw ones differ by over 0.3",
            "the accuracy is that of another defense than the one that was attacked",
            "look for a branch that asks who is calling, or how many victims there are",
            blocks=True,
        ),
        Flag(
            "raw-update",
            "at least one victim's update is the raw gradient, bit for bit",
            "the defense did nothing for it",
            "expected of clipping below its bound; otherwise look for a branch that returns its argument",
        ),
        Flag(
            "no-slope",
            "the deterministic part of the defense has no slope (it rounds, say), on public images",
            "attacks that pass their own gradient through it go nowhere, whatever the update gives away",
            "believe auto, which takes what the defense changes for noise; or give the defense an expected() with a slope",
        ),
        Flag(
            "random-scale",
            "every update, or every tensor of it, is sent at a scale of its own that is not told, on public images",
            "a factor hides nothing, but attacks that match lengths (dlg) fail on it",
            "believe auto, which fits the factor",
        ),
        Flag(
            "hides-labels",
            "labels that can be read off the raw gradient cannot be read off what is sent, on public images",
            "attacks that begin with the label or with the last layer's input (ridge, ig, dlg) begin with a wrong one",
            "believe auto, which tries every label, and lti, which reads all layers",
        ),
        Flag(
            "frozen-embedding",
            "the token embedding does not train, so that the update has none of the rows that name the tokens of a batch",
            "what is left names them too: the head of a language model (its bias counts the next tokens) to embeddings, the queries of the "
            "first layers to dager, and every other layer to dlg and tag",
            "believe the attack that leaks most; freezing one layer hides nothing that another one tells",
        ),
        Flag(
            "beyond-rank-limit",
            "a batch has at least as many tokens as the first query layer's input has dimensions: every vector lies in its gradient's span",
            "dager's test tells nothing apart there, and it gives up: the cell says nothing about the defense",
            "lower --gitbench-batch-size or the length of the dataset, or use a wider model",
        ),
        Flag(
            "sequences-not-told-apart",
            "of some victim dager put fewer sequences together than the batch has, from the tokens that it found at each position",
            "noise, a batch close to the rank limit, or one that has a sequence twice: what is returned beside those that were found is "
            "the nearest",
            "read the figures of the tokens in any order beside it; a smaller batch is told apart",
        ),
        Flag(
            "softmax-twice",
            "the model returns probabilities, and cross-entropy takes them for logits",
            "softmax is applied twice: gradients are small and the model hardly trains, which is no merit of a defense",
            "let the model return what goes into its softmax",
        ),
        Flag(
            STILL_IMPROVING,
            "the attack's own objective still fell by over 5 % of its whole fall in the last quarter of its budget (median victim)",
            "a larger budget would leak more",
            "raise iterations=, or use --gitbench-profile standard or paper",
        ),
        Flag(
            TIMED_OUT,
            "the case's budget of time ran out (--gitbench-timeout)",
            "what was reached by then depends on the machine, and proves nothing",
            "raise --gitbench-timeout, or lower the attack's budget",
            blocks=True,
        ),
        Flag(
            "few-victims",
            f"fewer than {FEW} victims",
            "an interval over so few victims rests on its assumptions",
            "raise --gitbench-victims",
        ),
    )
}


# What :func:`own_flags` finds in the figures that are stored; that an attack was still improving it is told.
_FROM_FIGURES = frozenset(
    {
        *("few-victims", "similar-but-blind", "randomised-defense", "raw-update"),
        *("vanishing-update", "scale-changed", "destroys-utility", "learns-nothing", "trains-otherwise"),
    }
)


def raised_anew(result: Result) -> set[str]:
    """The flags of a stored result; those that follow from its own figures do so by the conditions of today."""
    told = set(result.flags)
    return told - _FROM_FIGURES | own_flags(result, still_improving=STILL_IMPROVING in told) if result.metrics else told


def own_flags(result: Result, *, still_improving: bool) -> set[str]:
    """The flags that a case's own figures raise."""
    found = set()
    if result.case.victims < FEW:
        found.add("few-victims")
    if still_improving:
        found.add(STILL_IMPROVING)
    gain, ssim = result.metrics.get("psnr_gain"), result.metrics.get("ssim")
    blind = result.baselines.blind.get("ssim")
    if gain and ssim and gain.high is not None and ssim.low is not None and blind is not None and gain.high <= 0:
        found |= {"similar-but-blind"} if ssim.low > blind + _SIMILAR else set()
    return found | (set() if result.case.is_control else _utility_flags(result) | _training_flags(result))


def compared_flags(result: Result, *, control: Result | None, oblivious: Result | None) -> set[str]:
    """The flags that other cells of the same victims raise.

    Args:
        result: a defended case.
        control: the same undefended.
        oblivious: the same with an attack that does not know the defense.
    """
    found = set()
    if control is not None and _worse(result, control):
        found.add("leaks-more-than-undefended")
    if oblivious is not None and _worse(oblivious, result):
        found.add("adaptive-weaker")
    return found


def blocking(results: Sequence[Result]) -> list[str]:
    """The flags with which none of these results may hold."""
    names = {name for result in results for name in result.flags}
    return sorted(name for name in names if name in FLAGS and FLAGS[name].blocks and name != "control-failed")


def explained(flags: Iterable[str]) -> str:
    """``name (raised because ...)`` of each, for messages; a metric that could not be measured explains itself."""
    return "; ".join(f"{name} ({FLAGS[name].raised})" if name in FLAGS else name for name in sorted(flags))


def _utility_flags(result: Result) -> set[str]:
    utility = result.utility
    found: set[str] = set()
    if utility is None:
        return found
    if utility.random:
        found.add("randomised-defense")
    if utility.equal > 0:
        found.add("raw-update")
    ratio = utility.norm_ratio
    if ratio is None or ratio < _VANISHING:
        found.add("vanishing-update")
    if ratio is not None and not 1 / _SCALE <= ratio <= _SCALE:
        found.add("scale-changed")
    # One victim alone has no interval; its sign has to do.
    reached = utility.alignment.low if utility.alignment.low is not None else utility.alignment.mean
    stuck = utility.descent is not None and utility.descent <= 0 and (utility.cosine is None or utility.cosine < _COSINE)
    if ratio is not None and (reached is None or reached <= 0 or stuck):
        found.add("destroys-utility")
    return found


def _training_flags(result: Result) -> set[str]:
    training, utility = result.training, result.utility
    found: set[str] = set()
    if training is None:
        return found
    surely = wilson(training.undefended, training.images)[0]
    # By the mean, not by the interval: an honest defense that needs more rounds than these is above it, if only just.
    if training.right <= training.guessed < surely * training.images:
        found.add("learns-nothing")
    if utility is None or result.case.victims < FEW:  # a few victims may be of another kind than the clients
        return found
    raw = training.equal == 1 and utility.equal == 0  # an honest clip may be too long for all of the one, and bind for some of the other
    apart = training.cosine is not None and utility.cosine is not None and abs(training.cosine - utility.cosine) > _OTHERWISE
    return found | ({"trains-otherwise"} if raw or apart else set())


def _worse(one: Result, other: Result) -> bool:
    """Whether the first leaks more than the second, victim by victim, with 95 % confidence."""
    name = gain_of(one.metrics)
    mine, theirs = one.metrics.get(name), other.metrics.get(name)
    if mine is None or theirs is None or len(mine.values) != len(theirs.values):
        return False
    pairs = zip(mine.values, theirs.values, strict=True)
    low = interval([[None if a is None or b is None else a - b for a, b in pairs]]).low
    return low is not None and low > 0
