#define LANES avx512
#include "step.h"

namespace lora_ft {
extern const Functions avx512_functions{avx512::run_step};
}  // namespace lora_ft
