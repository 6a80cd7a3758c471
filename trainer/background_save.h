// One save at a time on a thread of its own, while training goes on.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <thread>

namespace satune {

class BackgroundSave {
 public:
  BackgroundSave() = default;
  /// Waits for the save in flight; what it throws is lost.
  ~BackgroundSave();
  BackgroundSave(const BackgroundSave&) = delete;
  BackgroundSave& operator=(const BackgroundSave&) = delete;

  /// Waits for the save in flight, then starts `save`. Throws what the one before threw.
  void start(std::function<void()> save);
  /// Throws what a finished save threw, once; does not wait.
  void check();
  /// Waits for the save in flight. Throws what it threw.
  void wait();

 private:
  struct State;
  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace satune
