// What the keys of LLaMA-Factory, axolotl, torchtune and the Hugging Face Trainer are called here.
#include <algorithm>
#include <array>

#include "trainer/settings_field.h"

namespace satune {
namespace {

struct Synonym {
  std::string_view key;
  std::string_view here;
};

constexpr auto kSynonyms = std::to_array<Synonym>({
    // Model.
    {"model", "model_name_or_path"},
    {"base_model", "model_name_or_path"},
    {"model_name", "model_name_or_path"},
    {"checkpoint_dir", "model_name_or_path"},
    {"tokenizer_name", "model_name_or_path (the tokenizer is the model directory's)"},
    {"output_path", "output_dir"},
    {"shared_layers", "sharing.layers"},
    {"shared_attention_layers", "sharing.layers"},
    {"anchor", "sharing.anchor"},
    {"trainable_modules", "unfrozen_parameters"},
    {"freeze_trainable_layers", "unfrozen_parameters"},
    {"freeze_trainable_modules", "unfrozen_parameters"},
    {"finetuning_type", "no such key: all parameters train, or those of unfrozen_parameters"},
    {"adapter", "no such key: all parameters train, or those of unfrozen_parameters"},
    {"lora_rank", "no such key: all parameters train, or those of unfrozen_parameters"},
    {"lora_r", "no such key: all parameters train, or those of unfrozen_parameters"},
    {"lora_alpha", "no such key: all parameters train, or those of unfrozen_parameters"},
    {"lora_target", "no such key: all parameters train, or those of unfrozen_parameters"},
    {"stage", "no such key: supervised fine-tuning is what satune train does"},
    {"do_train", "no such key: satune train trains, satune eval evaluates"},
    {"do_eval", "eval_file or val_size"},
    {"attn_implementation", "no such key: attention is always fused"},
    {"flash_attn", "no such key: attention is always fused"},
    {"flash_attention", "no such key: attention is always fused"},
    {"trust_remote_code", "no such key: no code of a model is ever run"},
    // Data.
    {"dataset", "train_file (a path)"},
    {"datasets", "train_file (a path)"},
    {"dataset_dir", "train_file (a path)"},
    {"dataset_path", "train_file"},
    {"data_path", "train_file"},
    {"train_data", "train_file"},
    {"eval_dataset", "eval_file"},
    {"test_datasets", "eval_file"},
    {"validation_file", "eval_file"},
    {"val_file", "eval_file"},
    {"val_set_size", "val_size"},
    {"validation_split", "val_size"},
    {"validation_split_percentage", "val_size (a share, not percent)"},
    {"prompt_template", "template"},
    {"chat_template", "template"},
    {"prompt_style", "template"},
    {"field_mapping", "columns"},
    {"column_map", "columns"},
    {"cutoff_len", "max_length"},
    {"sequence_len", "max_length"},
    {"sequence_length", "max_length"},
    {"seq_len", "max_length"},
    {"max_seq_len", "max_length"},
    {"max_seq_length", "max_length"},
    {"model_max_length", "max_length"},
    {"truncation", "overlength"},
    {"excess_length_strategy", "overlength"},
    {"neat_packing", "packing (documents are always kept apart)"},
    {"sample_packing", "packing"},
    {"packed", "packing"},
    {"train_on_prompt", "no such key: only the response is trained; plain text data trains every token"},
    {"train_on_input", "no such key: only the response is trained; plain text data trains every token"},
    {"train_on_inputs", "no such key: only the response is trained; plain text data trains every token"},
    {"preprocessing_num_workers", "num_threads"},
    {"dataset_prepared_path", "token_cache_dir"},
    {"tokenized_path", "token_cache_dir"},
    {"overwrite_cache", "token_cache_dir (a cache of other data is never used)"},
    // Length and batch.
    {"num_epochs", "num_train_epochs"},
    {"epochs", "num_train_epochs"},
    {"max_steps_per_epoch", "max_steps (of the whole run)"},
    {"micro_batch_size", "per_device_train_batch_size"},
    {"batch_size", "per_device_train_batch_size"},
    {"train_batch_size", "per_device_train_batch_size"},
    {"per_device_eval_batch_size", "per_device_train_batch_size (evaluation uses the same)"},
    {"eval_batch_size", "per_device_train_batch_size (evaluation uses the same)"},
    {"grad_accumulation_steps", "gradient_accumulation_steps"},
    {"accumulation_steps", "gradient_accumulation_steps"},
    // Optimizer.
    {"lr", "learning_rate"},
    {"max_lr", "learning_rate"},
    {"lr_scheduler", "lr_scheduler_type"},
    {"scheduler", "lr_scheduler_type"},
    {"num_warmup_steps", "warmup_steps"},
    {"lr_scheduler_kwargs", "min_lr_ratio, lr_warmup_type and warmup_start_ratio"},
    {"cosine_min_lr_ratio", "min_lr_ratio"},
    {"min_lr", "min_lr_ratio (a share of learning_rate)"},
    {"min_lr_rate", "min_lr_ratio"},
    {"beta1", "adam_beta1"},
    {"beta2", "adam_beta2"},
    {"betas", "adam_beta1 and adam_beta2"},
    {"eps", "adam_epsilon"},
    {"epsilon", "adam_epsilon"},
    {"clip_grad_norm", "max_grad_norm"},
    {"gradient_clipping", "max_grad_norm"},
    {"max_norm", "max_grad_norm"},
    {"optim", "no such key: the optimizer is AdamW"},
    {"optimizer", "no such key: the optimizer is AdamW"},
    // Machine.
    {"bf16", "precision (\"bf16\")"},
    {"fp16", "precision (\"fp16\")"},
    {"tf32", "precision"},
    {"dtype", "precision"},
    {"torch_dtype", "precision"},
    {"mixed_precision", "precision"},
    {"no_cuda", "device (\"cpu\")"},
    {"use_cpu", "device (\"cpu\")"},
    {"deepspeed", "zero_stage"},
    {"fsdp", "zero_stage"},
    {"zero", "zero_stage"},
    {"fsdp_cpu_offload", "optimizer_offload"},
    {"enable_activation_checkpointing", "gradient_checkpointing"},
    {"activation_checkpointing", "gradient_checkpointing"},
    {"disable_gradient_checkpointing", "gradient_checkpointing"},
    {"compile", "no such key: the kernels are compiled"},
    {"torch_compile", "no such key: the kernels are compiled"},
    // The run.
    {"data_seed", "seed"},
    {"log_every_n_steps", "logging_steps"},
    {"eval_every_n_steps", "eval_steps"},
    {"run_val_every_n_steps", "eval_steps"},
    {"evals_per_epoch", "eval_steps"},
    {"eval_strategy", "eval_steps (0 = at the end only)"},
    {"evaluation_strategy", "eval_steps (0 = at the end only)"},
    {"save_strategy", "save_steps (0 = at the end only)"},
    {"save_every_n_steps", "save_steps"},
    {"saves_per_epoch", "save_steps"},
    {"keep_last", "save_total_limit"},
    {"load_best_model_at_end", "keep_best"},
    {"metric_for_best_model", "keep_best (by eval_loss)"},
    {"early_stopping_patience", "patience"},
    {"save_only_weights", "save_only_model"},
    {"resume_from_checkpoint", "resume"},
    {"overwrite_output_dir", "resume (\"never\" refuses a folder that is not empty)"},
    {"report_to", "no such key: metrics.jsonl and TensorBoard events are always written"},
    {"logging_dir", "output_dir (the events are in its folder tensorboard)"},
    {"run_name", "output_dir"},
    {"plot_loss", "no such key: TensorBoard shows output_dir"},
});

}  // namespace

std::string_view synonym_of(std::string_view key) {
  const auto found =
      std::find_if(kSynonyms.begin(), kSynonyms.end(), [&](const Synonym& s) { return s.key == key; });
  return found == kSynonyms.end() ? std::string_view{} : found->here;
}

}  // namespace satune
