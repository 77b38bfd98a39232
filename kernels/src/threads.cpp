#include "threads.h"

#include <chrono>

namespace lora_ft {

namespace {

constexpr auto kPatience = std::chrono::microseconds(300);  // longer than Python's part of a step
constexpr int kTurns = 2000;  // of a loop before another thread may have the core, and between looks at the clock

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Returns whether `done` became true in time.
template <class Done>
bool spin(Done done, std::chrono::microseconds patience) {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < kTurns / 20; ++i) {
            if (done()) return true;
            pause();
        }
        if (std::chrono::steady_clock::now() - start > patience) return false;
    }
}

template <class Done>
void spin(Done done) {
    for (int i = 0; !done(); ++i) {
        pause();
        if (i % kTurns == kTurns - 1) std::this_thread::yield();
    }
}

}  // namespace

void Barrier::wait(int threads) {
    if (threads == 1) return;
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    spin([&] { return round_.load(std::memory_order_acquire) != round; });
}

Pool::Pool(int threads) : slots_(new Slot[threads]) {
    for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { loop(i); });
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(sleeping_);
        ending_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Pool::run(int threads, const Work& work) {
    const std::lock_guard<std::mutex> lock(calling_);
    threads = threads < size() ? threads : size();
    work_ = &work;
    running_.store(threads - 1, std::memory_order_relaxed);
    for (int i = 1; i < threads; ++i) slots_[i].call.fetch_add(1, std::memory_order_seq_cst);
    if (threads > 1 && asleep_.load(std::memory_order_seq_cst)) {
        { const std::lock_guard<std::mutex> waking(sleeping_); }
        wake_.notify_all();
    }
    work(0);
    spin([&] { return running_.load(std::memory_order_acquire) == 0; });
}

void Pool::loop(int thread) {
    std::atomic<int>& call = slots_[thread].call;
    for (int last = 0;; ++last) {
        const auto called = [&] { return call.load(std::memory_order_seq_cst) != last || ending_.load(); };
        if (!spin(called, kPatience)) {
            std::unique_lock<std::mutex> lock(sleeping_);
            asleep_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, called);
            asleep_.fetch_sub(1, std::memory_order_seq_cst);
        }
        if (ending_) return;
        (*work_)(thread);
        running_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace lora_ft
