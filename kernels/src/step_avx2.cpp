#define LANES avx2
#include "step.h"

namespace lora_ft {
extern const Functions avx2_functions{avx2::run_step};
}  // namespace lora_ft
