// Stands in for cudnn_graph.cpp where satune is built without cudnn-frontend.
#include <stdexcept>

#include "model/ops/cudnn_graph.h"

namespace satune {

std::unique_ptr<CudnnGraph> make_cudnn_graph(const CudnnShape&, const CudnnCard&) {
  throw std::runtime_error("satune was built without cudnn-frontend");
}

}  // namespace satune
