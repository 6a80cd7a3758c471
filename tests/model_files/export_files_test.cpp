// What surrounds the weights of an exported directory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "data/files/atomic_file.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "model/files/export_python.h"
#include "model/files/hf_directory.h"

namespace satune {
namespace {

namespace fs = std::filesystem;

class ExportFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    root_ = fs::path(::testing::TempDir()) / (std::string("export_files_") + test->name());
    fs::remove_all(root_);
    fs::create_directories(source());
    fs::create_directories(out());
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path source() const { return root_ / "source"; }
  fs::path out() const { return root_ / "out"; }
  void put(const std::string& name, const std::string& text) { std::ofstream(source() / name) << text; }
  ExportOptions options() const {
    ExportOptions options;
    options.tokenizer_source = source();
    return options;
  }

  static ModelConfig config(std::string_view sharing) {
    ModelConfig config;
    config.vocab_size = 64;
    config.hidden_size = 16;
    config.intermediate_size = 24;
    config.num_hidden_layers = 5;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 4;
    config.bos_token_id = 1;
    config.eos_token_ids = {2};
    config.sharing = sharing.empty() ? SharingPlan(5) : SharingPlan::parse(sharing, AnchorRule::kBefore, 5);
    return config;
  }

 private:
  fs::path root_;
};

TEST_F(ExportFiles, EmbeddedPythonIsTheSourceByteForByte) {
  ASSERT_EQ(export_python_files().size(), 2u);
  for (const EmbeddedFile& file : export_python_files()) {
    const fs::path source = fs::path(SATUNE_SOURCE_DIR) / "model" / "export" / file.name;
    EXPECT_EQ(std::string(file.text), read_text_file(source)) << file.name;
  }
}

TEST_F(ExportFiles, SharedModelCarriesItsCodeAndVanillaDoesNot) {
  write_export_files(out(), config("3-4"), options());
  const Json shared = read_json_file(out() / "config.json");
  EXPECT_EQ(shared["model_type"], "sa_llama");
  for (const auto* key : {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}) {
    const std::string target = shared["auto_map"][key];
    EXPECT_TRUE(fs::exists(out() / (target.substr(0, target.find('.')) + ".py"))) << key << " " << target;
  }
  fs::remove_all(out());
  fs::create_directories(out());
  write_export_files(out(), config(""), options());
  EXPECT_EQ(read_json_file(out() / "config.json")["model_type"], "llama");
  EXPECT_FALSE(fs::exists(out() / "modeling_sa_llama.py"));
  EXPECT_FALSE(fs::exists(out() / "configuration_sa_llama.py"));
}

TEST_F(ExportFiles, GenerationConfigHoldsTheTrainedEos) {
  ExportOptions trained = options();
  trained.eos_token_ids = {9};
  write_export_files(out(), config(""), trained);
  EXPECT_EQ(read_json_file(out() / "generation_config.json")["eos_token_id"], 9);
  trained.eos_token_ids = {9, 2};
  write_export_files(out(), config(""), trained);
  EXPECT_EQ(read_json_file(out() / "generation_config.json")["eos_token_id"], Json({9, 2}));
  write_export_files(out(), config(""), options());
  const Json generation = read_json_file(out() / "generation_config.json");
  EXPECT_EQ(generation["eos_token_id"], 2);
  EXPECT_EQ(generation["bos_token_id"], 1);
  EXPECT_EQ(generation["do_sample"], false);
}

TEST_F(ExportFiles, TokenizerFilesAreCopiedUnchanged) {
  const std::string model("\n\x03\0ab", 5);
  put("tokenizer.model", model);
  put("special_tokens_map.json", "{ }");
  put("tokenizer_config.json", R"({"tokenizer_class":"LlamaTokenizer",  "chat_template": "old"})");
  put("optimizer.bin", "not a tokenizer file");
  write_export_files(out(), config(""), options());
  for (const auto* name : {"tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"}) {
    EXPECT_EQ(read_text_file(out() / name), read_text_file(source() / name)) << name;
  }
  EXPECT_FALSE(fs::exists(out() / "optimizer.bin"));
  EXPECT_FALSE(fs::exists(out() / "tokenizer.json"));
  EXPECT_FALSE(fs::exists(out() / "chat_template.jinja"));
}

TEST_F(ExportFiles, ChatTemplateReplacesTheSourcesOnes) {
  put("tokenizer.model", "\n");
  put("tokenizer_config.json", R"({"tokenizer_class": "LlamaTokenizer", "chat_template": "old"})");
  put("chat_template.jinja", "old");
  ExportOptions trained = options();
  trained.chat_template = "{{ messages }}";
  write_export_files(out(), config(""), trained);
  EXPECT_EQ(read_text_file(out() / "chat_template.jinja"), "{{ messages }}");
  const Json tokenizer = read_json_file(out() / "tokenizer_config.json");
  EXPECT_FALSE(tokenizer.contains("chat_template"));
  EXPECT_EQ(tokenizer["tokenizer_class"], "LlamaTokenizer");
  write_export_files(out(), config(""), options());
  EXPECT_EQ(read_text_file(out() / "chat_template.jinja"), "old");
}

// transformers 4.57 found no tokenizer for a directory of model_type sa_llama without tokenizer_config.json.
TEST_F(ExportFiles, MissingTokenizerConfigIsWritten) {
  put("tokenizer.model", "\n\x0e\n\x05<unk>");
  write_export_files(out(), config("3-4"), options());
  EXPECT_EQ(read_json_file(out() / "tokenizer_config.json")["tokenizer_class"], "LlamaTokenizer");
  fs::remove(source() / "tokenizer.model");
  put("tokenizer.json",
      R"({"added_tokens": [{"id": 1, "content": "<bos>"}, {"id": 2, "content": "<end>"}]})");
  write_export_files(out(), config("3-4"), options());
  const Json fast = read_json_file(out() / "tokenizer_config.json");
  EXPECT_EQ(fast["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(fast["bos_token"], "<bos>");
  EXPECT_EQ(fast["eos_token"], "<end>");
}

TEST_F(ExportFiles, NoTokenizerIsNoError) {
  write_export_files(out(), config("3-4"), options());
  EXPECT_FALSE(fs::exists(out() / "tokenizer_config.json"));
}

TEST_F(ExportFiles, TheTemplateIsAFileBesideTheConfig) {
  ExportOptions with = options();
  with.template_file = "{\"name\": \"mine\"}\n";
  write_export_files(out(), config(""), with);
  EXPECT_EQ(read_text_file(out() / kTemplateFile), *with.template_file);
  fs::remove(out() / kTemplateFile);
  write_export_files(out(), config(""), options());
  EXPECT_FALSE(fs::exists(out() / kTemplateFile));
}

// Without "legacy" transformers drops SentencePiece's dummy prefix after "<s>": see
// tests/parity/test_chat_template.py.
TEST_F(ExportFiles, AChatTemplateSetsLegacy) {
  put("tokenizer.model", "\n\x0e\n\x05<unk>");
  put("tokenizer_config.json", R"({"bos_token":"<s>","legacy":false,"chat_template":"old"})");
  ExportOptions with = options();
  with.chat_template = "new";
  write_export_files(out(), config(""), with);
  const Json written = read_json_file(out() / "tokenizer_config.json");
  EXPECT_EQ(written, Json::parse(R"({"bos_token":"<s>","legacy":true})"));
  // Untrained, or without SentencePiece: nobody's to change.
  write_export_files(out(), config(""), options());
  EXPECT_EQ(read_json_file(out() / "tokenizer_config.json").at("legacy"), false);
  put("tokenizer.model", "IQ== 0\n");
  write_export_files(out(), config(""), with);
  EXPECT_EQ(read_json_file(out() / "tokenizer_config.json").at("legacy"), false);
}

}  // namespace
}  // namespace satune
