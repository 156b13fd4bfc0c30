"""Changes to other libraries, one file a library, by which a reversible model stays itself in them.

Each is a function around one of theirs, put there when that library is imported, before or after revformers. All of
them leave ordinary models to the library. `docs/reference/integrations.md` lists them.
"""

from wrapt import register_post_import_hook

from revformers.integrations import modeling, peft, trainer, trl


def register() -> None:
    """Extend the libraries that are imported already, and the others as soon as they are."""
    register_post_import_hook(modeling.extend, "transformers.modeling_utils")
    register_post_import_hook(trainer.extend, "transformers.trainer")
    register_post_import_hook(trl.extend_references, "trl.trainer.utils")
    register_post_import_hook(trl.extend_cards, "trl.trainer.base_trainer")
    register_post_import_hook(trl.extend_generation, "trl.generation.vllm_generation")
    register_post_import_hook(peft.extend_configs, "peft.config")
    register_post_import_hook(peft.extend_models, "peft.peft_model")
    register_post_import_hook(peft.extend_swapping, "peft.utils.hotswap")
    register_post_import_hook(peft.extend_transformers, "transformers.integrations.peft")


__all__ = ["register"]
