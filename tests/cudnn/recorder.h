// What graphs of cuDNN would have done on a card: see recorder.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace satune::cudnn_recorder {

struct Run {
  std::map<int64_t, void*> addresses;  ///< by the tensors' names within the graph
  void* workspace = nullptr;
};

struct Fill {
  void* to = nullptr;
  int value = 0;
  size_t bytes = 0;
};

std::vector<Run> take_runs();
std::vector<Fill> take_fills();

}  // namespace satune::cudnn_recorder
