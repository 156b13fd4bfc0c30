import dataclasses
import json
import math
import random
import sys
from functools import partial
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from lm_eval.api.metrics import mean_stderr
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

import revformers as rf
from lab.evaluation import documents, evaluate, harness
from lab.evaluation.documents import split_pages
from lab.evaluation.language_model import LoadedLanguageModel
from lab.evaluation.scores import read_scores
from revformers.errors import UserError
from tests.lab.evaluation.tiny import (
    SHARED,
    SHARED_DATA,
    WORDS,
    needs_shared_data,
    tiny_model,
    tiny_tokenizer,
    write_data,
    write_rows,
)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def scores_of(evaluation):
    return {(score.metric, score.filter): score for score in evaluation.scores}


def log_likelihood(model, tokens, scored):
    """Sum over the last `scored` of `tokens` of the log-probability of each after those before it, nats."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    return sum(logits[position - 1, tokens[position]].item() for position in range(len(tokens) - scored, len(tokens)))


@pytest.mark.parametrize("reversible", [False, True], ids=["ordinary", "reversible"])
def test_accuracies_are_those_of_a_plain_computation(reversible, data):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    if reversible:
        rf.make_reversible(model, rf.Leapfrog())
    scores = scores_of(evaluate(model, tokenizer, ["local_piqa"], data=data, batch_size=5))
    right, right_for_its_length = [], []
    for document in plain_piqa(data):
        context = tokenizer.encode(f"Question: {document['goal']}\nAnswer:")
        likelihoods = []
        for choice in document["choices"]:
            whole = tokenizer.encode(f"Question: {document['goal']}\nAnswer: {choice}")
            assert whole[: len(context)] == context
            likelihoods.append(log_likelihood(model, whole, len(whole) - len(context)))
        per_letter = [value / len(choice) for value, choice in zip(likelihoods, document["choices"], strict=True)]
        right.append(float((likelihoods[1] > likelihoods[0]) == document["label"]))
        right_for_its_length.append(float((per_letter[1] > per_letter[0]) == document["label"]))
    assert 0 < sum(right) < len(right)
    assert right != right_for_its_length
    for metric, expected in (("acc", right), ("acc_norm", right_for_its_length)):
        score = scores[metric, "none"]
        assert score.value == pytest.approx(sum(expected) / len(expected), rel=1e-12)
        assert score.terms[:, 0].tolist() == expected
        assert score.standard_error == pytest.approx(mean_stderr(expected), rel=1e-12)
        assert score.higher_is_better


def plain_piqa(data):
    rows = [json.loads(line) for line in (data / "piqa/valid.jsonl").read_text().splitlines()]
    labels = (data / "piqa/valid-labels.lst").read_text().split()
    return [
        {"goal": row["goal"], "choices": (row["sol1"], row["sol2"]), "label": bool(int(label))}
        for row, label in zip(rows, labels, strict=True)
    ]


def test_word_perplexity_is_that_of_a_plain_computation_in_windows(data):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    evaluation = evaluate(model, tokenizer, ["local_wikitext"], data=data)
    window, total, words, size = 48, 0.0, 0, 0
    lengths = []
    with (data / "wikitext-2/test.txt").open() as lines:
        pages = list(split_pages(lines))
    for page in pages:
        # this text has no other of the marks that the detokenisation looks for
        plain = page.replace(" @-@ ", "-").replace(" . ", ". ").replace("= = ", "== ").replace(" = =", " ==")
        plain = plain.replace(" \n", "\n").replace("\n ", "\n")
        tokens = [tokenizer.bos_token_id, *tokenizer.encode(plain)]
        lengths.append(len(tokens))
        for start in range(1, len(tokens), window):
            end = min(start + window, len(tokens))
            total += log_likelihood(model, tokens[max(0, end - window - 1) : end], end - start)
        words += len(page.split()) + 2  # what is before the first and behind the last space counts too
        size += len(page.encode())
    assert max(lengths) > 2 * window
    scores = scores_of(evaluation)
    assert scores["word_perplexity", "none"].value == pytest.approx(math.exp(-total / words), rel=1e-4)
    assert scores["byte_perplexity", "none"].value == pytest.approx(math.exp(-total / size), rel=1e-4)
    assert scores["bits_per_byte", "none"].value == pytest.approx(-total / size / math.log(2), rel=1e-4)
    assert scores["word_perplexity", "none"].standard_error > 0
    assert scores["word_perplexity", "none"].higher_is_better is False
    assert evaluation.truncated == {}


def test_written_answers_are_extracted_strictly_and_flexibly(data, monkeypatch):
    answers = ["I think #### 0", "it is 1.", "#### 7, that is 2", "none"]
    prompts = []

    def written(self, requests, disable_tqdm=False):
        prompts.extend(request.args[0] for request in requests)
        return answers

    monkeypatch.setattr(LoadedLanguageModel, "generate_until", written)
    evaluation = evaluate(tiny_model(), tiny_tokenizer(), ["local_gsm8k"], data=data, limit=4)
    scores = scores_of(evaluation)
    assert scores["exact_match", "strict-match"].terms[:, 0].tolist() == [1, 0, 0, 0]
    assert scores["exact_match", "flexible-extract"].terms[:, 0].tolist() == [1, 1, 1, 0]
    assert evaluation.few_shot == {"local_gsm8k": 5}
    assert prompts[2].endswith("\n\nQuestion: How many water are there?\nAnswer:")
    assert prompts[2].count("####") == 5


def test_contexts_that_are_cut_are_counted_and_said_once(data, caplog):
    chance = random.Random(0)
    long = {"goal": " ".join(chance.choices(WORDS, k=60)), "sol1": "cage", "sol2": "pig"}
    write_rows(data / "piqa/valid.jsonl", [long, {"goal": "cage", "sol1": "cage", "sol2": "pig"}])
    (data / "piqa/valid-labels.lst").write_text("0\n1\n")
    model, tokenizer = tiny_model(positions=300), tiny_tokenizer()
    evaluation = evaluate(model, tokenizer, ["local_gsm8k"], data=data, limit=1)
    assert evaluation.truncated == {"local_gsm8k": 1}
    assert "1 of 1 requests of local_gsm8k were longer than the 300 tokens" in caplog.text
    caplog.clear()
    model = tiny_model().train()
    evaluation = evaluate(model, tokenizer, ["local_piqa"], data=data)
    assert model.training
    assert tokenizer.pad_token is None
    assert evaluation.truncated == {"local_piqa": 2}
    assert evaluation.to_dict()["requests"] == {"local_piqa": 4}
    assert [record.getMessage()[:30] for record in caplog.records] == ["2 of 4 requests of local_piqa "]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "Name a task"),
        ({"limit": 0}, "limit must be 1 or more, not 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"data": None}, "local_piqa reads local files"),
        ({"tasks": ["local_gsm8k"]}, "write 256 tokens, which leaves no room for the question in the 48"),
    ],
)
def test_what_the_user_can_put_right_is_said(options, message, data):
    options = {"tasks": ["local_piqa"], "data": data} | options
    with pytest.raises(UserError, match=message):
        evaluate(tiny_model(), tiny_tokenizer(), **options)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(data):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.resize_token_embeddings(len(tokenizer) - 1)
    with pytest.raises(UserError, match="but the model's vocab_size is"):
        evaluate(model, tokenizer, ["local_piqa"], data=data)


def test_an_answer_longer_than_the_model_reads_is_refused(data):
    write_rows(data / "piqa/valid.jsonl", [{"goal": "cage", "sol1": "cage " * 100, "sol2": "pig"}])
    (data / "piqa/valid-labels.lst").write_text("0\n")
    with pytest.raises(UserError, match="An answer of 301 tokens is longer than the 48"):
        evaluate(tiny_model(), tiny_tokenizer(), ["local_piqa"], data=data)


def test_contexts_begin_as_the_tokenizer_begins_a_text():
    """Or as the option says; a beginning shifts every context by a token."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)

    def begins(**options):
        language_model = LoadedLanguageModel(model, tokenizer, 1, False, **options)
        contexts = language_model.tok_encode("water"), language_model.tok_batch_encode(["water"])[0][0].tolist()
        assert contexts[0] == contexts[1]
        assert contexts[0][-1] == tokenizer("water")["input_ids"][-1]
        return contexts[0][0] == tokenizer.bos_token_id

    assert [begins(add_bos_token=choice) for choice in ("auto", "always", "never")] == [False, True, False]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert [begins(add_bos_token=choice) for choice in ("auto", "always", "never")] == [True, True, False]


def test_tokenizers_that_name_no_first_token_take_that_of_the_configuration(data):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    model.config.bos_token_id = 7
    assert evaluate(model, tokenizer, ["local_wikitext"], data=data, limit=1).first_token == 7
    with pytest.raises(UserError, match="no end-of-text token"):
        evaluate(tiny_model(positions=300), tokenizer, ["local_gsm8k"], data=data, limit=1)
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(UserError, match="names a token that begins a text"):
        evaluate(model, tokenizer, ["local_wikitext"], data=data, limit=1)


FOLDERS = ("arc", "openbookqa", "piqa", "winogrande")
CHOICES = [name for name in harness.LOCAL_TASKS if name not in ("local_gsm8k", "local_wikitext")]
"""The local tasks that ask to choose."""


@pytest.fixture
def few_tasks(monkeypatch):
    """The harness's own questions with choices beside the local tasks: to find all its tasks takes it half a minute."""
    own = Path(lm_eval.tasks.__file__).parent
    folders = [str(Path(harness.__file__).parent / "tasks"), *(str(own / name) for name in FOLDERS)]
    manager = partial(lm_eval.tasks.TaskManager, include_path=folders, include_defaults=False)
    monkeypatch.setattr(harness, "task_manager", lambda names, data: manager(metadata={"data_directory": str(data)}))


def test_an_unknown_task_is_answered_with_the_closest_names(few_tasks):
    with pytest.raises(UserError, match="no task 'pika'; close names are piqa"):
        evaluate(tiny_model(), tiny_tokenizer(), ["pika"])


def test_without_the_hub_the_local_task_is_named(few_tasks, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"piqa cannot be loaded .*reach it.*; local_piqa is the same task on local"):
        evaluate(tiny_model(), tiny_tokenizer(), ["piqa"])


def asked(monkeypatch, *arguments, **options):
    """Evaluate a tiny model, and return the evaluation and every context with its continuation."""
    requests = []
    score = LoadedLanguageModel.loglikelihood

    def noted(self, instances, disable_tqdm=False):
        requests.extend(instance.args for instance in instances)
        return score(self, instances, disable_tqdm=disable_tqdm)

    with monkeypatch.context() as patch:
        patch.setattr(LoadedLanguageModel, "loglikelihood", noted)
        return evaluate(tiny_model(positions=1024), tiny_tokenizer(), *arguments, **options), requests


def check_against_the_harness(task, data, monkeypatch, limit=None):
    """Assert that a local task and the harness's own ask and find the same on the documents in `data`."""
    original_name = harness.LOCAL_TASKS[task]
    rows = getattr(documents, original_name)(str(data))
    with monkeypatch.context() as patch:
        patch.setattr("datasets.load_dataset", lambda *_, **__: {"train": None} | rows)
        original, original_requests = asked(patch, [original_name], limit=limit)
    local, requests = asked(monkeypatch, [task], data=data, limit=limit)
    assert requests == original_requests
    assert any(0 < score.value < 1 for score in local.scores)
    assert [dataclasses.replace(s, task=original_name) for s in local.scores] == list(original.scores)
    assert [s.terms.tolist() for s in local.scores] == [s.terms.tolist() for s in original.scores]
    assert list(local.versions.values()) == list(original.versions.values())
    assert list(local.few_shot.values()) == list(original.few_shot.values())


@pytest.mark.parametrize("task", CHOICES)
def test_the_local_task_asks_and_finds_what_the_harness_s_own_does(task, few_tasks, data, monkeypatch):
    check_against_the_harness(task, data, monkeypatch)


@needs_shared_data
@pytest.mark.parametrize("task", CHOICES)
def test_the_local_task_asks_what_the_harness_s_own_does_of_the_published_questions(task, few_tasks, monkeypatch):
    check_against_the_harness(task, SHARED_DATA, monkeypatch, limit=20)


def test_a_blank_is_filled_and_the_text_after_it_is_scored(data, monkeypatch):
    row = {"sentence": "water paper _ pig cage.", "option1": "cage", "option2": "drawer", "answer": "2"}
    write_rows(data / "winogrande/validation.jsonl", [row])
    evaluation, requests = asked(monkeypatch, ["local_winogrande"], data=data)
    assert requests == [("water paper cage", " pig cage."), ("water paper drawer", " pig cage.")]
    model, tokenizer = tiny_model(), tiny_tokenizer()
    likelihoods = []
    for option in ("cage", "drawer"):
        whole, rest = (tokenizer.encode(text) for text in (f"water paper {option} pig cage.", " pig cage."))
        assert whole[-len(rest) :] == rest
        likelihoods.append(log_likelihood(model, whole, len(rest)))
    assert [(s.metric, s.value) for s in evaluation.scores] == [("acc", float(likelihoods[1] > likelihoods[0]))]


def test_without_the_harness_the_line_to_install_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.evaluator", raising=False)
    with pytest.raises(UserError, match=r'pip install "revformers\[lab\]"'):
        evaluate(tiny_model(), tiny_tokenizer(), ["local_piqa"])


def test_a_group_has_the_documents_of_its_tasks():
    def samples(task, values):
        return [{"filter": "none", "acc": v, "doc_hash": f"{task}{i}"} for i, v in enumerate(values)]

    output = {
        "results": {"all": {"alias": "all", "acc,none": 0.5, "acc_stderr,none": "N/A"}, "a": {"acc,none": 1.0}},
        "samples": {"a": samples("a", [1.0, 1.0]), "b": samples("b", [0.0, 0.0, 1.0, 0.0])},
        "group_subtasks": {"all": ["inner", "a"], "inner": ["b"]},
        "higher_is_better": {"a": {"acc": True}, "b": {"acc": True}},
    }
    group, task = read_scores(output, {"a": {"acc": "mean"}, "b": {"acc": "mean"}})
    assert sorted(group.documents) == ["a0", "a1", "b0", "b1", "b2", "b3"]
    assert group.standard_error == pytest.approx(mean_stderr([1, 1, 0, 0, 1, 0]))
    assert (task.task, task.value, task.documents) == ("a", 1.0, ("a0", "a1"))
    output["results"]["all"]["acc,none"] = (1 + 0.25) / 2  # a mean of means: no function of the documents' terms
    group, _ = read_scores(output, {"a": {"acc": "mean"}, "b": {"acc": "mean"}})
    assert (group.value, group.standard_error) == (0.625, None)


@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="needs the shared models")
def test_a_trained_model_on_piqa():
    path = SHARED / "models/stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    scores = scores_of(evaluate(model, tokenizer, ["local_piqa"], data=SHARED_DATA, limit=20))
    assert scores["acc", "none"].value == pytest.approx(0.40)
    assert scores["acc_norm", "none"].value == pytest.approx(0.50)
    assert len(scores["acc", "none"].documents) == 20
