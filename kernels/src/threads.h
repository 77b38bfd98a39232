// Threads that wait for the next call by spinning for a while, since the steps of an answer follow each other closely.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lora_ft {

// Threads of one call wait here for each other.
class Barrier {
  public:
    void wait(int threads);

  private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
};

class Pool {
  public:
    using Work = std::function<void(int thread)>;

    explicit Pool(int threads);
    ~Pool();

    // Runs `work` once on each of the first `threads` threads, of which the caller is number 0.
    void run(int threads, const Work& work);
    int size() const { return static_cast<int>(threads_.size()) + 1; }

  private:
    struct alignas(64) Slot {
        std::atomic<int> call{0};
    };

    void loop(int thread);

    std::vector<std::thread> threads_;
    std::unique_ptr<Slot[]> slots_;  // the latest call of each thread
    alignas(64) std::atomic<int> running_{0};
    std::atomic<bool> ending_{false};
    const Work* work_ = nullptr;
    std::mutex sleeping_, calling_;
    std::condition_variable wake_;
    std::atomic<int> asleep_{0};
};

}  // namespace lora_ft
