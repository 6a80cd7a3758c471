# LibTorch, CUDA and the precompiled header that the rooms above data/ share.

if(NOT SATUNE_TORCH)
  file(GLOB SATUNE_TORCH_WHEEL ${CMAKE_SOURCE_DIR}/.venv/lib/python3.*/site-packages/torch)
  if(NOT SATUNE_TORCH_WHEEL)
    message(FATAL_ERROR "no LibTorch: run launch/setup.sh, or give one with -DSATUNE_TORCH=<folder>")
  endif()
  list(GET SATUNE_TORCH_WHEEL 0 SATUNE_TORCH)
endif()
list(PREPEND CMAKE_PREFIX_PATH ${SATUNE_TORCH})

# The CUDA build of LibTorch needs a toolkit even where there is no card: /usr/local/cuda, or the link
# folder that launch/setup.sh lays over the PyPI packages.
if(NOT CMAKE_CUDA_COMPILER)
  find_program(SATUNE_NVCC nvcc HINTS ${CMAKE_SOURCE_DIR}/.setup/cuda/bin /usr/local/cuda/bin)
  if(SATUNE_NVCC)
    set(CMAKE_CUDA_COMPILER ${SATUNE_NVCC})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  get_filename_component(SATUNE_CUDA_BIN ${CMAKE_CUDA_COMPILER} DIRECTORY)
  get_filename_component(SATUNE_CUDA_ROOT ${SATUNE_CUDA_BIN} DIRECTORY)
  set(CUDAToolkit_ROOT ${SATUNE_CUDA_ROOT})
  set(CUDA_TOOLKIT_ROOT_DIR ${SATUNE_CUDA_ROOT})
  # find_package(Torch) reads the architectures from here and ignores CMAKE_CUDA_ARCHITECTURES.
  if(NOT DEFINED TORCH_CUDA_ARCH_LIST AND NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    set(TORCH_CUDA_ARCH_LIST "8.0;9.0+PTX")
  endif()
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  enable_language(CUDA)
  # C++20 in .cu files breaks with CMake 3.25's nvcc flags.
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  find_package(CUDAToolkit REQUIRED)
endif()
find_package(Torch REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)

# NCCL: the header of the wheel that LibTorch was built with, else the toolkit's.
file(GLOB SATUNE_NCCL_HINT ${CMAKE_SOURCE_DIR}/.venv/lib/python3.*/site-packages/nvidia/nccl)
find_path(SATUNE_NCCL_INCLUDE nccl.h HINTS ${SATUNE_NCCL_HINT}/include ${CUDAToolkit_INCLUDE_DIRS})
find_library(SATUNE_NCCL_LIBRARY NAMES nccl libnccl.so.2
             HINTS ${SATUNE_NCCL_HINT}/lib ${CUDAToolkit_LIBRARY_DIR})

# cudnn-frontend: headers alone, over the cuDNN of the wheel, which LibTorch has loaded. Without them cards have
# flash attention.
file(GLOB SATUNE_PACKAGES ${CMAKE_SOURCE_DIR}/.venv/lib/python3.*/site-packages)
find_path(SATUNE_CUDNN_FRONTEND cudnn_frontend.h HINTS ${SATUNE_PACKAGES}/include)
find_path(SATUNE_CUDNN_INCLUDE cudnn.h HINTS ${SATUNE_PACKAGES}/nvidia/cudnn/include ${CUDAToolkit_INCLUDE_DIRS})

# Gloo, the ranks' transport on CPUs: LibTorch carries the library, but not the headers that
# c10d/ProcessGroupGloo.hpp includes. The system's serve, and its library is not linked (it is another version).
find_path(SATUNE_GLOO_INCLUDE gloo/context.h)
if(NOT SATUNE_GLOO_INCLUDE)
  message(FATAL_ERROR "no Gloo headers: run launch/setup.sh, or install the package libgloo-dev")
endif()

# One header over ATen, compiled once: a file that uses it starts at 2 s instead of 6.
add_library(satune_torch STATIC ${CMAKE_SOURCE_DIR}/model/aten_pch.cpp)
target_link_libraries(satune_torch PUBLIC satune_options ${TORCH_LIBRARIES} fmt::fmt spdlog::spdlog)
# -fopenmp in every file: without it at::parallel_for silently runs serially. The libgomp that LibTorch
# brings must stay the only one in the process, so we link that very file.
target_compile_options(satune_torch PUBLIC $<$<COMPILE_LANGUAGE:CXX>:${OpenMP_CXX_FLAGS}>)
find_library(SATUNE_GOMP NAMES libgomp.so.1 PATHS ${SATUNE_TORCH}/lib NO_DEFAULT_PATH)
if(SATUNE_GOMP)
  target_link_libraries(satune_torch PUBLIC ${SATUNE_GOMP})
else()
  target_link_libraries(satune_torch PUBLIC OpenMP::OpenMP_CXX)
endif()
target_precompile_headers(satune_torch PRIVATE <ATen/ATen.h> <fmt/format.h> <string> <vector>)

# The header of all of LibTorch's operators leaves two seconds of pending templates to each file that starts from it.
# Files that do not name it start from a smaller one.
add_library(satune_tensor STATIC ${CMAKE_SOURCE_DIR}/model/aten_pch.cpp)
target_link_libraries(satune_tensor PUBLIC satune_torch nlohmann_json::nlohmann_json)
target_precompile_headers(satune_tensor PRIVATE <ATen/core/Tensor.h> <nlohmann/json.hpp> <fmt/format.h>
                          <spdlog/spdlog.h> <algorithm> <chrono> <filesystem> <functional> <map> <optional>
                          <string> <vector>)

# satune_torch_room(NAME LINKS LIBRARY... SOURCES FILE...): a room's library over LibTorch.
function(satune_torch_room name)
  cmake_parse_arguments(PARSE_ARGV 1 ROOM "" "" "LINKS;SOURCES")
  set(with_operators)
  set(others)
  foreach(file IN LISTS ROOM_SOURCES)
    file(STRINGS ${file} uses REGEX "#include <(ATen/ATen\\.h|torch/)")
    if(uses)
      list(APPEND with_operators ${file})
    else()
      list(APPEND others ${file})
    endif()
  endforeach()
  add_library(${name} STATIC ${with_operators})
  target_link_libraries(${name} PUBLIC ${ROOM_LINKS})
  target_precompile_headers(${name} REUSE_FROM satune_torch)
  add_library(${name}_others OBJECT ${others})
  target_link_libraries(${name}_others PUBLIC ${ROOM_LINKS})
  target_precompile_headers(${name}_others REUSE_FROM satune_tensor)
  target_sources(${name} PRIVATE $<TARGET_OBJECTS:${name}_others>)
endfunction()

if(SATUNE_NCCL_INCLUDE AND SATUNE_NCCL_LIBRARY)
  target_include_directories(satune_torch SYSTEM PUBLIC ${SATUNE_NCCL_INCLUDE})
  target_link_libraries(satune_torch PUBLIC ${SATUNE_NCCL_LIBRARY})
  target_compile_definitions(satune_torch PUBLIC SATUNE_NCCL=1)
endif()
