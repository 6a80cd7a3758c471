// How many cards this process may use, without a CUDA call.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace satune {

/// Card files nvidia0, nvidia1, ... of `devices` that may be opened, as far as `visible` (the value of
/// CUDA_VISIBLE_DEVICES; nullopt = not set) allows: CUDA's reading, in which the list ends at its first entry
/// that is no card, "" and "-1" show none, and of MIG slices a process uses one.
int64_t count_visible_cards(const std::filesystem::path& devices, const std::optional<std::string>& visible);

/// Of this machine and environment.
int64_t count_visible_cards();

}  // namespace satune
