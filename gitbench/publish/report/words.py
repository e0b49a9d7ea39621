"""What the page calls things, in plain words."""

from __future__ import annotations

from gitbench.identity.threat import Knowledge

SYMBOLS: dict[str, str] = {
    "control": "○",
    "holds": "✓",
    "leaks": "✗",
    "undecided": "?",
    "no success": "∅",
    "no control": "-",
    "timed out": "⏱",
    "error": "!",
    "not tested": "·",
    "n/a": "·",
}
VERDICTS: dict[str, str] = {
    "control": "No defense, and the attack works: so it can tell something about defenses.",
    "holds": "The whole interval is under the threshold, and the same attack works without the defense.",
    "leaks": "The whole interval is past the threshold.",
    "undecided": "The interval straddles the threshold: more victims will tell.",
    "no success": "It would hold, but its updates train nothing, or it costs more than it may.",
    "no control": "This attack fails even without a defense: it proves nothing here.",
    "timed out": "The time ran out; what was reached by then proves nothing.",
    "error": "The defense or the attack raised an error, or returned something malformed.",
    "not tested": "Nothing was measured here.",
    "n/a": "The threat model does not grant what this attack needs.",
}
GRANTED: dict[Knowledge, str] = {
    "architecture": "the model's architecture",
    "parameters": "the model's parameters",
    "public": "public data of the same kind",
    "defense": "the defense's definition (not what it draws at random)",
    "labels": "the labels of the private images",
    "batchnorm_statistics": "BatchNorm statistics of the private images",
}
KINDS_OF_ATTACKER: dict[str, str] = {
    "server": "the server that sends the model out",
    "eavesdropper": "somebody who listens on the line",
    "upper-bound": "more than any real attacker, to bound what any could do",
}
