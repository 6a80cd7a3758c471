#include "trainer/background_save.h"

#include <atomic>
#include <utility>

namespace satune {

struct BackgroundSave::State {
  std::atomic<bool> done{false};
  std::exception_ptr error;  ///< read after `done`
};

BackgroundSave::~BackgroundSave() {
  if (thread_.joinable()) thread_.join();
}

void BackgroundSave::start(std::function<void()> save) {
  wait();
  state_ = std::make_shared<State>();
  thread_ = std::thread([state = state_, save = std::move(save)] {
    try {
      save();
    } catch (...) {
      state->error = std::current_exception();
    }
    state->done.store(true);
  });
}

void BackgroundSave::check() {
  if (state_ && state_->done.load()) wait();
}

void BackgroundSave::wait() {
  if (!thread_.joinable()) return;
  thread_.join();
  if (const auto state = std::exchange(state_, nullptr); state->error) std::rethrow_exception(state->error);
}

}  // namespace satune
