"""What each argument of transformers' TrainingArguments and of TRL's SFTConfig does in a recipe.

An argument is passed on to the Trainer, or refused because the recipe has a field for it, or because it would change in
silence what a run promises. A test compares the table with the installed libraries, and another renders it in the
documentation.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from revformers.training.recipe import TrainerSection


@dataclass(frozen=True)
class Argument:
    """An argument of the Trainer in ``training.arguments``.

    Attributes:
        remedy: for an argument that a recipe refuses, what to do instead, and why; empty if it is passed on.
        values: the values that a recipe accepts; empty for all values of its type.
        note: what it does in a recipe, if that is not all that its documentation says.
        in_your_trainer: what it does to a reversible model in a Trainer of your own, if that is not what it does to
            others.

    """

    remedy: str = ""
    values: tuple[str, ...] = ()
    note: str = ""
    in_your_trainer: str = ""


def set_by(field: str, in_your_trainer: str = "") -> Argument:
    """Return an argument that another field of a recipe decides."""
    return Argument(f"set {field} instead", in_your_trainer=in_your_trainer)


def refused(reason: str, in_your_trainer: str = "") -> Argument:
    """Return an argument that a recipe refuses for this reason."""
    return Argument(f"leave it out: {reason}", in_your_trainer=in_your_trainer)


AS_USUAL = Argument()
NO_METRICS = Argument(note="has no effect, as a command computes no metric but the loss")
SCRIPTS_ONLY = Argument(note="has no effect")

LEVELS = ("debug", "detail", "info", "warning", "error", "critical", "passive")

OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_32bit",
    "rmsprop_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
)
"""The optimizers with which recipes are tested; those of bitsandbytes and torchao need the extra "quantize"."""

CHECKPOINTING = set_by(
    "{activations} to checkpoint", in_your_trainer="ignored with a warning: the activation policy decides"
)
COMPILING = refused(
    "it compiles no layer of a reversible network; revformers.compile_layers does, in a script of your own",
    in_your_trainer="compiles no layer, with a warning; call `revformers.compile_layers(model)` first",
)
LIGER = refused(
    "it replaces the forward pass that loss.head reads, and the chunked head already saves the memory of the logits",
    in_your_trainer="bypasses `set_head_loss` and `ReversibleCallback`, which warns",
)
ROUNDS_WEIGHTS = refused(
    "an evaluation outside of training would round the weights themselves; training.precision holds for evaluations",
    in_your_trainer="rounds the weights themselves in an `evaluate` outside of `train`, as for every model",
)
SHARDING = refused("a command holds the whole model in every process; shard it in a script of your own")
UPLOADING = refused("upload the model in the run directory when it is finished, as in: hf upload NAME RUN/model")

TRAINING_ARGUMENTS: Mapping[str, Argument] = {
    # what a run is
    "output_dir": set_by("output"),
    **{field.name: set_by(f"training.{field.name}") for field in dataclasses.fields(TrainerSection)},
    "num_train_epochs": Argument(
        "set training.max_steps instead: the epochs times the training sequences (records, or blocks of a text), "
        "divided by the sequences of a step, which are training.per_device_train_batch_size times "
        "training.gradient_accumulation_steps times the number of processes"
    ),
    "auto_find_batch_size": refused(
        "a run would take other batches than the recipe says; revformers plan predicts the largest one"
    ),
    "resume_from_checkpoint": Argument("give --resume instead"),
    "do_train": SCRIPTS_ONLY,
    "do_eval": SCRIPTS_ONLY,
    "do_predict": SCRIPTS_ONLY,
    "full_determinism": AS_USUAL,
    "data_seed": AS_USUAL,
    # the optimizer and the loss
    "optim": Argument(values=OPTIMIZERS),
    "optim_args": AS_USUAL,
    "optim_target_modules": refused("no optimizer that a recipe accepts reads it"),
    "adam_epsilon": AS_USUAL,
    "lr_scheduler_kwargs": AS_USUAL,
    "label_smoothing_factor": refused(
        "the Trainer would compute that loss itself, without a teacher, and report it as the validation loss too",
        in_your_trainer="computes the loss from all logits; refused if `set_head_loss` gave a teacher or weights",
    ),
    "average_tokens_across_devices": Argument(note="validation losses do not depend on it"),
    "neftune_noise_alpha": Argument(note="the noise enters before the first layer, and a teacher reads none"),
    # precision and memory
    "bf16": set_by("training.precision"),
    "fp16": set_by("training.precision"),
    "bf16_full_eval": ROUNDS_WEIGHTS,
    "fp16_full_eval": ROUNDS_WEIGHTS,
    "tf32": AS_USUAL,
    "activation_checkpointing": CHECKPOINTING,
    "activation_checkpointing_kwargs": CHECKPOINTING,
    "gradient_checkpointing": CHECKPOINTING,
    "gradient_checkpointing_kwargs": CHECKPOINTING,
    "torch_compile": COMPILING,
    "torch_compile_backend": COMPILING,
    "torch_compile_mode": COMPILING,
    "use_liger_kernel": LIGER,
    "liger_kernel_config": LIGER,
    "use_cache": refused(
        "training reads no key-value cache",
        in_your_trainer="set to False, with a warning, in passes whose layers are evaluated again",
    ),
    "torch_empty_cache_steps": AS_USUAL,
    # the log
    "logging_strategy": set_by("training.logging_steps"),
    "logging_first_step": AS_USUAL,
    "logging_nan_inf_filter": Argument(
        note="is false by default, so that a loss that is not finite shows and ends the run"
    ),
    "log_on_each_node": AS_USUAL,
    "log_level": Argument(values=LEVELS),
    "log_level_replica": Argument(values=LEVELS),
    "disable_tqdm": refused("a command shows its own progress"),
    "report_to": Argument(note="the package must be installed, which is checked before the model is loaded"),
    "run_name": AS_USUAL,
    "project": AS_USUAL,
    "trackio_space_id": AS_USUAL,
    "trackio_bucket_id": AS_USUAL,
    "trackio_static_space_id": AS_USUAL,
    "include_num_input_tokens_seen": refused("metrics.json counts the tokens"),
    "skip_memory_metrics": AS_USUAL,
    "debug": AS_USUAL,
    # the evaluation
    "eval_strategy": set_by("training.eval_steps"),
    "eval_delay": refused("evaluations come every training.eval_steps steps from the beginning"),
    "eval_on_start": AS_USUAL,
    "eval_accumulation_steps": NO_METRICS,
    "eval_do_concat_batches": NO_METRICS,
    "eval_use_gather_object": NO_METRICS,
    "prediction_loss_only": NO_METRICS,
    "include_for_metrics": NO_METRICS,
    "batch_eval_metrics": NO_METRICS,
    "label_names": refused("the labels of every recipe's data are called labels"),
    # checkpoints
    "save_strategy": Argument(
        values=("steps", "no"), note="no: only Ctrl-C and SIGTERM leave a checkpoint to resume from"
    ),
    "save_only_model": refused(
        "a resumed run would begin with a new optimizer and the first data",
        in_your_trainer="a resumed run begins with a new optimizer, as for every model",
    ),
    "save_on_each_node": refused("all nodes share the run directory"),
    "enable_jit_checkpoint": refused("Ctrl-C and SIGTERM leave a checkpoint in any case"),
    "load_best_model_at_end": Argument(
        note="training.save_steps must equal training.eval_steps; evaluations up to annealing.steps do not count"
    ),
    "metric_for_best_model": refused("the validation loss decides"),
    "greater_is_better": refused("the validation loss decides"),
    "ignore_data_skip": refused("a resumed run reads the data that an uninterrupted one would read"),
    "restore_callback_states_from_checkpoint": refused("--resume restores the whole state of a run"),
    # the hub
    "push_to_hub": Argument(UPLOADING.remedy, in_your_trainer="uploads what loads again"),
    "hub_model_id": UPLOADING,
    "hub_strategy": UPLOADING,
    "hub_token": UPLOADING,
    "hub_private_repo": UPLOADING,
    "hub_always_push": UPLOADING,
    "hub_revision": UPLOADING,
    # the data loader
    "dataloader_drop_last": refused("it would drop validation data too"),
    "dataloader_in_order": refused("batches would come in an order that no other run repeats"),
    "dataloader_pin_memory": AS_USUAL,
    "dataloader_persistent_workers": AS_USUAL,
    "dataloader_prefetch_factor": AS_USUAL,
    "dataloader_multiprocessing_context": AS_USUAL,
    "remove_unused_columns": Argument(note="has no effect, as the data hold no other columns"),
    "train_sampling_strategy": Argument(
        values=("random", "sequential"),
        note="group_by_length is refused: a resumed run would read the data in another order",
    ),
    "length_column_name": refused("no data of a recipe have such a column"),
    # devices and processes
    "use_cpu": AS_USUAL,
    "accelerator_config": refused("it changes which sequences a step and an evaluation read"),
    "parallelism_config": SHARDING,
    "fsdp": SHARDING,
    "fsdp_config": SHARDING,
    "deepspeed": SHARDING,
    "ddp_find_unused_parameters": AS_USUAL,
    "ddp_bucket_cap_mb": AS_USUAL,
    "ddp_broadcast_buffers": AS_USUAL,
    "ddp_static_graph": AS_USUAL,
    "ddp_backend": AS_USUAL,
    "ddp_timeout": Argument(note="has no effect on CPUs, where transformers does not pass it on"),
    "local_rank": refused("torchrun sets it"),
}
"""The fields of transformers.TrainingArguments."""

OTHER_MODEL = refused("the model section names the model, and no remote code runs")
NOT_PACKED = refused("prompts and conversations are not packed")

PROMPT_ARGUMENTS: Mapping[str, Argument] = {
    "model_init_kwargs": OTHER_MODEL,
    "trust_remote_code": OTHER_MODEL,
    "router_aux_loss_coef": refused("the weight of the auxiliary loss is that of the model's own config.json"),
    "chat_template_path": set_by("model.tokenizer to a tokenizer with that template"),
    "eos_token": set_by("model.tokenizer to a tokenizer with that token"),
    "pad_token": refused("padding reaches neither the loss nor the other tokens"),
    "dataset_text_field": set_by("data.columns"),
    "dataset_kwargs": set_by("the data section"),
    "dataset_num_proc": AS_USUAL,
    "max_length": set_by("data.block_length"),
    "truncation_mode": Argument(values=("keep_start", "keep_end")),
    "shuffle_dataset": AS_USUAL,
    "packing": NOT_PACKED,
    "packing_strategy": NOT_PACKED,
    "eval_packing": NOT_PACKED,
    "padding_free": NOT_PACKED,
    "pad_to_multiple_of": AS_USUAL,
    "completion_only_loss": set_by("data.form"),
    "assistant_only_loss": set_by("data.form"),
    "loss_type": set_by("the loss section"),
    "activation_offloading": set_by("{activations} to offload"),
}
"""The further fields of trl.SFTConfig, for prompts and conversations; a recipe of text has none of them."""

ARGUMENTS: Mapping[str, Argument] = {**TRAINING_ARGUMENTS, **PROMPT_ARGUMENTS}

FORMER: Mapping[str, str] = {
    "evaluation_strategy": "set training.eval_steps",
    "group_by_length": ARGUMENTS["train_sampling_strategy"].note,
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "max_seq_length": "set data.block_length",
    "no_cuda": "set training.arguments.use_cpu",
    "overwrite_output_dir": "give --overwrite",
    "per_gpu_eval_batch_size": "set training.per_device_eval_batch_size",
    "per_gpu_train_batch_size": "set training.per_device_train_batch_size",
    "warmup_ratio": "set training.warmup_steps to a fraction below 1",
    **dict.fromkeys(
        (
            "dispatch_batches",
            "fp16_backend",
            "fp16_opt_level",
            "half_precision_backend",
            "include_inputs_for_metrics",
            "include_tokens_per_second",
            "jit_mode_eval",
            "mp_parameters",
            "past_index",
            "push_to_hub_token",
            "ray_scope",
            "split_batches",
            "torchdynamo",
            "tpu_num_cores",
            "use_ipex",
            "use_legacy_prediction_loop",
            "use_mps_device",
        ),
        "leave it out: transformers 5 no longer has it",
    ),
}
"""Names of arguments of earlier releases, and what to do instead."""
