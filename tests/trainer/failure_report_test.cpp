#include "trainer/failure_report.h"

#include <gtest/gtest.h>

namespace satune::trainer_test {
namespace {

TEST(ErrorLine, IsOneLineOfText) {
  EXPECT_EQ(error_line("file.json: found\n\"Zoë\"\tand more \n"), "file.json: found \"Zoë\" and more");
  EXPECT_EQ(error_line(std::string_view("a\0b\x1b[31mc", 8)), "a\\x00b\\x1b[31m");
}

TEST(ErrorLine, IsUtf8WhateverItQuotes) {
  EXPECT_EQ(error_line("found \xff\xfe in Zo\xc3"), "found \\xff\\xfe in Zo\\xc3");
}

TEST(ErrorLine, Ends) {
  const std::string line = error_line("tokenizer.model: found " + std::string(4 << 20, 'x'));
  EXPECT_LT(line.size(), 5000u);
  EXPECT_TRUE(line.starts_with("tokenizer.model: found xxx") && line.ends_with(" ..."));
  const std::string wide = error_line("1" + [] {
    std::string text;
    for (int i = 0; i < 4000; ++i) text += "é";
    return text;
  }());
  EXPECT_TRUE(wide.ends_with("é ..."));
}

}  // namespace
}  // namespace satune::trainer_test
