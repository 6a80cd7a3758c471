// satune generate with one prompt: streamed, or one JSON object.
#include "trainer/commands/generate_run.h"

namespace satune {

int run_prompt(const GenerateOptions& options) {
  const GenerateModel model(options);
  const Tokenizer& tokenizer = *model.tokenizer;
  std::optional<PromptTemplate> prompt_template;
  if (options.instruction)
    prompt_template = load_model_template(model.source, options.template_name, tokenizer);
  const Prompt prompt = options.prompt
                            ? plain_prompt("the prompt", *options.prompt, tokenizer)
                            : template_prompt("the prompt", {*options.instruction, options.input, "", 0},
                                              *prompt_template, tokenizer);
  GenerationOptions generation = model.generation(options, prompt_template ? &*prompt_template : nullptr);
  generation.max_new_tokens = bounded_answer(options, prompt, model.positions());
  const Llama llama = load_model(model.source);

  AnswerText text(tokenizer, prompt.text_context, options.stop, [&](std::string_view piece) {
    if (!options.json) write_now(piece);
  });
  Decoder decoder(llama, static_cast<int64_t>(prompt.tokens.size()) + generation.max_new_tokens);
  const Generation result =
      generate(decoder, prompt.tokens, generation, [&](int32_t token) { return text.append(token); });
  text.finish();
  if (options.json) {
    write_now(answer_json(prompt, text, result, decoder, false));
    return 0;
  }
  write_now("\n");
  print_summary(static_cast<int64_t>(result.tokens.size()), result.seconds, result.first_token_seconds,
                decoder);
  return 0;
}

}  // namespace satune
