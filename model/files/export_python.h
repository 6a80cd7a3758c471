// The Python code that an exported Shared-Attention directory carries for transformers' trust_remote_code,
// compiled into the program from model/export/*.py.
#pragma once

#include <span>
#include <string_view>

namespace satune {

struct EmbeddedFile {
  std::string_view name;  ///< file name in the exported directory
  std::string_view text;
};

std::span<const EmbeddedFile> export_python_files();

}  // namespace satune
