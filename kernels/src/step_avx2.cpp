#define LANES avx2
#include "encoder.h"
#include "step.h"

namespace lora_ft {
extern const Functions avx2_functions{avx2::run_step, avx2::run_encoder};
}  // namespace lora_ft
