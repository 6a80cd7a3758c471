#include "trainer/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "data/files/error.h"
#include "model/files/model_config.h"
#include "model/files/tensor_table.h"
#include "trainer/settings_field.h"

namespace satune::settings_test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kRequired = R"("model_name_or_path": "m", "output_dir": "o", "train_file": "t.json")";

Settings parse(const std::string& more = "", const std::vector<std::string>& overrides = {}) {
  return parse_settings("{" + kRequired + (more.empty() ? "" : ", " + more) + "}", "run.json", overrides);
}

std::string error_of(const std::string& more, const std::vector<std::string>& overrides = {}) {
  try {
    parse(more, overrides);
  } catch (const BadInput& error) {
    return error.what();
  }
  return "no error";
}

TEST(Settings, DefaultsAreThoseOfTheDesign) {
  const Settings s = parse();
  EXPECT_EQ(s.sharing_layers, "");
  EXPECT_EQ(s.sharing_anchor, AnchorRule::kBefore);
  EXPECT_EQ(s.val_size, 0.01);
  EXPECT_EQ(s.prompt_template, "alpaca");
  EXPECT_EQ(s.max_length, 4096);
  EXPECT_EQ(s.overlength, Overlength::kDrop);
  EXPECT_TRUE(s.packing);
  EXPECT_EQ(s.num_train_epochs, 2.0);
  EXPECT_EQ(s.max_steps, std::nullopt);
  EXPECT_EQ(s.gradient_accumulation_steps, 2);
  EXPECT_EQ(s.learning_rate, 2e-5);
  EXPECT_EQ(s.warmup_ratio, 0.03);
  EXPECT_EQ(s.precision, Precision::kBf16);
  EXPECT_EQ(s.gradient_checkpointing, Checkpointing::kOn);
  EXPECT_EQ(s.seed, 42u);
  EXPECT_EQ(s.save_total_limit, 2);
  EXPECT_EQ(s.resume, "auto");
  EXPECT_EQ(s.nonfinite, NonFinitePolicy::kStop);
}

TEST(Settings, ReadsEveryKindOfValueAndComments) {
  const Settings s = parse(R"("sharing": {"layers": "2-3", "anchor": "first"}, // deep span
    "columns": {"input": "context"}, "learning_rate": 1, "max_steps": 1e2, "gradient_checkpointing": "selective",
    "zero_stage": 3, "num_threads": "auto", "unfrozen_parameters": ["model.layers.2[3-6]."], "overlength": "truncate",
    "seed": 18446744073709551615, "shuffle": false, "patience": null)");
  EXPECT_EQ(s.sharing_layers, "2-3");
  EXPECT_EQ(s.sharing_anchor, AnchorRule::kFirst);
  EXPECT_EQ(s.columns.input, "context");
  EXPECT_EQ(s.columns.output, "output");
  EXPECT_EQ(s.learning_rate, 1.0);
  EXPECT_EQ(s.max_steps, 100);
  EXPECT_EQ(s.num_train_epochs, std::nullopt);
  EXPECT_EQ(s.gradient_checkpointing, Checkpointing::kSelective);
  EXPECT_EQ(s.zero_stage, 3);
  EXPECT_EQ(s.num_threads, std::nullopt);
  EXPECT_THAT(s.unfrozen_parameters, ElementsAre("model.layers.2[3-6]."));
  EXPECT_EQ(s.overlength, Overlength::kTruncate);
  EXPECT_EQ(s.seed, 18446744073709551615u);
  EXPECT_FALSE(s.shuffle);
}

// pain: misspelt config key ignored.
TEST(Settings, UnknownKeysNameTheNearestOrTheSynonym) {
  EXPECT_THAT(error_of(R"("learning_rat": 1)"), AllOf(HasSubstr("run.json"), HasSubstr("\"learning_rat\""),
                                                      HasSubstr("expected learning_rate")));
  EXPECT_THAT(error_of(R"("cutoff_len": 1)"), HasSubstr("expected max_length"));
  EXPECT_THAT(error_of(R"("sequence_len": 1)"), HasSubstr("expected max_length"));
  EXPECT_THAT(error_of(R"("micro_batch_size": 1)"), HasSubstr("expected per_device_train_batch_size"));
  EXPECT_THAT(error_of(R"("num_epochs": 1)"), HasSubstr("expected num_train_epochs"));
  EXPECT_THAT(error_of(R"("lr_scheduler": "cosine")"), HasSubstr("expected lr_scheduler_type"));
  EXPECT_THAT(error_of(R"("dataset": "x")"), HasSubstr("expected train_file"));
  EXPECT_THAT(error_of(R"("finetuning_type": "lora")"), HasSubstr("unfrozen_parameters"));
  EXPECT_THAT(error_of(R"("sharing": {"layer": "1"})"),
              AllOf(HasSubstr("\"sharing.layer\""), HasSubstr("expected sharing.layers")));
  EXPECT_THAT(error_of(R"("qqqqqqqqqqq": 1)"), HasSubstr("--print-config"));
  EXPECT_THAT(error_of("", {"lr=1"}), AllOf(HasSubstr("command line"), HasSubstr("expected learning_rate")));
}

TEST(Settings, SynonymsNameKeysThatExist) {
  for (const SettingInfo& info : setting_infos()) EXPECT_EQ(synonym_of(info.key), "") << info.key;
  for (const std::string key :
       {"cutoff_len", "betas", "deepspeed", "prompt_template", "early_stopping_patience",
        "load_best_model_at_end", "optim", "val_set_size", "clip_grad_norm"}) {
    const std::string here(synonym_of(key));
    ASSERT_NE(here, "") << key;
    const std::string first = here.substr(0, here.find_first_of(" ,("));
    EXPECT_TRUE(first == "no" || find_field(first) != nullptr) << key << " -> " << here;
  }
}

TEST(Settings, TypesAreStrict) {
  EXPECT_THAT(error_of(R"("learning_rate": "2e-5")"),
              AllOf(HasSubstr("run.json: learning_rate: found the string \"2e-5\""),
                    HasSubstr("a number > 0"), HasSubstr("without quotes")));
  EXPECT_THAT(error_of(R"("packing": 1)"),
              HasSubstr("run.json: packing: found the number 1, expected true or false"));
  EXPECT_THAT(error_of(R"("max_length": 10.5)"), HasSubstr("a whole number >= 2"));
  EXPECT_THAT(error_of(R"("seed": -1)"), HasSubstr("seed"));
  EXPECT_THAT(error_of(R"("learning_rate": 0)"), HasSubstr("a number > 0"));
  EXPECT_THAT(error_of(R"("learning_rate": 1e999)"), HasSubstr("run.json"));
  EXPECT_THAT(error_of(R"("adam_beta1": 1)"), HasSubstr("a number >= 0 and < 1"));
  EXPECT_THAT(error_of(R"("zero_stage": 4)"), HasSubstr("a whole number from 0 to 3 | \"auto\""));
  EXPECT_THAT(error_of(R"("precision": "float16")"), HasSubstr(R"("fp32" | "bf16" | "fp16")"));
  EXPECT_THAT(error_of(R"("gradient_checkpointing": "true")"),
              HasSubstr(R"(true | false | "selective" | "auto")"));
  EXPECT_THAT(error_of(R"("unfrozen_parameters": "lm_head")"), HasSubstr("a list of strings"));
  EXPECT_THAT(error_of(R"("unfrozen_parameters": ["a", 3])"), HasSubstr("unfrozen_parameters[1]"));
  EXPECT_THAT(error_of(R"("sharing": "23-26")"), HasSubstr("an object of layers, anchor"));
  EXPECT_THAT(error_of(R"("seed": null)"), HasSubstr("seed"));
  EXPECT_THAT(error_of(R"("seed": 1, "seed": 2)"), HasSubstr("twice"));
  EXPECT_THAT(error_of(R"("sharing": {"layers": "1"}, "sharing.layers": "2")"),
              HasSubstr("sharing.layers twice"));
  EXPECT_THROW(parse_settings("[]", "run.json"), BadInput);
}

TEST(Settings, RequiredKeys) {
  try {
    parse_settings(R"({"model_name_or_path": "m", "train_file": "t"})", "run.json");
    FAIL();
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), HasSubstr("run.json: output_dir: found nothing"));
  }
  EXPECT_THAT(error_of("", {"output_dir="}), HasSubstr("command line: output_dir: found an empty string"));
}

TEST(Settings, AlternativesExcludeEachOther) {
  EXPECT_THAT(error_of(R"("max_steps": 5, "num_train_epochs": 1)"),
              HasSubstr("both num_train_epochs and max_steps"));
  EXPECT_THAT(error_of(R"("warmup_steps": 5, "warmup_ratio": 0.1)"),
              HasSubstr("both warmup_ratio and warmup_steps"));
  EXPECT_THAT(error_of(R"("eval_file": "e", "val_size": 0.1)"), HasSubstr("both eval_file and val_size"));
  EXPECT_THAT(error_of("", {"max_steps=5", "num_train_epochs=2"}), HasSubstr("both"));
  EXPECT_THAT(error_of("", {"num_train_epochs=1e9"}), HasSubstr("expected a number > 0 and <= 10000"));
  EXPECT_EQ(parse(R"("eval_file": "e", "val_size": 0)").val_size, 0);
  EXPECT_EQ(parse(R"("eval_file": "e")").val_size, 0);
  EXPECT_EQ(parse(R"("max_steps": 5, "num_train_epochs": null)").max_steps, 5);
  EXPECT_EQ(parse(R"("num_train_epochs": null)").num_train_epochs, 2.0);
}

TEST(Settings, AnOverrideReplacesTheFilesValueAndItsAlternative) {
  const Settings s = parse(R"("num_train_epochs": 3, "warmup_ratio": 0.1, "learning_rate": 1e-4)",
                           {"max_steps=7", "--learning-rate=3e-4", "sharing.layers=23-26", "output_dir=42",
                            "gradient_checkpointing=false", "unfrozen_parameters=model.layers.{1,2}",
                            "template=\"llama3\"", "eval_file=null", "num_threads=3"});
  EXPECT_EQ(s.max_steps, 7);
  EXPECT_EQ(s.num_train_epochs, std::nullopt);
  EXPECT_EQ(s.warmup_ratio, 0.1);
  EXPECT_EQ(s.learning_rate, 3e-4);
  EXPECT_EQ(s.sharing_layers, "23-26");
  EXPECT_EQ(s.output_dir, "42");
  EXPECT_EQ(s.gradient_checkpointing, Checkpointing::kOff);
  EXPECT_THAT(s.unfrozen_parameters, ElementsAre("model.layers.{1,2}"));
  EXPECT_EQ(s.prompt_template, "llama3");
  EXPECT_EQ(s.eval_file, std::nullopt);
  EXPECT_EQ(s.num_threads, 3);
  EXPECT_EQ(parse("", {R"(unfrozen_parameters=["a", "b"])"}).unfrozen_parameters.size(), 2u);
  EXPECT_EQ(parse("", {"seed=1", "seed=2"}).seed, 2u);
  EXPECT_THAT(error_of("", {"learning_rate"}), HasSubstr("key=value"));
  EXPECT_THAT(error_of("", {"learning_rate=fast"}),
              HasSubstr("command line: learning_rate: found the string \"fast\", expected a number > 0"));
  EXPECT_THAT(error_of("", {"sharing=23-26"}), HasSubstr("sharing.<layers, anchor>=value"));
}

TEST(Settings, NoSplitOnTheCommandLineLeavesTheEvalFile) {
  const Settings s = parse(R"("eval_file": "e")", {"val_size=0"});
  EXPECT_EQ(s.eval_file, "e");
  EXPECT_EQ(s.val_size, 0);
  EXPECT_EQ(parse(R"("eval_file": "e")", {"val_size=0.1"}).eval_file, std::nullopt);
  EXPECT_EQ(parse(R"("val_size": 0.1)", {"eval_file=e"}).val_size, 0);
}

TEST(Settings, DefaultsTakeOverridesWithoutAFile) {
  EXPECT_EQ(settings_json(default_settings({})), settings_json(Settings{}));
  EXPECT_EQ(default_settings({"max_steps=7"}).num_train_epochs, std::nullopt);
  EXPECT_THROW(default_settings({"max_step=7"}), BadInput);
}

TEST(Settings, WhatDoesNotGoTogetherIsRefusedByName) {
  EXPECT_THAT(error_of(R"("lr_warmup_type": "log")"), HasSubstr("warmup_start_ratio"));
  EXPECT_THAT(error_of(R"("val_size": 1.5)"), HasSubstr("val_size"));
  EXPECT_THAT(error_of(R"("val_size": 0, "patience": 3)"), HasSubstr("patience"));
  EXPECT_THAT(error_of(R"("val_size": 0, "keep_best": true)"), HasSubstr("keep_best"));
  EXPECT_THAT(error_of(R"("master_weights": "split", "precision": "fp32")"),
              AllOf(HasSubstr(R"(run.json: master_weights: found "split" with precision "fp32")"),
                    HasSubstr("their own master")));
  EXPECT_THAT(error_of(R"("master_weights": "none")", {"precision=fp16"}), HasSubstr(R"(precision "bf16")"));
  EXPECT_THAT(error_of(R"("optimizer_moments": "int8")"), HasSubstr(R"("fp32" | "bf16" | "8bit")"));
  EXPECT_EQ(parse(R"("optimizer_moments": "8bit", "precision": "fp32")").optimizer_moments,
            OptimizerMoments::k8Bit);
}

TEST(Settings, TheResolvedConfigReadsBackToItself) {
  const Settings s =
      parse(R"("sharing": {"layers": "1", "anchor": "before"}, "max_steps": 9, "warmup_steps": 2,
    "eval_file": "e.json", "learning_rate": 0.1, "patience": 4, "keep_best": true, "zero_stage": 2,
    "lr_warmup_type": "log", "warmup_start_ratio": 0.04, "token_cache_dir": "", "export_dtype": "float16",
    "unfrozen_parameters": ["a\"b"], "seed": 18446744073709551615)");
  const Json saved = settings_json(s);
  EXPECT_EQ(saved["sharing"]["layers"], "1");
  EXPECT_EQ(saved["zero_stage"], 2);
  EXPECT_TRUE(saved["num_train_epochs"].is_null());
  EXPECT_EQ(settings_json(parse_settings(write_json(saved), "config.json")), saved);
}

// rival: a settings table kept twice and drifting apart.
TEST(Settings, PrintedConfigIsAUsableConfigWithEveryField) {
  const Settings s = parse(R"("max_steps": 9)");
  const std::string text = print_config(s);
  EXPECT_EQ(settings_json(parse_settings(text, "printed")), settings_json(s));
  for (const SettingInfo& info : setting_infos()) {
    EXPECT_THAT(text, HasSubstr(info.meaning)) << info.key;
    EXPECT_FALSE(info.type.empty());
  }
  EXPECT_THAT(
      text, HasSubstr("// peak of the schedule [a number > 0; default 2e-05]\n  \"learning_rate\": 2e-05,"));
}

TEST(Settings, KeysAreUniqueAndGroupsContiguous) {
  std::set<std::string> keys, closed_groups;
  std::string group;
  for (const SettingInfo& info : setting_infos()) {
    EXPECT_TRUE(keys.insert(info.key).second) << info.key;
    const size_t dot = info.key.find('.');
    const std::string now = dot == std::string::npos ? "" : info.key.substr(0, dot);
    if (now != group && !group.empty()) closed_groups.insert(group);
    group = now;
    EXPECT_FALSE(closed_groups.contains(now)) << info.key;
  }
}

TEST(Settings, ResumeSeesWhatChangesTheTrajectoryAndNothingElse) {
  const Settings old = parse(R"("learning_rate": 2e-5, "max_steps": 100)");
  const Json saved = parse_json(write_json(settings_json(old)), "config.json");
  EXPECT_THAT(trajectory_changes(saved, old), IsEmpty());
  const Settings now =
      parse(R"("max_steps": 100)", {"save_steps=7", "logging_steps=3", "eval_steps=5", "num_threads=1",
                                    "output_dir=elsewhere", "gradient_checkpointing=false", "device=cpu"});
  EXPECT_THAT(trajectory_changes(saved, now), IsEmpty());
}

TEST(Settings, SplitMastersAreTheSameRunAsFp32) {
  const auto changes = [](const char* then, const char* now) {
    return trajectory_changes(settings_json(parse("", {then})), parse("", {now}));
  };
  EXPECT_THAT(changes("master_weights=fp32", "master_weights=split"), IsEmpty());
  EXPECT_THAT(changes("master_weights=split", "master_weights=fp32"), IsEmpty());
  EXPECT_THAT(changes("master_weights=split", "master_weights=none"),
              ElementsAre(R"(master_weights: "split" -> "none")"));
  EXPECT_THAT(changes("optimizer_moments=bf16", "optimizer_moments=8bit"),
              ElementsAre(R"(optimizer_moments: "bf16" -> "8bit")"));
}

TEST(Settings, ResumeListsBothValues) {
  const Json saved = settings_json(parse(R"("max_steps": 100)"));
  EXPECT_THAT(trajectory_changes(saved, parse(R"("max_steps": 100, "learning_rate": 1e-4, "seed": 7)")),
              ElementsAre("learning_rate: 2e-05 -> 0.0001", "seed: 42 -> 7"));
  EXPECT_THAT(trajectory_changes(saved, parse("")),
              ElementsAre("num_train_epochs: null -> 2.0", "max_steps: 100 -> null"));
  Json older = saved;
  older.erase("warmup_start_ratio");
  EXPECT_THAT(trajectory_changes(older, parse(R"("max_steps": 100)")), IsEmpty());
  EXPECT_THAT(trajectory_changes(older, parse(R"("max_steps": 100, "warmup_start_ratio": 0.5)")),
              ElementsAre("warmup_start_ratio: 0.0 -> 0.5"));
}

TEST(Settings, WarmupSteps) {
  EXPECT_EQ(warmup_step_count(parse(), 1000), 30);
  EXPECT_EQ(warmup_step_count(parse(), 10), 1);
  EXPECT_EQ(warmup_step_count(parse(), 1), 0);
  EXPECT_EQ(warmup_step_count(parse(R"("warmup_ratio": 0)"), 10), 0);
  EXPECT_EQ(warmup_step_count(parse(R"("warmup_ratio": 0.07)"), 100), 7);  // 0.07 * 100 = 7.000000000000001
  EXPECT_EQ(warmup_step_count(parse(R"("warmup_ratio": 0.99)"), 3), 2);
  EXPECT_EQ(warmup_step_count(parse(R"("warmup_steps": 0.1)"), 50), 5);  // transformers 5
  EXPECT_EQ(warmup_step_count(parse(R"("warmup_steps": 1)"), 50), 1);
  EXPECT_EQ(warmup_step_count(parse(R"("warmup_steps": 49)"), 50), 49);
  for (const char* bad : {R"("warmup_steps": 50)", R"("warmup_steps": 1000)", R"("warmup_steps": 2.5)"}) {
    EXPECT_THROW(warmup_step_count(parse(bad), 50), BadInput) << bad;
  }
}

const std::filesystem::path kConfigs = std::filesystem::path(SATUNE_SOURCE_DIR) / "configs";

TEST(Configs, RunsThatShip) {
  const Settings sa = read_settings(kConfigs / "llama3-8b-sa.json", {});
  EXPECT_EQ(sa.sharing_layers, "23-26");
  // Beyond what a run must name, this config is the defaults.
  const Settings defaults = parse(R"("sharing": {"layers": "23-26"})",
                                  {"model_name_or_path=" + sa.model_name_or_path,
                                   "output_dir=" + sa.output_dir, "train_file=" + sa.train_file});
  EXPECT_EQ(settings_json(sa), settings_json(defaults));

  const Settings paper = read_settings(kConfigs / "llama3-8b-sa-paper.json", {});
  EXPECT_FALSE(paper.packing);
  EXPECT_EQ(paper.per_device_train_batch_size * paper.gradient_accumulation_steps, 2 * 16);
  EXPECT_EQ(paper.prompt_template, "alpaca_stanford");
  EXPECT_EQ(paper.min_lr_ratio, 1e-4);
  EXPECT_EQ(paper.lr_warmup_type, WarmupType::kLog);
  EXPECT_EQ(paper.warmup_start_ratio, 0.04);
  EXPECT_EQ(warmup_step_count(paper, 15000), 1001);  // 0.0667 of them

  EXPECT_EQ(read_settings(kConfigs / "llama2-7b-sa.json", {}).sharing_layers, "23-26");
}

TEST(Configs, ArchitecturesThatShip) {
  const auto parameters = [](const char* file) {
    const Json json = read_json_file(kConfigs / file, {.allow_comments = true});
    return TensorTable(parse_model_config(json, file)).parameter_count();
  };
  EXPECT_EQ(parameters("arch-llama3-8b.json"), 8'030'261'248);
  EXPECT_EQ(parameters("arch-llama2-7b.json"), 6'738'415'616);
  EXPECT_EQ(parameters("arch-llama3.2-1b.json"), 1'235'814'400);
}

}  // namespace
}  // namespace satune::settings_test
