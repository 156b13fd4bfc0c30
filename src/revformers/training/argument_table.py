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
        own: what it does to a reversible model in a Trainer of one's own, if that is not what it does to others.

    """

    remedy: str = ""
    values: tuple[str, ...] = ()
    note: str = ""
    own: str = ""


def instead(field: str, own: str = "") -> Argument:
    """Return an argument that another field of a recipe decides."""
    return Argument(f"set {field} instead", own=own)


def without(reason: str, own: str = "") -> Argument:
    """Return an argument that a recipe refuses for this reason."""
    return Argument(f"leave it out: {reason}", own=own)


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

CHECKPOINTING = instead("{activations} to checkpoint", own="ignored with a warning: the activation policy decides")
COMPILING = without(
    "it compiles no layer of a reversible network; revformers.compile_layers does, in a script of your own",
    own="compiles no layer, with a warning; call `revformers.compile_layers(model)` first",
)
LIGER = without(
    "it replaces the forward pass that loss.head reads, and the chunked head already saves the memory of the logits",
    own="bypasses `set_head_loss` and `ReversibleCallback`, which warns",
)
ROUNDS_WEIGHTS = without(
    "an evaluation outside of training would round the weights themselves; training.precision holds for evaluations",
    own="rounds the weights themselves in an `evaluate` outside of `train`, as for every model",
)
SHARDING = without("a command holds the whole model in every process; shard it in a script of your own")
UPLOADING = without("upload the model in the run directory when it is finished, as in: hf upload NAME RUN/model")

TRAINING_ARGUMENTS: Mapping[str, Argument] = {
    # what a run is
    "output_dir": instead("output"),
    **{field.name: instead(f"training.{field.name}") for field in dataclasses.fields(TrainerSection)},
    "num_train_epochs": Argument(
        "set training.max_steps instead: the epochs times the training sequences (records, or blocks of a text), "
        "divided by the sequences of a step, which are training.per_device_train_batch_size times "
        "training.gradient_accumulation_steps times the number of processes"
    ),
    "auto_find_batch_size": without(
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
    "optim_target_modules": without("no optimizer that a recipe accepts reads it"),
    "adam_epsilon": AS_USUAL,
    "lr_scheduler_kwargs": AS_USUAL,
    "label_smoothing_factor": without(
        "the Trainer would compute that loss itself, without a teacher, and report it as the validation loss too",
        own="computes the loss from all logits; refused if it would drop a teacher or weights of `set_head_loss`",
    ),
    "average_tokens_across_devices": Argument(note="validation losses do not depend on it"),
    "neftune_noise_alpha": Argument(note="the noise enters before the first layer, and a teacher reads none"),
    # precision and memory
    "bf16": instead("training.precision"),
    "fp16": instead("training.precision"),
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
    "use_cache": without(
        "training reads no key-value cache",
        own="set to False, with a warning, in passes whose layers are evaluated again",
    ),
    "torch_empty_cache_steps": AS_USUAL,
    # the log
    "logging_strategy": instead("training.logging_steps"),
    "logging_first_step": AS_USUAL,
    "logging_nan_inf_filter": AS_USUAL,
    "log_on_each_node": AS_USUAL,
    "log_level": Argument(values=LEVELS),
    "log_level_replica": Argument(values=LEVELS),
    "disable_tqdm": without("a command shows its own progress"),
    "report_to": Argument(note="the package must be installed, which is checked before the model is loaded"),
    "run_name": AS_USUAL,
    "project": AS_USUAL,
    "trackio_space_id": AS_USUAL,
    "trackio_bucket_id": AS_USUAL,
    "trackio_static_space_id": AS_USUAL,
    "include_num_input_tokens_seen": without("metrics.json counts the tokens"),
    "skip_memory_metrics": AS_USUAL,
    "debug": AS_USUAL,
    # the evaluation
    "eval_strategy": instead("training.eval_steps"),
    "eval_delay": without("evaluations come every training.eval_steps steps from the beginning"),
    "eval_on_start": AS_USUAL,
    "eval_accumulation_steps": NO_METRICS,
    "eval_do_concat_batches": NO_METRICS,
    "eval_use_gather_object": NO_METRICS,
    "prediction_loss_only": NO_METRICS,
    "include_for_metrics": NO_METRICS,
    "batch_eval_metrics": NO_METRICS,
    "label_names": without("the labels of every recipe's data are called labels"),
    # checkpoints
    "save_strategy": Argument(
        values=("steps", "no"), note="no: only Ctrl-C and SIGTERM leave a checkpoint to resume from"
    ),
    "save_only_model": without(
        "a resumed run would begin with a new optimizer and the first data",
        own="a resumed run begins with a new optimizer, as for every model",
    ),
    "save_on_each_node": without("all nodes share the run directory"),
    "enable_jit_checkpoint": without("Ctrl-C and SIGTERM leave a checkpoint in any case"),
    "load_best_model_at_end": Argument(
        note="training.save_steps must equal training.eval_steps; evaluations up to annealing.steps do not count"
    ),
    "metric_for_best_model": without("the validation loss decides"),
    "greater_is_better": without("the validation loss decides"),
    "ignore_data_skip": without("a resumed run reads the data that an uninterrupted one would read"),
    "restore_callback_states_from_checkpoint": without("--resume restores the whole state of a run"),
    # the hub
    "push_to_hub": Argument(UPLOADING.remedy, own="uploads what loads again"),
    "hub_model_id": UPLOADING,
    "hub_strategy": UPLOADING,
    "hub_token": UPLOADING,
    "hub_private_repo": UPLOADING,
    "hub_always_push": UPLOADING,
    "hub_revision": UPLOADING,
    # the data loader
    "dataloader_drop_last": without("it would drop validation data too"),
    "dataloader_in_order": without("batches would come in an order that no other run repeats"),
    "dataloader_pin_memory": AS_USUAL,
    "dataloader_persistent_workers": AS_USUAL,
    "dataloader_prefetch_factor": AS_USUAL,
    "dataloader_multiprocessing_context": AS_USUAL,
    "remove_unused_columns": Argument(note="has no effect, as the data hold no other columns"),
    "train_sampling_strategy": Argument(
        values=("random", "sequential"),
        note="group_by_length is refused: a resumed run would read the data in another order",
    ),
    "length_column_name": without("no data of a recipe have such a column"),
    # devices and processes
    "use_cpu": AS_USUAL,
    "accelerator_config": without("it changes which sequences a step and an evaluation read"),
    "parallelism_config": SHARDING,
    "fsdp": SHARDING,
    "fsdp_config": SHARDING,
    "deepspeed": SHARDING,
    "ddp_find_unused_parameters": AS_USUAL,
    "ddp_bucket_cap_mb": AS_USUAL,
    "ddp_broadcast_buffers": AS_USUAL,
    "ddp_static_graph": AS_USUAL,
    "ddp_backend": AS_USUAL,
    "ddp_timeout": AS_USUAL,
    "local_rank": without("torchrun sets it"),
}
"""The fields of transformers.TrainingArguments."""

OTHER_MODEL = without("the model section names the model, and no remote code runs")
NOT_PACKED = without("prompts and conversations are not packed")

PROMPT_ARGUMENTS: Mapping[str, Argument] = {
    "model_init_kwargs": OTHER_MODEL,
    "trust_remote_code": OTHER_MODEL,
    "router_aux_loss_coef": without("the weight of the auxiliary loss is that of the model's own config.json"),
    "chat_template_path": instead("model.tokenizer to a tokenizer with that template"),
    "eos_token": instead("model.tokenizer to a tokenizer with that token"),
    "pad_token": without("padding reaches neither the loss nor the other tokens"),
    "dataset_text_field": instead("data.columns"),
    "dataset_kwargs": instead("the data section"),
    "dataset_num_proc": AS_USUAL,
    "max_length": instead("data.block_length"),
    "truncation_mode": Argument(values=("keep_start", "keep_end")),
    "shuffle_dataset": AS_USUAL,
    "packing": NOT_PACKED,
    "packing_strategy": NOT_PACKED,
    "eval_packing": NOT_PACKED,
    "padding_free": NOT_PACKED,
    "pad_to_multiple_of": AS_USUAL,
    "completion_only_loss": instead("data.form"),
    "assistant_only_loss": instead("data.form"),
    "loss_type": instead("the loss section"),
    "activation_offloading": instead("{activations} to offload"),
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
