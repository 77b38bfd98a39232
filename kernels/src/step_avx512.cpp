#define LANES avx512
#include "encoder.h"
#include "step.h"

namespace lora_ft {
extern const Functions avx512_functions{avx512::run_step, avx512::run_encoder};
}  // namespace lora_ft
