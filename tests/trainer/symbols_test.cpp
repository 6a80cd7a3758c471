// Libraries of one process that export the same name.
#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <gtest/gtest.h>

#include "data/tokenizer.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

TEST(Symbols, SentencePieceLeavesTheFlagsOfLibTorchAlone) {
  const TemporaryDirectory directory;
  SentencePieceTraining training;
  training.vocab_size = 270;
  train_sentencepiece({"a b c d e f g", "g f e d"}, training, directory.path());
  EXPECT_FALSE(FLAGS_caffe2_use_fatal_for_enforce) << "overwritten: an error of LibTorch ends the process";
  EXPECT_THROW(at::empty({int64_t{1} << 50}), c10::Error);
}

}  // namespace
}  // namespace satune
