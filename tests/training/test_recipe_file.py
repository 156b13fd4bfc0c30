from pathlib import Path

import pytest

from revformers.errors import UserError
from revformers.training.finetune_recipe import load_finetune_recipe
from revformers.training.recipe import Recipe, load_recipe
from revformers.training.recipe_file import parse_yaml, split_options


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "name.yaml"
        path.write_text(text)
        return path

    return write


def test_fields_left_out_keep_their_defaults_and_the_file_names_the_run(written):
    recipe = load_recipe(written("training: {max_steps: 7}"))
    assert recipe.training.max_steps == 7
    assert recipe.data == Recipe().data
    assert recipe.output == str(Path("runs") / "name")


def test_overrides_as_values_and_as_words_agree(written):
    path = written("model: {config: {hidden_size: 8, num_hidden_layers: 2}}")
    by_value = load_recipe(
        path,
        {
            "training.learning_rate": 1e-4,
            "model.config.hidden_size": 16,
            "dynamics.options": {"step_size": 0.5},
            "sample.prompts": ["a b", "c"],
            "data.streaming": True,
            "data.tokenizer": "none",
        },
    )
    words = ["--training.learning-rate=1e-4", "--model.config.hidden_size", "16", "--dynamics.options.step_size", "0.5"]
    words += [
        "--sample.prompts",
        "a b",
        "c",
        "--data.streaming",
        "--data.tokenizer",
        "gpt2",
        "--data.tokenizer",
        "none",
    ]
    by_words = load_recipe(path, words)
    assert by_words.training.learning_rate == 1e-4
    assert by_words.model.config == {"hidden_size": 16, "num_hidden_layers": 2}
    assert by_words.dynamics.options == {"step_size": 0.5}
    assert by_words.sample.prompts == ("a b", "c")
    assert by_words.data.streaming is True
    assert by_words.data.tokenizer is None
    assert by_value.data.tokenizer == "none"  # only words need reading; a Python value means itself
    assert by_value.model == by_words.model
    assert by_value.training == by_words.training
    assert by_value.sample == by_words.sample


@pytest.mark.parametrize("word", ["none", "null", "None", "~"])
def test_none_in_a_recipe_leaves_a_number_out(word, written):
    """What a message tells to set, such as conversion.bits to none, can be set in the file too."""
    assert load_recipe(written(f"loss: {{chunk: {word}}}")).loss.chunk is None


@pytest.mark.parametrize("text", ["1e-3", "1E5", "-2.5e-1", ".5e2"])
def test_exponents_are_numbers(text):
    assert parse_yaml(text) == float(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {max_step: 5}", "section 'training' has no 'max_step'; did you mean 'max_steps'?"),
        ("trainings: {max_steps: 5}", "a recipe has no 'trainings'; did you mean 'training'?"),
        ("training: {max_steps: five}", "'training.max_steps' takes a whole number, not 'five'"),
        ("training: {max_steps: true}", "'training.max_steps' takes a whole number, not 'True'"),
        ("training: {max_steps: 2.5}", "'training.max_steps' takes a whole number"),
        ("training: {max_steps: 0}", "training.max_steps must be at least 1, not 0"),
        ("training: {learning_rate: fast}", "'training.learning_rate' takes a number, not 'fast'"),
        ("training: {learning_rate: 1e99999999}", "'training.learning_rate' takes a finite number, not 'inf'"),
        (f"training: {{learning_rate: 1{'0' * 400}}}", "'training.learning_rate' takes a finite number, not '10000"),
        (f"training: {{seed: 1{'0' * 5000}}}", "is not YAML: it cannot be read (Exceeds the limit"),
        ("model: {architecture: 2026-13-01}", "is not YAML: it cannot be read (month must be in"),
        ("a: " + "[" * 3000, "is not YAML: it cannot be read (maximum recursion"),
        ("training: 5", "'training' is a section with fields of its own, not '5'"),
        ("model: {dtype: float8}", "'model.dtype' takes one of float32, bfloat16, not 'float8'"),
        ("model: {config: 5}", "'model.config' is a section"),
        ("data: {streaming: 3}", "'data.streaming' takes true or false, not '3'"),
        ("data: {block_length: 1}", "data.block_length must be at least 2, not 1"),
        ("data: {validation_fraction: 1.5}", "data.validation_fraction must be in"),
        ("sample: {prompts: def}", "'sample.prompts' takes a list of texts, not 'def'"),
        ("output: [a]", "'output' takes a text"),
        ("- a", "does not hold the sections of a recipe"),
        ("a: [", "is not YAML"),
        (
            "training: {max_steps: 7}\ndata: {}\ntraining:\n  seed: 3",
            "gives 'training' twice in one section, in line 1 and l",
        ),
        ("training:\n  seed: 1\n  'seed': 2", "gives 'seed' twice in one section, in line 2 and line 3"),
        ("model: {config: {a: {b: 1, b: 1}}}", "gives 'b' twice in one section, in line 1 and line 1"),
        ("training: {max_steps: 0100}", "0100 in line 1 may be a number of base 8"),
        ("training: {max_steps: 1:30}", "1:30 in line 1 may be a number of base 8 or 60"),
        ("training: {learning_rate: 1:30.5}", "1:30.5 in line 1 may be a number of base 60"),
        ("training: &a\n  arguments: *a", "*a in line 2 stands inside &a itself"),
        ("training: {arguments: &a [1, *a]}", "*a in line 1 stands inside &a itself"),
        ('output: "a\\0b"', "the text in line 1 holds a character that no text may hold"),
        ('output: "a\\ud800b"', "the text in line 1 holds a character that no text may hold"),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(written, text, message):
    path = written(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if "must be" not in message:
        assert str(path) in str(caught.value)


def test_what_is_written_once_and_in_base_ten_is_read(written):
    text = (
        "training: &a {max_steps: 1_000, seed: 0, adam_beta1: 0.5, arguments: {x: &b [0x10, -0], y: *b, z: '0100'}}\n"
        "model: {config: {<<: {q: 1, r: 2}, q: 3}, seed: 0}"
    )
    recipe = load_recipe(written(text))
    assert (recipe.training.max_steps, recipe.training.adam_beta1) == (1000, 0.5)
    assert recipe.training.arguments == {"x": [16, 0], "y": [16, 0], "z": "0100"}
    assert recipe.model.config == {"q": 3, "r": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.steps", "5"], "section 'training' has no 'steps'"),
        (["--training.max_steps", "x"], "'training.max_steps' takes a whole number, not 'x'"),
        (["--output", "a", "--output.b", "c"], "'output' in 'output.b' has a value"),
        (["5"], "'5' follows no option"),
        (["--max_steps", "5"], r"a recipe has no 'max_steps'; did you mean 'training\.max_steps'\?"),
        (["--training.max_steps", "0100"], r"'0100' on the command line is not YAML: 0100 in line 1 may be a number"),
        (["--model.config.hidden_size", "{a}:"], r"'\{a\}:' on the command line is not YAML"),
    ],
)
def test_wrong_options_are_named(written, words, message):
    with pytest.raises(UserError, match=message):
        load_recipe(written("{}"), words)


def test_a_template_on_the_command_line_is_a_text(written):
    words = ["--data.columns.prompt", "{instruction}", "--data.columns.completion", "{output}: yes"]
    columns = load_finetune_recipe(written("{}"), words).data.columns
    assert columns == {"prompt": "{instruction}", "completion": "{output}: yes"}


def test_a_missing_recipe_is_named():
    with pytest.raises(FileNotFoundError, match=r"There is no recipe 'nowhere\.yaml'"):
        load_recipe("nowhere.yaml")


def test_a_negative_number_is_a_value_and_not_an_option():
    assert split_options(["--a", "-1", "--b"]) == {"a": ("-1",), "b": ()}
