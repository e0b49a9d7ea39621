"""Text: datasets, models, metrics and attacks, on short sequences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("rouge_score")

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.clients.datasets.text import PINNED
from gitbench.clients.task import data_for
from gitbench.core.errors import AttackError, DataError
from gitbench.core.random import make_generator
from gitbench.identity.case import code_digest
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.loading import checked_spec
from gitbench.identity.names import entry_points
from helpers import run_project, stored_cases

TEXT = "text(length=8, vocabulary=400)"
SMALL = {
    "transformer": "transformer(width=32, heads=2)",
    "encoder": "encoder(width=32, heads=2)",
    "bilstm": "bilstm(width=16, hidden=16)",
}
METRICS = [name for name, metric in known_metrics().items() if metric.modality == "text"]


@pytest.fixture(scope="module")
def text() -> Data:
    return gitbench.load_dataset(TEXT)


def observed(text: Data, model: str, *, batch: int = 1, victims: int = 3, defense: str | None = None):
    network = gitbench.load_model(SMALL[model], text)
    network = network if defense is None else gitbench.load_defense(defense).modify_model(network)
    data = data_for(network, text)
    inputs, labels = gitbench.draw_victims(data.private, victims=victims, batch_size=batch, seed=0)
    update = client_update(network, inputs, labels, defense=defense)
    granted = {"batch_size": batch, "public": data.public, "modality": data.modality, "defense": defense}
    return gitbench.Observation(update=update, model=network, input_shape=data.input_shape, **granted), inputs


def scores(text: Data, attack: str, model: str, **setting) -> dict[str, float]:
    observation, inputs = observed(text, model, **setting)
    found = load_attack(attack, profile="quick")(observation, generator=make_generator(0)).inputs
    blind = text.modality.blind(text.public.inputs)
    return {name: float(one.mean()) for name, one in gitbench.score(found, inputs, blind=blind, modality=text.modality).items()}


# ------------------------------------------------------------------ data


def test_parts_are_disjoint_and_pinned(text: Data) -> None:
    public, private = (set(map(tuple, split.inputs.tolist())) for split in (text.public, text.private))
    assert len(public) == len(text.public)
    assert not public & private
    assert min(len(text.public), len(text.private)) > 200
    assert ("another Python's text" in text.modality.about) == (PINNED[:8] not in text.modality.about)
    again = gitbench.load_dataset(TEXT)
    assert torch.equal(again.private.inputs, text.private.inputs)
    assert again.modality.about == text.modality.about


def test_the_text_is_part_of_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    from gitbench.identity import sources

    before = code_digest(checked_spec("dataset", "text"))
    monkeypatch.setattr(sources, "CONTENT", ())
    assert code_digest(checked_spec("dataset", "text")) != before


def test_a_users_texts(tmp_path: Path) -> None:
    lines = [{"body": f"Sentence number {n} of a text that somebody wrote.", "kind": "ab"[n % 2]} for n in range(40)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = gitbench.load_dataset(f"jsonl(path={str(path)!r}, text='body', label='kind', length=24, vocabulary=320)")
    assert (found.classes, len(found.public), len(found.private)) == (2, 30, 10)
    assert int((found.private.inputs == 0).sum()) > 0, "short texts are padded"
    saved = tmp_path / "tokenizer.json"
    found.modality.tokenizer.save(str(saved))
    plain = tmp_path / "mine.txt"
    plain.write_text("\n\n".join(line["body"] for line in lines))
    other = gitbench.load_dataset(f"textfile(path={str(plain)!r}, length=12, tokenizer={str(saved)!r})")
    assert other.modality.vocabulary == found.modality.vocabulary
    assert "given" in other.modality.about


@pytest.mark.parametrize(
    ("spec", "content", "message"),
    [
        ("jsonl(path={})", b"{}", "line 1: expected a string under 'text'"),
        ("jsonl(path={})", b"nonsense", "line 1: expected a JSON object"),
        ("jsonl(path={})", b'{"text": "a", "label": 1}', "at least four lines"),
        ("textfile(path={})", b"\xff", "Expected UTF-8"),
        ("textfile(path={})", b"one", "at least four documents"),
        ("textfile(path='nowhere.txt')", b"", "found nothing there"),
        ("text(tokenizer={})", b"{}", "tokenizer.json"),
    ],
)
def test_bad_files_are_named(spec: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        gitbench.load_dataset(spec.format(repr(str(path))))


def test_names_are_those_that_are_registered() -> None:
    assert {"text", "textfile", "jsonl"} <= set(entry_points("dataset"))


# ------------------------------------------------------------------ models and metrics


@pytest.mark.parametrize("model", SMALL)
def test_tokens_and_their_vectors_are_the_same_to_a_model(model: str, text: Data) -> None:
    network = gitbench.load_model(SMALL[model], text)
    tokens = text.private.inputs[:2]
    torch.testing.assert_close(network(text.modality.enter(network, tokens)), network(tokens))
    assert torch.equal(text.modality.leave(network, text.modality.enter(network, tokens)), tokens)


def test_a_language_model_learns_the_next_token(text: Data) -> None:
    network = gitbench.load_model(SMALL["transformer"], text)
    data = data_for(network, text)
    assert data.classes == text.modality.vocabulary
    assert torch.equal(data.private.labels[:, :-1], text.private.inputs)
    tied = gitbench.load_model("transformer(width=32, heads=2, tied=True)", text)
    assert tied.head.weight is tied.tokens.weight


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_finite_of_each_sequence_alone_and_leaks_most_on_a_copy(name: str) -> None:
    metric, generator = known_metrics()[name], make_generator(0)
    truth = torch.randint(1, 9, (5, 6), generator=generator)
    truth[3, 4:] = 0
    found = torch.where(torch.rand(5, 6, generator=generator) < 0.5, truth, torch.randint(1, 9, (5, 6), generator=generator))
    given = {need: {"blind": truth[0], "private": truth}[need] for need in metric.needs}
    values, copies = metric.score(found, truth, **given), metric.score(truth, truth, **given)
    assert values.shape == (5,)
    alone = torch.cat([metric.score(found[i : i + 1], truth[i : i + 1], **given) for i in range(5)])
    assert torch.equal(values, alone)
    assert (metric.sign * (copies - values) >= 0).all()
    assert all(metric.low <= float(one) <= metric.high for one in torch.cat([values, copies]))


def test_metrics_of_an_example() -> None:
    truth, found = torch.tensor([[1, 2, 2, 3]]), torch.tensor([[2, 2, 1, 3]])
    value = {name: float(known_metrics()[name].score(found, truth)) for name in METRICS if not known_metrics()[name].needs}
    wanted = {"token_accuracy": 0.5, "token_bag": 1, "token_set": 1, "exact_match": 0, "edit_distance": 0.5, "rouge_1": 1, "rouge_l": 0.75}
    assert {name: value[name] for name in wanted} == wanted
    assert value["rouge_2"] == pytest.approx(1 / 3)


# ------------------------------------------------------------------ attacks


@pytest.mark.parametrize("model", ["transformer", "encoder"])
@pytest.mark.parametrize("attack", ["embeddings", "dager"])
def test_single_sequences_are_exact(attack: str, model: str, text: Data) -> None:
    assert scores(text, attack, model)["exact_match"] == 1


def test_dager_is_exact_below_the_rank_limit_and_says_so_beyond(text: Data) -> None:
    assert scores(text, "dager", "transformer", batch=3)["exact_match"] == 1
    observation, _ = observed(text, "transformer", batch=4)  # 32 tokens in a layer that is 32 wide
    found = load_attack("dager")(observation, generator=make_generator(0))
    assert found.flags == {"beyond-rank-limit"}
    assert torch.equal(found.inputs[0, 0], text.modality.blind(text.public.inputs))


def test_a_language_model_of_layers_that_are_known_is_searched(text: Data) -> None:
    network = gitbench.load_model("transformer(width=32, heads=2, frozen=('tokens', 'positions', 'start'))", text)
    data = data_for(network, text)
    inputs, labels = gitbench.draw_victims(data.private, victims=2, batch_size=1, seed=0)
    granted = {"input_shape": (8,), "public": data.public, "modality": data.modality}
    observation = gitbench.Observation(update=client_update(network, inputs, labels), model=network, **granted)
    assert load_attack("tag(iterations=2)")(observation, generator=make_generator(0)).inputs.shape == inputs.shape


def test_a_recurrent_model_is_an_lstm_that_gives_its_bag_away(text: Data) -> None:
    network = gitbench.load_model(SMALL["bilstm"], text)
    own = torch.nn.LSTM(16, 16, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for direction, end in ((network.forwards, ""), (network.backwards, "_reverse")):
            for name, tensor in (
                ("weight_ih", direction.read.weight),
                ("bias_ih", direction.read.bias),
                ("weight_hh", direction.recur.weight),
            ):
                getattr(own, f"{name}_l0{end}").copy_(tensor)
            getattr(own, f"bias_hh_l0{end}").zero_()
        vectors = text.modality.enter(network, text.private.inputs[:3])
        states = torch.cat([network.forwards(vectors), network.backwards(vectors)], dim=-1)
        torch.testing.assert_close(states, own(vectors)[0])
    assert scores(text, "embeddings", "bilstm")["token_bag"] > 0.9
    with pytest.raises(AttackError, match="dager reads the gradient of the first query layer"):
        load_attack("dager")(observed(text, "bilstm")[0], generator=make_generator(0))


def test_embeddings_counts_the_tokens_of_a_classifiers_batch(text: Data) -> None:
    from gitbench.measure.token_counts import recovered

    observation, inputs = observed(text, "encoder", batch=4, victims=6)
    found = load_attack("embeddings")(observation, generator=make_generator(0)).inputs
    assert float(recovered(found.flatten(1), inputs.flatten(1)).mean()) > 0.97


def test_rows_that_are_sums_of_two_kinds_are_counted() -> None:
    from gitbench.attacker.tools.row_counts import likely_counts

    often = torch.tensor([[1, 0], [0, 1], [1, 1], [2, 0], [1, 0], [0, 1], [0, 2], [1, 0], [0, 1]])
    means = torch.randn(2, 16, generator=make_generator(0), dtype=torch.float64)
    noise = 0.05 * torch.randn(9, 16, generator=make_generator(1), dtype=torch.float64)
    assert torch.equal(likely_counts(often.double() @ means + noise, batch=2, length=6), often.sum(1))


def test_dager_tells_the_sequences_of_a_classifiers_batch_apart(text: Data) -> None:
    for batch in (2, 3):
        assert scores(text, "dager", "encoder", batch=batch)["exact_match"] == 1


def test_what_is_constant_in_a_sequence_tells_sequences_apart_unless_they_share_a_token_in_place(text: Data) -> None:
    from gitbench.attacker.tools.sequences import constant_directions
    from gitbench.attacker.tools.tokens import layer_inputs

    observation, inputs = observed(text, "encoder", batch=2, victims=8)
    network, name = observation.model, "blocks.0.attention"
    for victim, batch in enumerate(inputs):
        (read,) = (one.double() for one in layer_inputs(network, [f"{name}.query"], batch))
        span = torch.linalg.svd(read.flatten(0, 1), full_matrices=False).Vh
        span = span[: int(torch.linalg.matrix_rank(read.flatten(0, 1), rtol=1e-6))]
        values = read @ constant_directions(observation.update.tensors[f"{name}.key.weight"][victim], span)
        shared = int((batch[0] == batch[1]).sum())
        assert values.shape[2] == max(0, 2 - shared) or shared > 1
        assert float((values - values[:, :1]).abs().max()) < 1e-3
        assert shared or float((values[0, 0] - values[1, 0]).norm()) > 0.1


def test_sequences_that_share_tokens_in_place_are_searched(text: Data) -> None:
    network = gitbench.load_model(SMALL["encoder"], text)
    inputs = text.private.inputs[:6].reshape(2, 3, 8).clone()
    inputs[:, 1, :2], inputs[:, 2, 3] = inputs[:, 0, :2], inputs[:, 0, 3]  # no two of the three can be told apart in closed form
    update = client_update(network, inputs, text.private.labels[:6].reshape(2, 3))
    granted = {"batch_size": 3, "public": text.public, "modality": text.modality}
    observation = gitbench.Observation(update=update, model=network, input_shape=text.input_shape, **granted)
    found = load_attack("dager")(observation, generator=make_generator(0))
    assert [set(map(tuple, one.tolist())) for one in found.inputs] == [set(map(tuple, one.tolist())) for one in inputs]
    assert not found.flags
    noise = update.map(lambda _, tensor: torch.randn(tensor.shape, generator=make_generator(1)) * tensor.std())
    assert load_attack("dager")(observation.with_update(noise), generator=make_generator(0)).flags == {"sequences-not-told-apart"}


def test_a_frozen_embedding_hides_a_classifiers_tokens_and_no_language_models(text: Data) -> None:
    assert scores(text, "embeddings", "encoder", defense="frozen_embeddings")["token_gain"] == 0
    assert scores(text, "embeddings", "transformer", defense="frozen_embeddings")["token_bag"] > 0.9
    assert scores(text, "dager", "encoder", defense="frozen_embeddings")["exact_match"] == 1


def test_adapters_alone_hide_what_has_more_tokens_than_they_have_rank(text: Data) -> None:
    for model in ("transformer", "encoder"):
        assert scores(text, "dager", model, defense="lora(rank=16)")["exact_match"] == 1
        observation, _ = observed(text, model, defense="lora(rank=4)")
        assert load_attack("dager")(observation, generator=make_generator(0)).flags == {"beyond-rank-limit"}
        assert scores(text, "embeddings", model, defense="lora(rank=4)")["token_gain"] == 0
        sent = {name.rpartition(".")[0].rpartition(".")[2] for name in observation.update.tensors}
        assert sent == {"lora_A", "lora_B"} | ({"head"} if model == "encoder" else set())
        assert text.modality.flags(observation.model) == {"frozen-embedding"}
    assert observed(text, "bilstm", defense="lora(rank=4)")[0].update.tensors


@pytest.mark.parametrize("attack", ["dlg(iterations=15)", "tag(iterations=5)", "lamp(iterations=6, every=3, moves=2)"])
def test_searches_return_tokens_and_the_same_for_the_same_seed(attack: str, text: Data) -> None:
    for model in SMALL if "tag" in attack else ("transformer", "encoder"):
        observation, inputs = observed(text, model, victims=2)
        found = [load_attack(attack, profile="quick")(observation, generator=make_generator(0)).inputs for _ in range(2)]
        assert torch.equal(*found)
        assert found[0].shape == inputs.shape


def test_dlg_recovers_a_classifiers_text(text: Data) -> None:
    assert scores(text, "dlg(iterations=80)", "encoder")["token_gain"] > 0.3


@pytest.mark.parametrize("attack", ["embeddings", "dager"])
def test_a_random_gradient_leaks_nothing(attack: str, text: Data) -> None:
    observation, inputs = observed(text, "encoder", victims=8)
    noise = observation.update.map(lambda _, tensor: torch.randn(tensor.shape, generator=make_generator(1)) * tensor.std())
    found = load_attack(attack)(observation.with_update(noise), generator=make_generator(0)).inputs
    blind = text.modality.blind(text.public.inputs)
    assert float(gitbench.score(found, inputs, blind=blind, modality=text.modality)["token_gain"].mean()) < 0.05


# ------------------------------------------------------------------ a run


@pytest.mark.usefixtures("warm")
def test_a_run_on_text(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("")
    result = run_project(
        pytester, "--gitbench", "--gitbench-dataset", TEXT, "--gitbench-model", SMALL["encoder"], "--gitbench-attack", "dager",
        "--gitbench-attack", "ig", "--gitbench-defense", "none", "--gitbench-defense", "gaussian_noise(std=0.1)",
        "--gitbench-report", "report", "--gitbench-victims", "8", "-rs",
    )  # fmt: skip
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["*the attack ig is one on image data, and the dataset is one of text data*"])
    (control, _) = sorted(stored_cases(pytester.path).values(), key=lambda case: case["case"]["defense"] != "none")
    assert control["certified"] == [True] * 8
    assert control["verdict"] == "leaks"
    assert "pydoc_data.topics" in control["settings"]["data.text"]
    assert len(list((pytester.path / ".gitbench" / "pictures").glob("*.png"))) == 2


def test_auto_takes_what_explains_the_update(text: Data) -> None:
    assert scores(text, "auto", "encoder")["exact_match"] == 1


def test_tokens_that_others_reconstructed_are_scored(text: Data, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from gitbench.publish.submission import score_submission

    claim = {
        "kind": "gitbench submission", "schema": 1, "name": "mine", "author": "somebody", "inputs": "found.safetensors",
        "dataset": TEXT, "model": "encoder", "defense": "none", "victims": 8,
    }  # fmt: skip
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    truth, _ = gitbench.draw_victims(text.private, victims=8, batch_size=1, seed=0)
    save_file({"inputs": truth}, tmp_path / "found.safetensors")
    found = score_submission(tmp_path / "claim.json")
    assert (found.verdict, found.gate, found.metrics["exact_match"].mean) == ("leaks", {"token_gain": 0.1}, 1)
    save_file({"inputs": truth.float()}, tmp_path / "found.safetensors")
    with pytest.raises(AttackError, match="to be integers"):
        score_submission(tmp_path / "claim.json")
