"""The chat template of a tokenizer: what it writes, reads and marks."""

import itertools
from functools import cache
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from revformers.data.placed_records import Record
from revformers.errors import UserError, reason_of


class ChatTemplate:
    """The chat template of a tokenizer, or one that stands for it in training, and what it writes.

    A tokenizer can have several, of which tools select one.

    Attributes:
        replacement: the template that stands for the tokenizer's; None for its own.
        assistant_only: whether the loss covers only what the assistant says, which the template must then mark.

    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, replacement: str | None = None, assistant_only: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self.replacement = replacement
        self.assistant_only = assistant_only

    def write(self, messages: list[Record], tools: list[Any] | None = None) -> str:
        """Return the text of a conversation; a template can raise anything."""
        return str(
            self._tokenizer.apply_chat_template(messages, tools=tools, chat_template=self.replacement, tokenize=False)
        )

    def marks_the_assistant(self, tools: list[Any] | None = None) -> bool:
        """Whether the template marks what the assistant says; raise UserError if it is not a template."""
        try:
            return _has_generation_tag(self._template(tools))
        except TemplateSyntaxError as error:
            raise UserError(
                f"The chat template cannot be read: {reason_of(error)}; correct it, or set model.tokenizer to another."
            ) from error

    def trains(self, messages: list[Record], tools: list[Any] | None = None) -> bool:
        """Whether a token of a conversation is marked as one that the assistant says."""
        try:
            encoded: Any = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.replacement,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
        except OverflowError:
            # transformers 5.17 raises it, in training too, where a text begins with an empty turn.
            return False
        return 1 in encoded["assistant_masks"]

    def reads(self, field: str, tools: list[Any] | None = None) -> bool:
        """Whether the template reads a field of this name, if only in some messages, as of the last turn alone."""
        return field in _fields_read(self._template(tools))

    def _template(self, tools: list[Any] | None) -> str:
        return self._tokenizer.get_chat_template(self.replacement, tools=tools)


@cache
def _fields_read(template: str) -> frozenset[str]:
    """Return the names of the attributes and items that a template reads."""
    tree = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"]).parse(template)
    methods = {id(call.node) for call in tree.find_all(nodes.Call)}
    names = {node.attr for node in tree.find_all(nodes.Getattr) if id(node) not in methods}
    keys = [node.arg for node in tree.find_all(nodes.Getitem)]  # message["name"]
    keys += [node.expr for node in tree.find_all(nodes.Compare)]  # "name" in message
    keys += [key for node in tree.find_all(nodes.Call) for key in node.args]  # message.get("name")
    keys += [key for node in tree.find_all(nodes.Filter) for key in node.args]  # messages | selectattr("name")
    return frozenset(names | {key.value for key in keys if isinstance(key, nodes.Const) and isinstance(key.value, str)})


@cache
def _has_generation_tag(template: str) -> bool:
    """Return whether a template has the tag; comments and texts, which may hold the same words, do not count."""
    parts = [(kind, value) for _, kind, value in Environment().lex(template) if kind != "whitespace"]
    return any(kind == "block_begin" and tag == ("name", "generation") for (kind, _), tag in itertools.pairwise(parts))


class _Generation(Extension):
    """The tag of transformers' chat templates around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - as in the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
