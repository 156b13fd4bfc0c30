"""What the author of a recipe can put right."""


class RecipeError(ValueError):
    """A recipe, an option or the data it names cannot be used; the message is one sentence that says what to change."""
