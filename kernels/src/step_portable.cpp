#define LANES portable
#include "encoder.h"
#include "step.h"

namespace lora_ft {
extern const Functions portable_functions{portable::run_step, portable::run_encoder};
}  // namespace lora_ft
