// Where the tests find real data: models, tokenizers and records that are not part of the repository.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>

namespace satune {

/// `name` ("stories260K_hf", "tok_llama3/tokenizer.model") inside the folder that the environment variable
/// SATUNE_REALDATA names, or else in ../shared/realdata beside the checkout; nothing if it is not there.
inline std::optional<std::filesystem::path> realdata(std::string_view name) {
  const char* configured = std::getenv("SATUNE_REALDATA");
  const std::filesystem::path root =
      configured ? std::filesystem::path(configured)
                 : std::filesystem::path(SATUNE_SOURCE_DIR).parent_path() / "shared" / "realdata";
  std::filesystem::path found = root / name;
  std::error_code error;
  if (!std::filesystem::exists(found, error)) return std::nullopt;
  return found;
}

}  // namespace satune

/// Declares `variable` as the path of a piece of real data, or skips the test and names what is missing.
#define SATUNE_REALDATA_OR_SKIP(variable, name)                                                \
  const auto variable##_found = ::satune::realdata(name);                                      \
  if (!variable##_found) GTEST_SKIP() << "needs real data " << (name) << " (SATUNE_REALDATA)"; \
  const std::filesystem::path& variable = *variable##_found
