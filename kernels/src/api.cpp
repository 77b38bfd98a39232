// The C interface. Errors are codes or null.
#include <exception>
#include <memory>
#include <string>

#include "stack.h"
#include "threads.h"

namespace lora_ft {
// CMake compiles instructions.cpp once for each of these.
namespace portable { extern const Functions functions; }
#if defined(LORA_FT_X86)
namespace avx2 { extern const Functions functions; }
namespace avx512 { extern const Functions functions; }
#endif

namespace {

const Functions* functions_for(const std::string& name) {
    if (name == "portable") return &portable::functions;
#if defined(LORA_FT_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    if (name == "avx2" && avx2) return &avx2::functions;
    if (name == "avx512" && avx512) return &avx512::functions;
#endif
    return nullptr;
}

struct Kernel {
    const Stack* stack;  // the caller's
    const Functions* functions;
    std::unique_ptr<Pool> pool;
};

}  // namespace

extern "C" {

// Returns a kernel, or null if the processor lacks the instructions or the memory does not suffice.
Kernel* lora_ft_open(const Stack* stack, const char* instructions, int threads) try {
    const Functions* const functions = functions_for(instructions);
    return functions ? new Kernel{stack, functions, std::make_unique<Pool>(threads)} : nullptr;
} catch (const std::exception&) {
    return nullptr;
}

void lora_ft_close(Kernel* kernel) { delete kernel; }

// Returns 0, 1 if a token or a length is out of range, or 2 if the memory does not suffice.
int lora_ft_step(Kernel* kernel, const Call* call) try {
    for (int i = 0; i < call->rows * call->tokens; ++i)
        if (call->ids[i] < 0 || call->ids[i] >= kernel->stack->sizes.vocabulary) return 1;
    for (int i = 0; i < call->lengths_count; ++i)
        if (call->lengths[i] < 0 || call->lengths[i] + call->tokens > call->room) return 1;
    kernel->functions->step(*kernel->stack, *call, *kernel->pool);
    return 0;
} catch (const std::exception&) {
    return 2;
}

// Returns 0, or 2 if the memory does not suffice.
int lora_ft_encode(Kernel* kernel, const Sources* call) try {
    kernel->functions->encode(*kernel->stack, *call, *kernel->pool);
    return 0;
} catch (const std::exception&) {
    return 2;
}

// Rounds floats to halves.
void lora_ft_round(const float* from, Half* to, size_t count) {
    for (size_t i = 0; i < count; ++i) to[i] = nearest(from[i]);
}

// Starts threads in a forked child. The pool of the parent is never destroyed, since its threads are not there to end.
void lora_ft_forked(Kernel* kernel) {
    const int threads = kernel->pool->size();
    static_cast<void>(kernel->pool.release());
    kernel->pool = std::make_unique<Pool>(threads);
}
}
}  // namespace lora_ft
