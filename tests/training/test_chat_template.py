import pytest

from revformers.data.tokenizer import train_tokenizer
from revformers.errors import UserError
from revformers.training.chat_template import ChatTemplate

MARKED = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def template():
    """A function that returns the chat template of a tokenizer from its text."""
    tokenizer = train_tokenizer(["a small text"], 300)

    def of(text):
        tokenizer.chat_template = text
        return ChatTemplate(tokenizer)

    return of


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        (MARKED, True),
        (PLAIN, False),
        (PLAIN + "{# {% generation %}{% endgeneration %} #}", False),
        (PLAIN + "{{ '{% generation %}' }}", False),
        (PLAIN + "{% set generation = 1 %}", False),
    ],
)
def test_only_the_tag_marks_the_assistant(template, text, marks):
    assert template(text).marks_the_assistant() == marks


def test_what_is_no_template_is_one_sentence(template):
    with pytest.raises(UserError, match=r"^The chat template cannot be read: .*; correct it"):
        template("{{ 'a").marks_the_assistant()


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("{{ m.title }}", True),
        ("{{ m['title'] }}", True),
        ("{% if 'title' in m %}a{% endif %}", True),
        ("{{ m.get('title') }}", True),
        ("{{ messages | map(attribute='role') | list }}{{ messages | selectattr('title') | list }}", True),
        ("{{ 'title' }}{# m.title #}", False),
        ("{{ m.content.title() }}", False),
    ],
)
def test_a_field_is_read_where_the_syntax_tree_has_it(template, text, reads):
    assert template(text).reads("title") == reads


def test_a_conversation_trains_where_a_token_is_marked(template):
    said, silent = [[{"role": "assistant", "content": text}] for text in ("small", "")]
    assert template(MARKED).trains(said)
    assert not template(MARKED).trains(silent)
